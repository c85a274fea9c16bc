"""Rules that refuse what the clause head reads as a task. Each needs evidence, not novelty."""

import re
from collections.abc import Sequence
from functools import cache

from serving.contracts.task_spec import ClassificationSpec, ExtractionSpec, TaskSpec

_NEGATED = re.compile(
    r"\b(?:no|not|don t|do not|never|without|skip|leave out|nothing|keine?n?|ohne|nicht|nichts|"
    r"sans|pas|aucune?|rien|n|ne|sin|ning\w+|nada)\b"
)
_REASON = re.compile(
    r"\b(?:what (?:made|makes|led)|was (?:hat|macht|bringt) dich|qu est ce qui (?:t|te|vous)|"
    r"qué te (?:hace|hizo|lleva|llevó)|evidence|belege?n?|preuves?|pruebas?|"
    r"why|explain\w*|explanation\w*|reason(?:s|ing)?|justif\w*|rationale|because|"
    r"elaborate|how come|warum|wieso|weshalb|begründ\w*|erklär\w*|erläuter\w*|pourquoi|"
    r"expliqu\w*|explication\w*|raison\w*|motive[rz]?|por qué|explica\w*|explique\w*|"
    r"razón|razones|razona\w*|step by step|schritt für schritt|étape par étape|paso a paso)\b"
)
_OTHER_FORMAT = re.compile(
    r"\b(?:xml|yaml|csv|html|latex|turtle|table|tabelle|tableau|tabla|columns?|emojis?|hashtags?|"
    r"bullets?|confidence|probabilit\w*|wahrscheinlich\w*|probabilité\w*|probabilidad\w*|scale|"
    r"skala|échelle|escala|percent\w*|stars?|sternen?|étoiles?|estrellas?|yes or no|ja oder nein|"
    r"oui ou non|sí o no|true or false|pirate?n?|rhym\w*|reimen?|rimes?|rimas|"
    r"poems?|haikus?|limericks?|sonnets?|gedichte?|poèmes?|poemas?|song|chanson|canción)\b"
)
_LENGTH = re.compile(
    r"\b\d+ (?:to|bis|à|a|al) \d+\b|\bin (?:one|a|two|three|einem|zwei|"
    r"drei) (?:short )?(?:sentence|"
    r"satz|sätze|line|zeile|paragraph)|\ben (?:une|deux|trois|una|dos|tres) (?:phrase|frase|"
    r"ligne|línea)"
)
_JSON = re.compile(r"\bjson\b")
# A label list that goes on with something that is no label.
_LONGER_LIST = re.compile(
    r"§(?:\w+) (?:or|oder|ou|o|u|and|und|et|y) (?:very|sehr|très|muy|none|mixed|gemischt|mitigé|"
    r"mixto|other|unclear|something|keine?s?|aucune?|otros?|ningun\w+|[^\W\d_]+ ?(?:$|[:?!]|§))"
    r"|\b(?:very|sehr|très|muy|strongly|slightly|somewhat|highly|extremely) §(?!text)"
    r"|§(?:sentiment|topic|ner) (?:very|sehr|très|muy) "
    # Of a list, several labels; and what is to be said besides one of them.
    r"|\b(?:two|three|several|zwei|drei|mehrere|deux|trois|plusieurs|dos|tres|varias?|varios) "
    r"(?:of |der |von |aus |des |de )?(?:the |den |les |las |los )?§(?:sentiment|topic)\b"
    r"|§(?:sentiment|topic) (?:and|und|et|y) (?:the|its|die|der|das|den|ihre?|seine?|la|le|les|l|"
    r"sa|son|ses|el|los|las|su) "
)
_ENUMERATED = re.compile(
    r"\b(?:each of|all of the|every one of|one by one|for (?:each|every) (?:person|aspect|sentence|"
    r"line|word|entity|company|paragraph|character)|respectively|both|"
    r"towards? (?:each|every)|sentiment (?:towards?|about|regarding) the|per (?:line|sentence)|"
    r"jeden? (?:satz|zeile|aspekt|person|der)|"
    r"chac(?:un|une) des|chaque (?:phrase|personne|aspect|ligne)|cada (?:frase|persona|aspecto|"
    r"línea|una?o? de))\b"
)
_TASK_VERB = (
    r"(?:classif|categori|translat|label|tag\b|tags\b|rate\b|extract|sort\b|traduc|traduz|tradui|"
    r"class|übersetz|klassif|extra[hi]|determin|détermin|bestimm|kategor|einordn|render|identif)"
)
_REFUSED_TASK = re.compile(
    r"\b(?:do not|don t|never|not to|no need to|rather than|instead of|without|statt|ohne zu|"
    rf"bitte nicht|ne|n|no|sin|sans|au lieu de|en vez de) (?:\w+ )?{_TASK_VERB}|"
    rf"{_TASK_VERB}\w* (?:pas|nicht)\b"
    rf"|\b(?:nicht|pas|not) (?:(?:the|die|das|den|ihre?|seine?|le|la|les|son|sa|l) (?:\w+ )?)?"
    rf"{_TASK_VERB}"
)
_JUDGED = re.compile(
    r"\bhow (?:good|many|much|well|accurate|sure|certain|confident|positive|negative)\b|"
    r"\bwie (?:gut|viele?|sicher|genau|positiv|negativ)\b|\bcombien\b|\bcuánt[oa]s?\b|"
    r"\b(?:est elle|est il) (?:bonne?|correcte?|juste)\b|\bes (?:buena|correcta)\b|"
    r"\bhow do(?:es)? (?!the (?:author|writer|speaker|customer|user|person|reviewer|poster|"
    r"guest)\b|"
    r"(?:you|i|one|we|they) (?:say|write|put|translate|express|call|phrase|render)\b)|"
    r"\b(?:which|what|welche|quels?|quelles|qué) (?:words?|parts?|phrases?|wörter|stellen|mots|"
    r"passages|palabras|languages?|sprachen?|langues?|idiomas?)\b|"
    r"\b(?:compare[sz]?|vergleich\w*|compara|compare)\b|"
    r"\b(?:opposite|gegenteil|contraire|contrario)\b|"
    r"\b(?:translations|traductions|traducciones|übersetzungen|alternatives|variants|varianten)\b|"
    r"\b(?:answers?|antworte\w*|réponds?|responde\w*) (?:questions|fragen|aux questions|"
    r"preguntas)\b|"
    r"\b(?:leave|keep|lass|laisse|deja) (?:the |den |le |el )?(?:rest|reste|resto)\b|"
    # "Schlage eine Antwort vor": the verb stands apart.
    r"\b(?:schlag\w*|stell\w*|denk\w*|fass\w*) (?:[^\W\d_]+ ){1,6}(?:vor|zusammen|aus|dar)\b|"
    r"\b(?:also(?! §)|additionally|außerdem|zusätzlich|nebenbei|aussi|además|también)\b|"
    r"\b(?:a reply|an answer|a response|eine antwort|une réponse|una respuesta) (?:to|an|auf|à|"
    r"a)\b|"
    r"\b(?:and|und|et|y) (?:link|describe|rank|count|verlink\w*|zähl\w*|relie|enlaza)|"
    r"\b(?:and then|and afterwards|und dann|et ensuite|puis|y luego|y después)\b|\bof each\b|"
    r"\bfor (?:a|an) (?:\w+ ){0,4}(?:old|child|kid|year|reader|audience)\b|"
    r"\bthe §lang (?:word|expression|phrase|idiom|proverb)\b|"
    r"\bthe same as\b|\bi m (?:thinking about|making|planning|writing)\b|"
    r"\b(?:and|und|et|y) (?:give|write|explain|list|add|check|correct|tell|summari|name|say|"
    r"show|quote|"
    r"nenne|schreib|erkläre|korrigiere|donne (?!les|la|le)|écris|corrige|escribe|corrige|añade|"
    r"explica)"
    r"(?!\w*(?: me| mir| moi)? (?:the |only |nothing |just |nur |back |it |them |out |down |your |"
    r"(?:its|their|ihren?|deren|leurs?|sus?) (?:types?|labels?|typ|typen|tipos?)\b|§|sonst |"
    r"nichts |no |solo |nada ))|"
    r"\bis (?:this|that|the|my) (?:§lang )?translation\b"
)
# What is made besides the answer: "write them a reply", "propose ensuite une réponse". Up to three
# words stand between the verb and what it makes; a word, a label or a list is the answer itself.
_MADE = re.compile(
    r"\b(?:write|draft|compose|invent|suggest|propose|recommend|add|append|attach|include|insert|"
    r"schreib\w*|verfass\w*|erfind\w*|entw[ie]rf\w*|empfiehl|ergänz\w*|füge?|häng\w*|"
    r"rédige\w*|écris|écrivez|invente[sz]?|propose[sz]?|suggère\w*|suggérez|recommande[sz]?|"
    r"ajoute[sz]?|joins|redact[ae]|escrib[ae]|invent[ae]|propón|propong\w*|propone|sugier[ae]|"
    r"recomiend[ae]|añad[ae]|agreg[ae]|inclu(?:s|z|y|ye|ya)) (?:[^\W\d_]+ ){0,3}?"
    r"(?:a|an|some|two|three|eine?n?|zwei|drei|une|un|des|deux|trois|una|dos|tres) "
    r"(?!(?:[^\W\d_]+ ){0,2}(?:words?|wort|mot|palabra|label|tag|category|class|term|name|list\w*|"
    r"json|array|translation|version|etikett|kategorie|übersetzung|étiquette|catégorie|traduction|"
    r"etiqueta|categoría|traducción)\b|§)"
)
# Whose voice answers: "answer like a sailor", "réponds à la manière d'un conteur".
_VOICE = re.compile(
    r"\b(?:answer|respond|reply|write|speak|talk|antworte\w*|schreib\w*|sprich|réponds|répondez|"
    r"écris|écrivez|parle|responde|responda|conteste|contesta|escribe|escriba|habla) "
    r"(?:[^\W\d_]+ ){0,3}?(?:like|as if|as though|in the (?:style|voice|manner|words)|als ob|"
    r"wie ein\w*|im stile?|à la (?:manière|façon)|dans le style|comme une?|al estilo|"
    r"a la manera|como (?:un|una|si))\b"
)
# A change of every name, whatever is put in its place.
_REPLACED = re.compile(
    r"\b(?:replac|anonymi|pseudonymi|redact|mask(?!ul)|substitut|blank out|black out|ersetz|"
    r"schwärz|maskier|remplac|masque[rz]?\b|caviard|sustitu|reemplaz|anonimiz|ocult|tacha)\w*"
)
# A translation that is there already: "check my translation".
_OWN_TRANSLATION = re.compile(
    r"\b(?:my|his|her|their|this|mein\w*|sein\w*|unser\w*|dies\w*|ma|mes|sa|notre|cette|mi|mis|su|"
    r"nuestra|esta) (?:§lang )?(?:own )?(?:translations?|übersetzung\w*|traductions?|traducci\w+)\b"
)
# "With a short biography": more than a type, and no list.
_ACCOMPANIED = re.compile(
    r"\b(?:with|mit|samt|avec|con|including|inklusive) (?:a|an|eine[nr]?|une?|una?) "
    r"(?!(?:[^\W\d_]+ ){0,2}(?:types?|typ\w*|tipos?|labels?|categor\w*|kategor\w*|catégor\w*|"
    r"list\w*|json|array|words?|wort|mot|palabra|single|tags?|etik\w*|étiq\w*|etiq\w*|names?|"
    r"name[ns]?|noms?|nombres?|key|field|feld|clé|champ|campo|space|line|blank|comma)\b|§)"
)
# Whom the text is written for, by age.
_AUDIENCE = re.compile(
    r"\b\w*jährige\w*|\bde [^\W\d_]+ (?:ans|años)\b|\b(?:pour|para|für) (?:[^\W\d_]+ ){0,2}"
    r"(?:enfants?|niñ[oa]s?|kind(?:er|es|ern)?|débutants?|principiantes?|anfänger\w*|laien)\b"
)
# Evidence from the text.
_QUOTED = re.compile(
    r"\b(?:quote|highlight|underline|zitiere|unterstreiche|surligne[rz]?|souligne[rz]?|subraya|"
    r"destaca) (?:the|any|all|every|each|die|den|das|alle|les?|la|las|los|el|tous|todas?|todos)\b"
)
# A clause that begins with a condition; "if possible" is none, and where there are no entities, the
# answer is an empty list.
_CONDITION = re.compile(
    r"^(?:only |nur |seulement |solo |sólo )?"
    r"(?:if|falls|wenn|sofern|si|s|unless|in case|en caso de) "
    r"(?!you|possible|necessary|needed|möglich|nötig|du |sie |ihr |tu |te |vous |possible|il te|il "
    r"vous|puedes?|podrías?|posible|es posible|quieres)"
)
_NO_ENTITIES = re.compile(
    r"^(?:if|falls|wenn|sofern|si|s) (?:there (?:are|is) no|none|no |keine|es keine|no hay|il n y)"
)
_SECOND_QUESTION = re.compile(
    r"\b(?:and|und|et|y|plus) (?:which|what|who|whom|how|when|where|welche[rsn]?|wer|was|wie|wo|"
    r"wann|"
    r"quel(?:le)?s?|qui|comment|où|quand|qué|quién|cuál|cómo|dónde|cuándo)\b"
)
# "Which people and which places" asks for one list of entities.
_SECOND_QUESTION_OF_ENTITIES = re.compile(
    rf"(?<!wer )(?<!who )(?<!qui )(?<!quién )(?:{_SECOND_QUESTION.pattern})"
    r"(?! (?:§ner|people|person\w*|places?|locations?|"
    r"organi[sz]a\w*|compan(?:y|ies)|orte?|firmen|unternehmen|lieux?|entreprises?|lugar(?:es)?|empresas?)\b)"
)
_SENTIMENT = re.compile(
    r"sent[ei]?m[ie]{1,2}nt|polarit|stimmung|tonalit|tonalidad|polaridad|valence|valencia|"
    r"gefühlslage",
    re.I,
)
_LIST = re.compile(
    # From the beginning of a word and of a list alone: from each place it takes quadratic time.
    r"\b(?<!\w, )\w++(?:, \w+)+,? (?:or|oder|ou|o|and|und|et|y) \w+|\b\w++/\w++/\w+"
)
_ENTITIES = re.compile(
    r"entit|entid|\bner\b|\bren\b|eigenname|noms? propres?|nombres? propios?|proper (?:name|noun)",
    re.I,
)
_TEXT_NOUN = re.compile(
    r"\b(?:texts?|reviews?|tweets?|posts?|comments?|messages?|sentences?|articles?|documents?|"
    r"headlines?|passages?|paragraphs?|e-?mails?|feedback|stor(?:y|ies)|snippets?|statements?|"
    r"opinions?|sentiment|satz|\w*bewertung|rezension|\w*nachricht|kommentar|artikel|meldung|"
    r"\w*meinung|beitrag|aussage|absatz|textes?|phrases?|avis|commentaires?|extraits?|messages?|"
    r"textos?|frases?|reseñas?|comentarios?|mensajes?|opini[oó]n(?:es)?|noticias?)\b",
    re.I,
)


