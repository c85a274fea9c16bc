"""What is asked must be the same: kind of question, tense, scope. Pure."""

import re
from itertools import takewhile

from serving.cache.guards.function_words import FUNCTION_WORDS, Language
from serving.cache.guards.words import Words

# The most specific first: "how many" before "how". Kinds of equal names ask the same.
_KINDS: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (
        ("number", "how many|what number|number of|count"), ("amount", "how much|what amount"),
        ("price", "cost|costs|price|prices|how expensive|cheap"),
        ("duration", "how long|how much time|how many years|how many hours|how many days"), ("rate", "how often|how frequently"),
        ("age", "how old"), ("distance", "how far|what distance"),
        ("size", "how big|how large|how tall|how high|how deep|how wide|how heavy|how fast|how hot"),
        ("time", "when|what year|which year|what date|what time|what day|which day|what month|what century"),
        ("place", "where|what place|which place|what country|which country|what city|which city|what location"),
        ("reason", "why|what reason|reason|reasons|how come|what caused|what causes"),
        ("person", "who|whom|what person|which person"), ("owner", "whose"),
        ("manner", "how"), ("thing", "what|which"),
    ),
    "de": (
        ("number", "wie viele|wieviele|anzahl"), ("amount", "wie viel|wieviel"),
        ("price", "kostet|kosten|preis|teuer"), ("duration", "wie lange"), ("rate", "wie oft"),
        ("age", "wie alt"), ("distance", "wie weit"),
        ("size", "wie groß|wie hoch|wie lang|wie tief|wie schwer|wie schnell|wie breit"),
        ("time", "wann|welchem jahr|welches jahr|uhrzeit|welchem tag"),
        ("place", "wo|wohin|woher|welchem land|welcher stadt|welche stadt|welches land"),
        ("reason", "warum|wieso|weshalb|weswegen|grund|gründe"),
        ("person", "wer|wen|wem"), ("owner", "wessen"), ("manner", "wie"),
        ("thing", "was|welche|welcher|welches|welchen"),
    ),
    "fr": (
        ("duration", "combien de temps"), ("rate", "combien de fois|fréquence"),
        ("price", "coûte|coûtent|prix|coût|cher"), ("age", "quel âge"),
        ("number", "combien de|combien d'|combien|nombre"),
        ("distance", "quelle distance"), ("size", "quelle taille|quelle hauteur"),
        ("time", "quand|quelle année|quelle date|quelle heure|quel jour"),
        ("place", "où|quel pays|quelle ville|quel endroit"), ("reason", "pourquoi|raison|raisons"),
        ("person", "qui|qui est"), ("manner", "comment"),
        ("thing", "que|qu'|quoi|quel|quelle|quels|quelles"),
    ),
    "es": (
        ("duration", "cuánto tiempo|cuánto dura|cuánto tarda"), ("rate", "cuántas veces|frecuencia"),
        ("price", "cuesta|cuestan|precio|coste|costo"), ("age", "qué edad"),
        ("number", "cuántos|cuántas|número"), ("amount", "cuánto|cuánta"),
        ("distance", "qué distancia"), ("size", "qué tamaño|qué altura"),
        ("time", "cuándo|qué año|qué fecha|qué hora|qué día"),
        ("place", "dónde|adónde|qué país|qué ciudad|qué lugar"), ("reason", "por qué|razón|razones"),
        ("means", "con qué|de qué|en qué"),
        ("person", "quién|quiénes"), ("manner", "cómo"), ("thing", "qué|cuál|cuáles"),
    ),
}  # fmt: skip
_KIND_PHRASES = {
    code: [
        (name, phrase.split(" ", 1)[0], phrase)
        for name, phrases in kinds
        for phrase in phrases.split("|")
    ]
    for code, kinds in _KINDS.items()
}
# A text that begins with one of these, and has no question word, is answered by yes or no.
_POLAR: dict[Language, str] = {
    "en": "is are was were do does did has have had can could will would should may might must am",
    "de": "ist sind war waren hat haben kann können wird werden darf soll sollte muss gibt bin war",
    "fr": "est sont peut doit a ont faut était y",
    "es": "es son está están puede puedo debe hay tiene tienen era fue debo",
}
# Questions of these kinds are often put with one another's words.
_SAME_ASKED = (
    frozenset({"amount", "price"}),
    frozenset({"price", "thing"}),
    frozenset({"manner", "action"}),
)
# "What" with one of these asks what the kind's own question word asks: what is the height of.
_NOUNS_OF_KIND: dict[Language, dict[str, str]] = {
    "en": {
        "number": "number|population|count|percentage|rate|ratio|frequency",
        "amount": "amount|quantity|salary|income|cost|price|value|rate|percentage",
        "duration": "duration|length|time|age|period|lifespan|life", "rate": "frequency|rate",
        "age": "age", "distance": "distance",
        "size": "height|width|depth|length|size|weight|speed|temperature|area|capacity|volume|dimensions",
        "time": "time|date|year|day|month|season|age|history|schedule|period",
        "place": "place|places|location|locations|city|country|site|sites|website|websites|store|stores|shop|shops|way|"
        "ways|capital|address|source|sources|college|colleges|university|hotel|restaurant|restaurants",
        "reason": "reason|reasons|cause|causes|caused|makes|make|made|purpose|motive|explanation|logic|point|importance|need|significance",
        "person": "person|name|author|people|inventor|founder|president|actor|owner|creator|persons",
        "owner": "owner",
        "manner": "way|ways|method|methods|tip|tips|step|steps|process|procedure|trick|tricks|technique|"
        "techniques|approach|strategy|like|difference|differences|relationship|effect|effects|impact|"
        "influence|role|best|be done|should i do|can i do|need to do|opinion|meaning|mean|means|review|reviews|"
        "uses|use|cause|causes|happens|happen|order|advice|system|mechanism|income|value|important",
        "action": "function|functions|purpose|role|use|uses|job|thing|things|way|ways|activities|best|work",
    },
    "de": {
        "number": "anzahl|zahl|einwohnerzahl|bevölkerung", "amount": "menge|preis|gehalt|kostet|kosten",
        "duration": "dauer|zeit", "rate": "häufigkeit", "age": "alter", "distance": "entfernung|abstand",
        "size": "höhe|größe|länge|breite|tiefe|gewicht|geschwindigkeit", "time": "zeit|jahr|datum|tag|reisezeit",
        "place": "ort|land|stadt|orte|hauptstadt", "reason": "grund|ursache|ursachen|gründe",
        "person": "name|autor|person|erfinder",
        "manner": "art|weise|methode|methoden|tipps|schritte|verfahren|unterschied|unterschiede|beste|besten|"
        "hilft|bedeutet|tun|höhe|bedeutung|heißt",
    },
    "fr": {
        "number": "nombre|population|poids|hauteur|longueur|durée", "amount": "quantité|prix|salaire|coûte", "duration": "durée|temps",
        "rate": "fréquence", "age": "âge", "distance": "distance",
        "size": "hauteur|taille|longueur|largeur|profondeur|poids|vitesse",
        "time": "moment|période|date|année|saison|jour|époque", "place": "lieu|endroit|pays|ville|lieux|capitale",
        "reason": "raison|cause|raisons|causes|cause-t", "person": "nom|auteur|personne|inventeur",
        "manner": "façon|manière|méthode|méthodes|conseils|étapes|différence|différences|meilleure|moyen|"
        "moyens|faire|signifie|solution|faut",
    },
    "es": {
        "number": "número|población|cantidad", "amount": "cantidad|precio|sueldo|salario|cuesta|peso|altura|duración",
        "duration": "duración|tiempo", "rate": "frecuencia", "age": "edad", "distance": "distancia",
        "size": "altura|tamaño|longitud|anchura|profundidad|peso|velocidad",
        "time": "momento|época|fecha|año|día|temporada", "place": "lugar|país|ciudad|lugares|sitio|capital",
        "reason": "razón|causa|causas|motivo", "person": "nombre|autor|persona|inventor",
        "manner": "manera|forma|modo|método|métodos|consejos|pasos|diferencia|diferencias|mejor|hacer|"
        "significa|proceso",
    },
}  # fmt: skip

