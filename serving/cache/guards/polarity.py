"""Negation and antonyms must be equal. Pure."""

from collections.abc import Callable

from serving.cache.guards.function_words import FUNCTION_WORDS, Language
from serving.cache.guards.words import Words, stem

_NEGATIONS: dict[Language, frozenset[str]] = {
    "en": frozenset("""not no never none nobody nothing nowhere neither nor without hardly barely
        scarcely rarely seldom unable except excluding lack lacks lacking non cannot avoid prevent
        stop refuse fail fails failed instead""".split()),
    "de": frozenset("""nicht kein keine keinen keinem keiner keines nie niemals niemand nichts
        nirgends ohne weder kaum selten außer vermeiden verhindern aufhören statt anstatt""".split()),
    "fr": frozenset("""pas jamais rien aucun aucune personne nulle sans ni guère rarement sauf non
        éviter empêcher arrêter""".split()),
    "es": frozenset("""no nunca jamás nada nadie ningún ninguna ninguno sin ni tampoco rara excepto
        salvo evitar impedir dejar""".split()),
}  # fmt: skip
# "ne" alone negates in careful French.
_FRENCH_NE = frozenset({"ne", "n'"})
# No negations: phrases that hold a negation's word.
_NEUTRAL = ("why not", "no matter", "not only", "or not", "no longer than")

# Phrases that except something and hold no negation.
_EXCEPTIONS: dict[Language, tuple[str, ...]] = {
    "en": ("anything but", "everything but", "all but", "other than", "apart from", "aside from"),
    "de": ("abgesehen von", "bis auf"),
    "fr": ("à part", "hormis", "à l'exception de", "tout excepté"),
    "es": ("todo menos", "aparte de", "a excepción de"),
}