# "With their types" is a part of the output; "with their dates of birth" is not.
_PROPERTY = re.compile(
    r"\b(?:and|with|plus|und|mit|samt|nebst|et|avec|y|con) (?:each )?(?:its|their|his|her|"
    r"ihre[mnr]?|"
    r"leurs?|sus?) (?!§ner|(?:named )?entit|\w+ (?:types?|labels?|typ)|types?|typ|typen|labels?|"
    r"art|tipos?|categor|kategor|"
    r"klasse|classe|clase|catégor|étiquette|etiqueta)"
)
# A change of the text besides the task, and a step after it.
_EDIT = re.compile(
    r"\b(?:shorten|simplify|polish|proofread|kürze|verkürze|vereinfache|überarbeite|"
    r"raccourci\w*|simplifie[rz]?|acorta\w*|simplifica)\b"
)
_STEP = re.compile(
    r"(?:^|§text )(?:then|afterwards|dann|danach|ensuite|puis|luego|después) "
    r"(?!answer|reply|return|give|output|say|write|respond|state|print|antworte|gib|nenne|réponds|donne|renvoie|responde|da|"
    r"devuelve|§)"
)
_TRANSLATE = r"(?:translat|übersetz|tradu)\w*"
# "Translate only the verbs": a part of the text, not the text.
_PART = re.compile(
    rf"\b{_TRANSLATE} (?:[^\W\d_]+ )?(?:every|each|jede[nrs]?|chaque|cada|une?|un[ao]?) "
    r"(?:second|other|third|zweiten?|dritten?|deuxième|troisième|segund[oa]|tercer[ao]?|sur|"
    r"de cada) |"
    rf"\b{_TRANSLATE} (?:only|just|nur|bloß|lediglich|seulement|uniquement|que|solo|sólo|"
    r"solamente|únicamente) (?:the|die|das|den|der|les?|la|los?|las|el|l) "
    r"(?!following|text|sentence|passage|paragraph|message|folgenden?|satz|absatz|nachricht|"
    r"texte|phrase|passage|suivante?|texto|frase|siguiente|§)"
)
# "Is it difficult to translate this?": about the task. "Is it possible" is a polite request for it.
_ABOUT = re.compile(
    r"\b(?:hard|harder|difficult|easy|easier|worth|schwer|schwierig|leicht|einfach|difficile|"
    rf"facile|difícil|fácil)\b.*\b{_TRANSLATE}|\b{_TRANSLATE}.*\b(?:hard|difficult|easy|schwer|"
    r"schwierig|leicht|einfach|difficile|facile|difícil|fácil)\b"
)
_RELATIONS = re.compile(
    r"\b(?:and|und|et|y) (?:the|their|its|any|die|den|das|ihre[rn]?|les?|la|leurs?|las|los|el|"
    r"sus?) (?:relation|connection|link|role|dependenc|beziehung|verbindung|verknüpf|rolle|lien|"
    r"rôle|relaci|conexi|vínculo|rol\b|roles\b)"
)
_OTHER_TASKS = {
    "translation": re.compile(
        r"§sentiment\b|§topic\b|sent[ei]?m[ie]{1,2}nt|polarit|stimmung|\bentit|\bentid"
    ),
    "sentiment": re.compile(
        r"translat|übersetz|\btradu|summar|zusammenfass|résum|\bresum|§topic\b|\bentit"
    ),
    "topic": re.compile(
        r"translat|übersetz|\btradu|summar|zusammenfass|résum|\bresum|sent[ei]?m[ie]{1,2}nt"
    ),
    "ner": re.compile(
        r"translat|übersetz|\btradu|summar|zusammenfass|résum|\bresum|sent[ei]?m[ie]{1,2}nt"
    ),
}