_TENSES: dict[Language, dict[str, str]] = {
    "en": {"past": "was|were|did|had|used to", "future": "will|going to|shall",
           "present": "is|are|am|does|do|has"},
    "de": {"past": "war|waren|wurde|wurden|hatte|hatten", "future": "werde|werden|wird",
           "present": "ist|sind|hat|haben|bin"},
    "fr": {"past": "était|étaient|avait|avaient|fut|furent", "future": "sera|seront|aura|auront|va|vont",
           "present": "est|sont|a|ont"},
    "es": {"past": "era|eran|fue|fueron|estaba|había|tuvo|hizo", "future": "será|serán|habrá|va a|van a",
           "present": "es|son|está|están|hay|tiene|hace"},
}  # fmt: skip

# Each entry is one restriction; its words count as the same.
_SCOPES: dict[Language, str] = {
    "en": """free|gratis online|web-based|internet offline paid legally|legal illegally safely permanently
        temporarily manually automatically naturally|natural home remotely|remote beginner|beginners
        advanced kids|children|child adults|adult women|men's|woman men|man student|students
        teacher|teachers senior|seniors|elderly pregnant|pregnancy dog|dogs cat|cats baby|babies|infant|infants
        toddler|toddlers teenager|teenagers|teens professional|professionals personal
        business|businesses|corporate|commercial small large vegan vegetarian gluten-free organic
        homemade cheap|cheapest|inexpensive|affordable expensive fastest|quickest easiest|simplest safest
        best worst top popular recommended common rare typical average ideal official unofficial
        public private local foreign international domestic national global worldwide
        mobile|phone desktop|computer|laptop|pc tablet browser app android ios|iphone windows mac|macos linux
        internal external primary|main secondary original|first final early late
        daily weekly monthly yearly|annual used|secondhand new wireless wired digital analog|analogue
        electric diesel hybrid short-term long-term chronic acute northern southern eastern western
        ancient|medieval modern traditional contemporary urban|city rural|countryside without|no
        solo|alone group family|families couple|couples remotely overnight sterile raw cooked frozen fresh dry|dried
        diabetic|diabetics allergic veteran|veterans citizen|citizens foreigner|foreigners
        employee|employees employer|employers freelancer|freelancers tourist|tourists""",
    "de": """kostenlos|gratis|umsonst online offline legal dauerhaft vorübergehend manuell automatisch
        natürlich zuhause anfänger fortgeschrittene kinder|kindern erwachsene|erwachsenen frauen männer
        studenten|studierende senioren schwangere hund|hunde|hunden katze|katzen baby|babys unternehmen|firmen
        privat vegan vegetarisch glutenfrei bio günstig|billig teuer beste|besten|bester schlechteste
        schnellste|schnellsten handy|smartphone computer|pc|laptop android iphone|ios windows mac linux
        international national weltweit täglich wöchentlich monatlich jährlich gebraucht|gebrauchte neu|neue
        elektrisch roh gekocht frisch berühmteste beliebteste|beliebtesten häufigste|häufigsten modern|moderne""",
    "fr": """gratuit|gratuitement|gratuite ligne hors-ligne légalement définitivement temporairement
        manuellement automatiquement naturellement débutant|débutants enfant|enfants adulte|adultes femme|femmes
        homme|hommes étudiant|étudiants senior|seniors enceinte chien|chiens chat|chats bébé|bébés
        entreprise|entreprises privé végétalien|végétalienne|vegan végétarien|végétarienne bio
        international|internationale national|nationale mondial|mondiale meilleur|meilleure pire
        téléphone|mobile|smartphone ordinateur|pc android iphone windows mac linux quotidien mensuel annuel
        occasion neuf cru|crue cuit|cuite frais|fraîche célèbre|célèbres populaire|populaires moderne|modernes""",
    "es": """gratis|gratuito|gratuitamente línea|online offline legalmente permanentemente temporalmente
        manualmente automáticamente naturalmente principiante|principiantes niño|niños|niñas adulto|adultos
        mujer|mujeres hombre|hombres estudiante|estudiantes mayores embarazada|embarazadas perro|perros gato|gatos
        bebé|bebés empresa|empresas privado vegano|vegana vegetariano|vegetariana orgánico
        internacional nacional mundial mejor|mejores peor móvil|celular|teléfono ordenador|computadora|pc
        android iphone windows mac linux diario mensual anual usado|usada nuevo crudo|cruda cocido fresco
        famoso|famosa|famosos popular|populares moderno|moderna común|comunes""",
}
_EVALUATIONS = frozenset(
    {"best", "besten", "beste", "meilleur", "mejor", "top", "recommended", "ideal"}
)
_SCOPE_CLASSES = {
    code: {word: group.split("|")[0] for group in groups.split() for word in group.split("|")}
    for code, groups in _SCOPES.items()
}