# Opposites by language, one pair in each entry; several words of a side are joined by |.
_PAIRS: dict[Language, str] = {
    "en": """
on/off enable|enabling|activate/disable|disabling|deactivate before|prior/after|following
increase|raise|boost|grow/decrease|reduce|lower|cut|shrink with/without|absent|lacking|minus include/exclude
start|begin|launch/stop|end|finish|quit open|unlock|opening/close|shut|lock|closed buy|purchase/sell
install/uninstall|remove add|append|insert/remove|delete|subtract connect|attach|pair/disconnect|detach|unpair
allow|permit|accept|legal|unblock/forbid|deny|reject|block|ban|illegal|prohibit
import|upload/export|download upload/download|export
encrypt|encode|compress|zip/decrypt|decode|decompress|unzip|extract win/lose lose|lost/find|found into/out good|better|best/bad|worse|worst
high|higher|highest/low|lower|lowest hot|hotter|hottest|warm|heat/cold|colder|coldest|cool big|large|larger|largest|bigger|biggest/small|smaller|smallest|little|tiny
long|longer|longest/short|shorter|shortest fast|faster|fastest|quick|quickest|quickly/slow|slower|slowest|slowly
old|older|oldest/new|newer|newest|young|younger|youngest early|earlier|earliest/late|later|latest
rich|wealthy/poor easy|easier|easiest|easily|simple/hard|harder|hardest|difficult strong|stronger|strongest/weak|weaker|weakest
safe|safely|harmless/dangerous|unsafe|harmful|risky positive/negative true/false right|correct/wrong|incorrect
left/right up|upward|upstairs/down|downward|downstairs inside|indoor|indoors|internal/outside|outdoor|outdoors|external
male|man|men|boy|boys|father|husband|son|brother|king/female|woman|women|girl|girls|mother|wife|daughter|sister|queen
first/last most/least more/less|fewer maximum|max|maximize/minimum|min|minimize above|over/below|under
public/private manual|manually/automatic|automatically|automatic present|presence/absent|absence
love|like/hate|dislike push/pull give|lend|send/take|receive|borrow lend/borrow teach/learn
gain/lose arrive|arrival/depart|departure|leave enter|entry|entering/exit|leave|leaving
import|importing/export|exporting deposit/withdraw hire|hiring/fire|firing|dismiss marry|marriage/divorce
follow/unfollow subscribe/unsubscribe|cancel join/leave mute/unmute show|reveal/hide pros|advantages|benefits|advantage|benefit/cons|disadvantages|drawbacks|risks|disadvantage
cause|causes|create|trigger/cure|treat|treatment|prevent|fix|relieve success/failure profit/loss
attract/repel expand/contract|collapse accelerate/decelerate|brake freeze/melt|thaw
fill/empty full/empty wet/dry clean/dirty deep/shallow thick/thin wide/narrow
acquire/sell employer/employee parent|parents/child|children|kid|kids teacher|teachers/student|students
landlord/tenant buyer|buyers/seller|sellers lender/borrower doctor|doctors/patient|patients
ascending/descending horizontal|horizontally/vertical|vertically forward|forwards/backward|backwards
odd/even cheap|cheaper|cheapest/expensive|pricier near|nearest|close|closest|closer/far|farthest|farther
temporary|temporarily/permanent|permanently beginner|beginners|novice/expert|experts|advanced
sync/async synchronous/asynchronous local|locally/remote|remotely online/offline freeze/unfreeze
alive|live|birth|born|life/dead|die|died|death light|lighter/dark|heavy|heavier|darker loud/quiet
front/back|rear top/bottom north|northern/south|southern east|eastern/west|western
ancestor|ancestors/descendant|descendants victory|won/defeat|lost input/output credit/debit
supply/demand asset|assets/liability|liabilities income|revenue/expense|expenses inflation/deflation
inhale/exhale wake|awake/sleep|asleep remember/forget admit/deny agree/disagree improve|strengthen/worsen|weaken
build|construct/destroy|demolish attack/defend|defense serious/funny same/different similar/different
domestic/foreign|international winner/loser domestic/wild sunrise/sunset summer/winter
freshwater/saltwater acid|acidic/alkaline|base raw/cooked fresh/frozen static/dynamic mutable/immutable
mount/unmount push/pop commit/revert|rollback upgrade/downgrade lossy/lossless singular/plural ingress/egress
""",
    "de": """
ein|einschalten|anschalten|anmachen|an/aus|ausschalten|abschalten|ausmachen aktivieren|aktiviere|aktiviert/deaktivieren|deaktiviere|deaktiviert
vor|vorher/nach|nachher mit/ohne erhöhen|erhöhe|steigern|steigt/senken|senke|verringern|reduzieren|sinkt
öffnen|öffne|öffnet|auf/schließen|schließe|schließt|zu kaufen|kaufe|kauft/verkaufen|verkaufe|verkauft installieren|installiere/deinstallieren|deinstalliere|entfernen
hinzufügen/entfernen|löschen verbinden|verbinde/trennen|trenne erlauben|erlaubt|legal/verbieten|verboten|illegal
hochladen|importieren|importiere/herunterladen|exportieren|exportiere gut|gute|guten|gutes|besser|beste|besten|bester/schlecht|schlechte|schlechten|schlechter|schlechteste|schlechtesten
hoch|hohe|hohen|hohem|hoher|höchste|höchsten|höher/niedrig|niedrige|niedrigen|niedriger|niedrigste|niedrigsten|tief groß|große|großen|größer|größte|größten/klein|kleine|kleinen|kleiner|kleinste|kleinsten
lang|lange|langen|länger|längste|längsten/kurz|kurze|kurzen|kürzer|kürzeste|kürzesten schnell|schneller|schnellste|schnellsten|schnelle/langsam|langsamer|langsamste|langsamsten|langsame
heiß|heißes|heißen|warm|warme|warmes|wärmste/kalt|kalte|kalten|kaltes|kälteste alt|alte|alten|älter|älteste|ältesten/neu|neue|neuen|neueste|jung|jüngste|jüngsten|jünger
früh|früher/spät|später leicht|leichter|leichte|einfach|einfache/schwer|schwerer|schwierig sicher/gefährlich|unsicher
positiv|positive/negativ|negative richtig|richtige/falsch|falsche links|linke|linken/rechts|rechte|rechten oben|obere/unten|untere drinnen|innen|innere/draußen|außen|äußere
mann|männer|männern|vater|sohn|bruder|könig/frau|frauen|mutter|tochter|schwester|königin meisten|meiste|mehr|am_meisten/wenigsten|weniger maximale|maximum|höchstens/minimale|minimum|mindestens
über|oberhalb/unter|unterhalb manuell|manuelle/automatisch|automatische vorteile|vorteil|nutzen/nachteile|nachteil|risiken
ursache|ursachen|verursacht/heilung|behandlung|heilt gewinnen|gewinnt|gewann|gewinn|sieg/verlieren|verliert|verlor|verlust|niederlage
anfang|anfangen|beginnen|beginn|start|starten/ende|enden|beenden|aufhören|stoppen einzahlen/abheben abonnieren/kündigen|abbestellen
leihen/verleihen|ausleihen mieter/vermieter arbeitgeber/arbeitnehmer lehrer/schüler|schülern eltern/kinder|kind
öffentlich|öffentliche/privat|private nördlich|nord|norden|nördlichste/südlich|süd|süden|südlichste östlich|ost|osten/westlich|west|westen
günstig|günstiger|günstigste|günstigsten|billig|billigste|billigsten/teuer|teurer|teuerste|teuersten|teure aufsteigend/absteigend verschlüsseln/entschlüsseln
geboren|geburt|leben/gestorben|starb|tod ankommen|ankunft/abfahren|abfahrt|abflug stark|stärkste|stärker/schwach|schwächste|schwächer import|importe/export|exporte import/export
sperren|sperre/entsperren|entsperre zunehmen/abnehmen einatmen/ausatmen sommer/winter erste|ersten|erster/letzte|letzten|letzter anmelden|anmelde/abmelden|abmelde
""",
    "fr": """
allumer|allume|activer|active|activez/éteindre|éteins|désactiver|désactive|désactivez avant/après avec/sans
augmenter|augmente|hausse/diminuer|diminue|réduire|baisser|baisse ouvrir|ouvre|ouverture|ouvrent/fermer|ferme|fermeture|ferment acheter|achète|achat/vendre|vends|vente
installer|installe/désinstaller|désinstalle ajouter|ajoute/supprimer|supprime|retirer|enlever connecter|connecte/déconnecter|déconnecte
autoriser|autorisé|permis|légal/interdire|interdit|illégal importer|importe/exporter|exporte télécharger/téléverser
bon|bonne|bons|meilleur|meilleure|meilleurs|mieux/mauvais|mauvaise|pire|pires haut|haute|élevé|élevée/bas|basse|faible grand|grande|grands/petit|petite|petits
long|longue|longs/court|courte|courts rapide|rapides|rapidement|vite/lent|lente|lents|lentement chaud|chaude|chauffer/froid|froide|refroidir vieux|vieille|ancien|ancienne|âgé/jeune|nouveau|nouvelle|neuf
tôt/tard facile|faciles|facilement/difficile|difficiles sûr|sûre/dangereux|dangereuse positif|positive|positifs/négatif|négative|négatifs vrai/faux gauche/droite|droit dessus|haut/dessous|bas
intérieur|intérieure/extérieur|extérieure homme|hommes|père|fils|frère|roi|garçon/femme|femmes|mère|fille|sœur|reine plus/moins maximum|maximale/minimum|minimale avantages|avantage/inconvénients|inconvénient|risques
cause|causes/remède|traitement|guérison gagner|gagne|gagné|victoire/perdre|perd|perdu|défaite|perte commencer|commence|début|commencent/finir|finit|fin|terminer|finissent|termine
public|publique/privé|privée manuel|manuellement/automatique|automatiquement nord/sud est/ouest cher|chère|chers/économique|abordable croissant/décroissant né|née|naissance|vie/mort|morte|décès|mourir
arrivée|arriver|arrive/départ|partir|part fort|forte/faible premier|première|premiers/dernier|dernière|derniers prêter/emprunter employeur/employé propriétaire/locataire parents|parent/enfants|enfant
été/hiver chiffrer/déchiffrer verrouiller/déverrouiller monter|monte/descendre|descend grossir/maigrir offre/demande s'inscrire|abonner|inscrire/désabonner|désinscrire|résilier bloquer|bloque/débloquer|débloque
""",
    "es": """
encender|enciendo|activar|activo|activa/apagar|apago|desactivar|desactivo|desactiva antes/después con/sin
aumentar|aumento|subir|subo|aumenta/disminuir|reducir|reduzco|bajar|bajo|disminuye abrir|abro|abre|abren/cerrar|cierro|cierra|cierran comprar|compro|compra/vender|vendo|venta
instalar|instalo/desinstalar|desinstalo añadir|añado|agregar|agrego/eliminar|elimino|quitar|quito|borrar conectar|conecto/desconectar|desconecto
permitir|permite|legal|permitido/prohibir|prohíbe|ilegal|prohibido importar|importo/exportar|exporto subir|cargar/descargar
bueno|buena|buenos|mejor|mejores/malo|mala|malos|peor|peores alto|alta|altos|altas/bajo|baja|bajos|bajas grande|grandes/pequeño|pequeña|pequeños largo|larga|largos/corto|corta|cortos
rápido|rápida|rápidos|rápidamente/lento|lenta|lentos|lentamente caliente|calor|calentar/frío|fría|enfriar viejo|vieja|antiguo|antigua/nuevo|nueva|joven
temprano/tarde fácil|fáciles|fácilmente/difícil|difíciles seguro|segura/peligroso|peligrosa|inseguro positivo|positiva|positivos/negativo|negativa|negativos verdadero/falso izquierda|izquierdo/derecha|derecho
arriba|encima/abajo|debajo interior/exterior hombre|hombres|padre|hijo|hermano|rey/mujer|mujeres|madre|hija|hermana|reina más/menos máximo|máxima/mínimo|mínima ventajas|ventaja|beneficios/desventajas|desventaja|riesgos
causa|causas/cura|tratamiento ganar|ganó|gana|victoria/perder|perdió|pierde|derrota|pérdida empezar|empieza|comenzar|inicio|comienza/terminar|termina|acabar|fin|final
público|pública/privado|privada manual|manualmente/automático|automáticamente norte/sur este|oriental/oeste|occidental barato|barata|baratos|económico/caro|cara|caros ascendente/descendente nació|nacimiento|nacer|vida/murió|muerte|morir
llegada|llegar|llega/salida|salir|sale fuerte|fuertes/débil|débiles primero|primera|primer|primeros/último|última|últimos prestar/pedir empleador/empleado propietario/inquilino padres/hijos|niños
verano/invierno cifrar/descifrar bloquear|bloqueo/desbloquear|desbloqueo engordar/adelgazar oferta/demanda suscribir|suscribirse/cancelar|desuscribirse
""",
}