# What refuses a clause wherever it stands, and what refuses one without a negation.
_ALWAYS = (
    ("other labels", _LONGER_LIST),
    ("several texts or parts", _ENUMERATED),
    ("a scale or a length", _LENGTH),
    ("a request not to do it", _REFUSED_TASK),
    ("another request", _JUDGED),
    ("a change of the text", _EDIT),
    ("a further step", _STEP),
    ("another text", _MADE),
    ("a voice", _VOICE),
    ("an audience", _AUDIENCE),
    ("evidence", _QUOTED),
)
_UNLESS_NEGATED = (("a reason", _REASON), ("another output", _OTHER_FORMAT))


_Rules = Sequence[tuple[str, re.Pattern[str]]]


@cache
def _rules_of(task: str) -> tuple[_Rules, _Rules]:
    """Return the rules for a task's clauses: of those with a negation, and of the others."""
    second = _SECOND_QUESTION_OF_ENTITIES if task == "ner" else _SECOND_QUESTION
    always = [*_ALWAYS, ("a second question", second)]
    if task in _OTHER_TASKS:
        always.append(("a second task", _OTHER_TASKS[task]))
    if task == "ner":
        always += [
            ("more about each entity", _PROPERTY),
            ("more about each entity", _ACCOMPANIED),
            ("relations", _RELATIONS),
            ("a change of the text", _REPLACED),
        ]
    if task == "translation":
        always += [
            ("a part of the text", _PART),
            ("a question about the task", _ABOUT),
            ("a translation that is there", _OWN_TRANSLATION),
        ]
    unless = list(_UNLESS_NEGATED)
    if task != "ner":
        unless.append(("another output", _JSON))
    return always, [*always, *unless]