# "What does a liver do" asks for an action, "what is a liver" for a definition.
_ACTION = re.compile(
    r" what (?:do|does|did|can|could|should|would|will) .*\bdo(?: with| in| for| to)?\b"
)


# "The best time to" and "the best place to" ask for different things with one question word.
_ASKED_NOUN = re.compile(
    r" (?:best|good|right|ideal|worst|perfect|main|correct) (time|place|spot|way|method|age|size|"
    r"reason|name|price|person|order|temperature|position|speed|distance) "
)
_SAME_NOUN = {"spot": "place", "method": "way"}

# What is asked about is a word or a phrase itself: no form of it and no synonym stands for it.
_MENTION = re.compile(
    r" what (?:does|do) (?:the (?:word|term|phrase|name) )?(.+?) mean | (?:say|spell|pronounce|spelled|pronounced) (?:the (?:word|term|"
    r"phrase|name) )?(.+)| (?:bedeutet|heißt|sagt man|schreibt man) (?:das wort )?(.+)| (?:signifie|"
    r"dit on|écrit on) (?:le mot )?(.+)| (?:significa|se dice|se escribe) (?:la palabra )?(.+)"
)


# Behind these a function word is asked about as a word: cuándo se usa por, cuándo se usa para.
_USE = re.compile(
    r" (?:difference between|conjugate|conjugated|use|used|unterschied zwischen|verwendet man|benutzt man|"
    r"konjugiert man|différence entre|utilise|emploie|conjugue|conjuguer|diferencia entre|se usan?|"
    r"se emplean?|se conjugan?) (.+)"
)
_ARTICLES = frozenset(
    "the a an der die den dem des ein eine einen le la les l' un une el los las una y e o u and or und oder et ou".split()
)