# Prefixes that turn a word into its opposite.
_PREFIXES: dict[Language, tuple[str, ...]] = {
    "en": ("un", "in", "im", "ir", "il", "dis", "non", "non-", "de", "mis", "anti", "anti-", "a"),
    "de": ("un", "nicht", "in", "ab", "ent", "de", "anti", "miss"),
    "fr": ("in", "im", "ir", "il", "dés", "dé", "mal", "non", "anti", "a"),
    "es": ("in", "im", "ir", "i", "des", "no", "anti", "a"),
}
_OPPOSITE_ENDINGS = (("ful", "less"), ("able", "less"), ("", "less"), ("", "free"), ("", "-free"))
_SHORTEST_BASE = 4


def _opposites(lines: str) -> tuple[tuple[frozenset[str], frozenset[str]], ...]:
    pairs = (pair.split("/") for pair in lines.split())
    return tuple((frozenset(one.split("|")), frozenset(other.split("|"))) for one, other in pairs)


_OPPOSITES = {code: _opposites(lines) for code, lines in _PAIRS.items()}


_OPPOSITES_OF: dict[Language, dict[str, list[tuple[frozenset[str], frozenset[str]]]]] = {}
for _code, _pairs in _OPPOSITES.items():
    _OPPOSITES_OF[_code] = {}
    for _pair in _pairs:
        for _word in _pair[0] | _pair[1]:
            _OPPOSITES_OF[_code].setdefault(_word, []).append(_pair)