def clause_obstacle(clauses: Sequence[str], task: str) -> str | None:
    """Return why normalised clauses ask for more or other than a task's output, or None."""
    always, with_negated = _rules_of(task)
    for clause in clauses:
        rules = always if _NEGATED.search(clause) else with_negated
        if _CONDITION.search(clause) and not (task == "ner" and _NO_ENTITIES.search(clause)):
            return f"a condition: {clause!r}"
        for name, pattern in rules:
            if (found := pattern.search(clause)) is not None:
                return f"{name}: {found.group()!r}"
    return "a language that is not offered" if any("§other" in one for one in clauses) else None


def evidence_obstacle(clauses: Sequence[str], instruction: str, spec: TaskSpec) -> str | None:
    """Return what an instruction lacks to be surely one of a task; None where nothing.

    Labels count where they are a list; "positive or negative" is also said of tests and numbers.
    """
    listed = any(f"§{spec.name}" in clause.split() for clause in clauses)
    if isinstance(spec, ClassificationSpec):
        if spec.name == "sentiment" and not listed and _SENTIMENT.search(instruction):
            other = _LIST.search(instruction)
            return f"other labels: {other.group()!r}" if other else None
        if not listed:
            return "it names no labels"
        if spec.name == "sentiment" and _SENTIMENT.search(instruction):
            return None
    if isinstance(spec, ExtractionSpec) and not (listed or _ENTITIES.search(instruction)):
        return "it names no entities"
    return None