def _used_word(words: Words) -> str | None:
    """Return the function words that a text asks about; None where it asks about something else."""
    found = _USE.search(words.line)
    if found is None or words.language is None:
        return None
    known = FUNCTION_WORDS[words.language]
    named = takewhile(lambda word: word in known, found[1].split())
    return " ".join(word for word in named if word not in _ARTICLES) or None


def _asked_noun(words: Words) -> str | None:
    found = _ASKED_NOUN.search(words.line)
    return _SAME_NOUN.get(found[1], found[1]) if found else None


def _mentioned(words: Words) -> str | None:
    """Return the words that a text asks about as words; in the case that they are written in."""
    found = _MENTION.search(words.line)
    if found is None:
        return None
    group = next(n for n, one in enumerate(found.groups(), 1) if one is not None)
    return found[group].strip()


def compare_kind(a: Words, b: Words) -> str | None:
    """Return `question_kind` where the texts ask for different kinds of answer."""
    for find in (_asked_noun, _mentioned, _used_word):
        one, other = find(a), find(b)
        if None not in (one, other) and one != other:
            return "question_kind"
    first, second = kind_of(a), kind_of(b)
    if first == second or frozenset({first, second}) in _SAME_ASKED:
        return None
    if "none" in (first, second):
        return None
    for vague, other in ((a, second), (b, first)):
        if kind_of(vague) == "thing" and vague.language is not None:
            nouns = _NOUNS_OF_KIND[vague.language].get(other, "")
            return None if nouns and vague.has_any(*nouns.split("|")) else "question_kind"
    return "question_kind"


# Who asks, and who is asked.
_PERSONS: dict[Language, tuple[frozenset[str], frozenset[str]]] = {
    "en": (
        frozenset("i me my mine myself our ours".split()),
        frozenset("you your yours yourself".split()),
    ),
    "de": (
        frozenset("ich mich mir mein meine meinen meinem meiner meines".split()),
        frozenset("du dich dir dein deine deinen deinem deiner deines".split()),
    ),
    "fr": (
        frozenset("je j' me m' moi mon ma mes".split()),
        frozenset("tu te t' toi ton ta tes vous votre vos".split()),
    ),
    "es": (frozenset("yo me mi mis mí".split()), frozenset("tú te tu tus ti".split())),
}


def compare_persons(a: Words, b: Words) -> str | None:
    """Return `persons` where one text is about who asks and the other about who is asked.

    "How do you" and "what should you" ask in general, as "how do I" does.
    """
    first, second = _persons(a), _persons(b)
    if not first or not second or first == second:
        return None
    if set(first) & set(second):
        # What do I call you, what do you call me.
        return "persons" if sorted(first) == sorted(second) else None
    is_general = all(
        kind_of(words) in ("manner", "action") or _is_general(words) for words in (a, b)
    )
    return None if is_general else "persons"


def _persons(words: Words) -> tuple[int, ...]:
    if words.language is None:
        return ()
    asks, asked = _PERSONS[words.language]
    text = words.lower
    # "Can you tell me" is politeness.
    if words.has_any(*_POLITE):
        return ()
    found = [1 if word in asks else 2 for word in text if word in asks or word in asked]
    return tuple(one for n, one in enumerate(found) if n == 0 or found[n - 1] != one)