def compare_negation(a: Words, b: Words) -> str | None:
    """Return `negation` where the texts do not have the same number of negations."""
    return None if _negations(a) == _negations(b) else "negation"


def compare_antonyms(a: Words, b: Words) -> str | None:
    """Return `antonyms` where one text has a word that the other has the opposite of.

    So have German verbs with another particle (melde an, melde ab), English ones (sign in, sign
    out), and Spanish persons of the other sex (mi suegra, mi suegro).
    """
    language = a.language
    if language is None or language != b.language:
        return None
    forms = [_forms(words) for words in (a, b)]
    found = forms[0] | forms[1]
    for one, other in {pair for word in found for pair in _OPPOSITES_OF[language].get(word, ())}:
        sides = [(not one.isdisjoint(found), not other.isdisjoint(found)) for found in forms]
        if sides[0] != sides[1] and all(any(found) for found in sides):
            return "antonyms"
    if _PARTICLE[language](a) != _PARTICLE[language](b):
        return "antonyms"
    return "antonyms" if _prefixed(a, b, language) else None


_GERMAN_PARTICLES = frozenset(
    """an ab auf aus unter ein zu mit nach vor um los weg her hin zurück bei durch über zusammen fort
    heraus hinaus herein hinein hinzu weiter fest frei""".split()
)
_ENGLISH_PARTICLES = frozenset("in out up down on off over away back".split())


def _german_particle(words: Words) -> frozenset[str]:
    """Return the particle that ends a clause: wann geht die Sonne auf."""
    last = words.lower[-1:]
    return frozenset(last) & _GERMAN_PARTICLES


def _english_particles(words: Words) -> frozenset[str]:
    """Return the particles that follow a verb, and end the text or stand before a preposition."""
    ends = {"", "on", "of", "to", "from", "with", "for", "a", "the", "my", "your"}
    pairs = zip(words.lower, words.lower[1:], (*words.lower[2:], ""), strict=False)
    return frozenset(
        particle
        for verb, particle, after in pairs
        if particle in _ENGLISH_PARTICLES - {"in", "on", "over"}
        and after in ends
        and verb not in FUNCTION_WORDS["en"]
    )


def _spanish_sex(words: Words) -> frozenset[str]:
    """Return the sexes of persons that a possessive names: mi suegra."""
    pairs = zip(words.lower, words.lower[1:], strict=False)
    return frozenset(
        noun.rstrip("s")[-1:]
        for owner, noun in pairs
        if owner in ("mi", "mis", "tu", "tus", "su", "sus") and noun.rstrip("s")[-1:] in ("a", "o")
    )


def _none(words: Words) -> frozenset[str]:
    return frozenset()


_PARTICLE: dict[Language, Callable[[Words], frozenset[str]]] = {
    "en": _english_particles,
    "de": _german_particle,
    "fr": _none,
    "es": _spanish_sex,
}


def _forms(words: Words) -> frozenset[str]:
    """Return the words of a text and their base forms; "with no" is without."""
    present = words.present
    if words.language == "en" and words.has_any("with no"):
        present = frozenset(words.line.replace(" with no ", " without ").split())
    return present | _regular(words)


def _regular(words: Words) -> frozenset[str]:
    """Return base forms of the words of an English text."""
    if words.language != "en":
        return frozenset()
    found = set()
    for word in words.present:
        for ending, base in (("s", ""), ("es", ""), ("ed", ""), ("d", ""), ("ing", ""), ("ing", "e"),
                             ("ies", "y"), ("ied", "y")):  # fmt: skip
            if word.endswith(ending) and len(word) - len(ending) >= 3:
                found.add(word[: -len(ending)] + base)
                # stopping, cutting
                bare = word[: -len(ending)]
                if ending in ("ed", "ing") and bare[-1] == bare[-2]:
                    found.add(bare[:-1])
    return frozenset(found)


def _negations(words: Words) -> int:
    if words.language is None:
        return 0
    line = words.line
    for phrase in _NEUTRAL:
        line = line.replace(f" {phrase} ", " ")
    tokens = line.split()
    known = _NEGATIONS[words.language]
    count = sum(token in known for token in tokens)
    count += sum(line.count(f" {phrase} ") for phrase in _EXCEPTIONS[words.language])
    if words.language == "fr" and count == 0:
        count = int(any(token in _FRENCH_NE for token in tokens))
    return count


def _prefixed(a: Words, b: Words, language: Language) -> bool:
    only_a = {stem(word, language) for word in a.present - b.present}
    only_b = {stem(word, language) for word in b.present - a.present}
    return any(
        _are_derived(first, second, language) or _are_derived(second, first, language)
        for first in only_a
        for second in only_b
        if first != second
    )


def _are_derived(short: str, long: str, language: Language) -> bool:
    if len(short) < _SHORTEST_BASE:
        return False
    if any(long == prefix + short for prefix in _PREFIXES[language]):
        return True
    return language == "en" and any(
        short.endswith(one) and long == short.removesuffix(one) + other
        for one, other in _OPPOSITE_ENDINGS
    )