_POLITE = (
    "can you", "could you", "would you", "tell me", "give me", "help me", "show me",
    "kannst du", "können sie", "sag mir", "erkläre mir", "pouvez vous", "peux tu", "dis moi",
    "puedes", "dime",
)  # fmt: skip


def _is_general(words: Words) -> bool:
    return words.has_any(
        "should", "can", "could", "must", "if", "when", "need to", "have to", "way", "ways", "sollte", "kann", "muss",
        "wenn", "doit", "peut", "si", "debe", "puede",
    )  # fmt: skip


def compare_tense(a: Words, b: Words) -> str | None:
    """Return `tense` where one text is about the past or the future and the other is not."""
    first, second = _tense(a), _tense(b)
    if first != second and "" not in (first, second):
        return "tense"
    language = a.language
    if language is None or language != b.language or language not in _PAST_ENDINGS:
        return None
    ending = _PAST_ENDINGS[language]
    stems = dict(zip(b.stems, b.lower, strict=True))
    pairs = ((word, stems.get(name)) for name, word in zip(a.stems, a.lower, strict=True))
    is_past = (
        (bool(ending.search(one)), bool(ending.search(other))) for one, other in pairs if other
    )
    return "tense" if any(one != other for one, other in is_past) else None


# The endings of a verb that stands in both texts in two tenses: fabrique, fabriquait.
_PAST_ENDINGS: dict[Language, re.Pattern[str]] = {
    "de": re.compile(r"(?<=\w{2})te(?:n|st|t)?$"),
    "fr": re.compile(r"(?<=\w{2})(?:ai[st]|aient|ions|iez|era|eront)$"),
    "es": re.compile(r"(?<=\w{2})(?:aba|aban|ía|ían|ó|aron|ieron|rá|rán)$"),
}


def compare_scope(a: Words, b: Words) -> str | None:
    """Return `scope` where a word restricts one question and not the other."""
    if _restrictions(a) != _restrictions(b):
        return "scope"
    # The best universities are not the oldest: an evaluation is no other superlative.
    one, other = _superlatives(a), _superlatives(b)
    return "scope" if one != other and "best" in one ^ other and one and other else None


_SUPERLATIVE = re.compile(
    r"\b(?!interest|request|suggest|invest|test|rest|west|forest)\w{2,}est\b|\bbest\b"
)


def _superlatives(words: Words) -> frozenset[str]:
    return frozenset(_SUPERLATIVE.findall(words.line)) if words.language == "en" else frozenset()


def kind_of(words: Words) -> str:
    """Return what a text asks for: time, place, number, manner; `polar` for yes or no."""
    if "kind" not in words.notes:
        words.notes["kind"] = _find_kind(words)
    return words.notes["kind"]


def _find_kind(words: Words) -> str:
    if words.language is None:
        return "none"
    language = words.language
    if language == "fr" and words.line.startswith(" est ce que "):
        words = Words(words.plain[words.plain.lower().index("que") + 3 :])
        if not words.has_any("pourquoi", "quand", "où", "comment", "combien", "qui"):
            return "polar"
    # The first question word decides: what follows it may be "when" of a condition, or "and why".
    found = [
        (place, -len(phrase), name)
        for name, first, phrase in _KIND_PHRASES[language]
        if first in words.present and (place := words.line.find(f" {phrase} ")) >= 0
    ]
    if found:
        kind = min(found)[2]
        is_action = kind == "thing" and language == "en" and _ACTION.search(words.line)
        return "action" if is_action else kind
    begins = words.lower[:1]
    return "polar" if begins and begins[0] in _POLAR[language].split() else "none"


def _tense(words: Words) -> str:
    if words.language is None:
        return ""
    if words.has_any("how long will", "how long does"):
        # How long something takes is asked with either.
        return ""
    for name, verbs in _TENSES[words.language].items():
        if words.has_any(*verbs.split("|")):
            return name
    return ""


_WHICH = re.compile(r" (?:what|which) \w+(?= (?:is|are|was|were|does|do|did|has|have|had) )")


def _restrictions(words: Words) -> frozenset[str]:
    if words.language is None:
        return frozenset()
    classes = _SCOPE_CLASSES[words.language]
    # "Which city is the capital" names the kind of answer and restricts nothing.
    line = _WHICH.sub(" ", words.line).split()
    found = frozenset(classes[word] for word in line if word in classes)
    if kind_of(words) in ("polar", "none"):
        return found
    # "Which book", "which are good books", "what is the best way": each asks for the best answer.
    return found - _EVALUATIONS
