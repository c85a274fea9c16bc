"""Reads an instruction as a request for one task: every word explained, and nothing else asked.

The vocabulary refuses what it does not know. The rules here refuse what is asked with known words
alone: a text of that kind to be written, a part of the text, a reply, a question about the task.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cache, lru_cache

from serving.routing.clauses import without_personas
from serving.routing.closed_vocabulary import (
    CLOSED_TASKS,
    asks,
    context,
    fold,
    unexplained_words,
    vocabulary,
)
from serving.routing.grammar import LANGUAGES

_ONE = r"(?:an?|one|some|another|eine?n?|une?|una?|otr[oa]|autre)"
_MAKE = (
    r"(?:write|give|make|create|produce|compose|draft|tell|show|provide|supply|find|"
    r"get|need|want|(?<!\bi )send|deliver|return|"
    r"schreib\w*|gib|geben|mach\w*|erstell\w*|verfass\w*|zeig\w*|nenn\w*|formulier\w*|"
    r"brauch\w*|liefer\w*|find\w*|"
    r"ecri\w+|donne\w*|fai[st]\w*|montre\w*|redige\w*|trouve\w*|prepare\w*|"
    r"escrib\w+|da|dame|de|deme|haz\w*|muestra\w*|redact\w+|prepara\w*|encuentra\w*|busca\w*)"
)
_WORDS = r"(?:[^\W\d_]+ )"


@cache
def _rules() -> Mapping[str, tuple[tuple[str, re.Pattern[str]], ...]]:
    """Return what refuses a clause of a request for a task, and why. Reads files once, blocking."""
    names = {word for language in LANGUAGES for word in vocabulary(language).text}
    text = "|".join(sorted(names - context("other_texts"), key=len, reverse=True))
    common = tuple(
    (name, re.compile(pattern))
    for name, pattern in (
        # "Write a review", "gib mir einen Satz": what has an indefinite article is made.
        ("a text to be made",
            rf"\b{_MAKE} (?:me |us |mir |uns |moi |nous |m |i )?(?:[^\W\d_]+ ){{0,2}}?{_ONE} "
            r"(?:§sentiment |"
            rf"§topic |§lang |{_WORDS})?(?:{text})\b(?! label)"),
        ("a text to be made",
            r"\b(?:answer|reply|response|antwort|reponse|respuesta|headline|title|titre|"
            r"titel|titulo|titular|uberschrift|schlagzeile|summary) (?:to|for|an|auf|zu|"
            r"fur|a|pour|para) (?:the|this|that|my|der|die|das|den|diese\w*|dem|meine\w*|"
            r"folgende\w*|le|la|les|l|ce|cet|cette|mon|ma|el|los|las|este|esta|mi)\b(?! §text)"),
        ("a title",
            r"\b(?:give|write|gib|schreib\w*|donne\w*|ecri\w+|da\w*|escrib\w+|pon\w*|find\w*|"
            r"trouve\w*) (?:[^\W\d_]+ ){0,4}?(?:a|an|einen?|eine|un|une|una) "
            r"(?:[^\W\d_]+ )?(?:title|"
            r"headline|titel|uberschrift|schlagzeile|titre|titular|titulo)\b"),
        ("a choice among texts",
            rf"\b(?:which|what|welche[rsnm]?|que(?:l|ls|lle|lles)|que|cual(?:es)?) (?:§sentiment |"
            rf"§topic )?(?:{text})s?\b(?! (?:type|label|category))"),
        ("a choice among texts",
            r"\b(?:which|what|who|wer|qui|quien) (?:newspaper|paper|zeitung|journal|periodico|"
            r"made|might|could have)\b|^(?:who|wer|qui|quien) (?:wrote|has written|schrieb|"
            r"hat|a ecrit|escribio)\b|\bwelche zeitung\b|\bquel journal\b|\bque periodico\b"),
        ("how much",
            r"\b(?:how|wie|combien|cuan|cuanto|tan|si) (?:§sentiment|many|much|viele?|good|"
            r"gut|well|bad)\b|\ba quel point\b|\bhasta que punto\b"),
        ("a word by word output",
            r"\b(?:words?|line|wort|zeile|mot|ligne|palabra|linea) (?:by|for|fur|a|por) (?:words?|"
            r"line|wort|zeile|mot|ligne|palabra|linea)\b"),
        ("words of the text",
            r"\b(?:the|which|what|some|any|all|name) words\b|\bles mots\b|\blas palabras\b|"
            r"\bdie worte\b"),
        ("not only",
            r"\b(?:not (?:only|just|simply)|nicht (?:nur|bloss)|(?:non|pas) seulement|no (?:solo|"
            r"solamente|simplemente))\b(?! the (?:label|word|category))"),
        ("in a text",
            rf"\b(?:in|auf|en|with|using|mit|avec|con) (?:at least |about )?{_ONE} "
            rf"(?:{_WORDS})?(?:sentence|"
            rf"paragraph|satz|absatz|zeile|phrase|paragraphe|ligne|frase|parrafo|linea|oracion|"
            rf"email|mail|letter|tweet|post|message|report)\b(?! (?:[^\W\d_]+ )?(?:from|"
            rf"by|that|which|about|of|des|der|von|de|du|que|qui)\b)"),
        ("each part",
            r"\b(?:each|every|all|jede[rsnm]?|chaque|cada|por|pro|per|pour chaque|toutes les|"
            r"todas las) (?:sentence|paragraph|line|passage|section|satz\w*|absatz|zeile|"
            r"phrases?|paragraphe|ligne|frases?|parrafo|linea|oracion|aspect|part)\b"),
        ("a person",
            r"\btell me about\b|\b(?:imagine|stell dir vor|imagina\w*) (?:you are|that you|"
            r"du|tu|que tu|que eres|que) (?:the|der|die|le|la|el)\b"),
        ("a second request",
            r"(?<!who )(?<!wer )(?<!qui )(?<!quien )\b(?:and|und|et|y|plus) (?:what|who|"
            r"whom|how|why|when|where|was|wer|wie|warum|wo|wann|que|qui|quoi|comment|ou|"
            r"quand|qu|quien|como|cuando|cual|§(?:topic|sentiment|ner)$|quel\w*|de quel|"
            r"de que|um welche[sn]?)\b"),
        ("a second request",
            r"^(?:and|und|et|y) (?:§|what|who|how|why|which|name|give|tell|was|wer|wie|"
            r"que|qui|quoi|comment|por que|quel)"),
        ("a second request",
            r"\b(?:and|und|et|y|e|plus|then|dann|puis|luego|also) (?:(?:then|also|auch|dann|puis|"
            r"ensuite|luego|tambien|please|bitte) )?(?:write|reply|respond|answer|schreib\w*|"
            r"antwort\w*|ecri\w+|repon\w+|escrib\w+|contest\w+|respond\w+) (?:back|to|zuruck|"
            r"an|auf|au|aux|a)\b"),
        ("a second request",
            r"^(?:plus|sowie|ausserdem|zusatzlich|ademas|tambien|en plus|de plus|also|additionally|"
            r"in addition|on top) (?!.*\b(?:no|not|nothing|don t|without|kein\w*|nicht\w*|ohne|"
            r"pas|rien|aucune?|sans|ni|nada|sin|ningun\w*|only|just|nur|uniquement|seulement|"
            r"solo|please|bitte)\b)"),
        ("two outputs",
            r"(?<!von )(?<!of )\b(?:both|beide[sn]?|les deux|tous les deux|ambos|ambas|los dos|"
            r"las dos)(?: :)?"
            r"(?: §text)?$"),
        ("a manner",
            r"\b(?:con|mit|avec|with) (?:(?:mucho|viel|beaucoup d|much|some|etwas|un poco de|"
            r"un peu d) )?(?:humor|humour|wit|witz|ironi\w+|sarcasm\w*|sarkasmus|gracia)\b"),
        # "Which topic should I choose?" asks for advice; "where should I file this" for a label.
        ("advice",
            r"\b(?:soll(?:te)? (?:ich|wir) (?:[^\W\d_]+ )?(?:nehmen|wahlen|machen|schreiben|"
            r"studieren|lesen|lernen)|(?:should|shall|do) (?:i|we) (?:choose|pick|take|write|study|"
            r"do|make|use|start|go|prefer)(?! (?:for )?(?:this|it|here|§text|the following))|"
            r"(?:dois je|devrais je|je) (?:choisi\w*|prendre|prends|ecrire|etudier)|"
            r"(?:debo|deberia) (?:elegir|escoger|escribir|estudiar|hacer)|(?:elijo|escojo|hago))\b"
            r"|\b(?:nehme|wahle|mache) ich\b"),
        ("what else", r"\b(?:what|was|que|qu)\b.* (?:else|sonst|instead|d autre)\b"),
        ("what would have been",
            r"\b(?:hattest du|hatten sie|hattet ihr|aurais tu|auriez vous|habrias|hubieras|"
            r"would (?:you|i|they) have|could (?:you|i|they) have)\b(?!.*\b(?:amabilite|"
            r"gentillesse|bonte|obligeance|zeit|time|lust|moglichkeit))"),
        ("a place in the text",
            r"\b(?:stellen?|passages?|pasajes?|parts?|teile?) (?:im|in|of|du|del|dans|des) (?:the |"
            r"this |le |el )?(?:text|texte|texto)\b"),
        ("other words",
            r"\bin (?:other|your own) words\b|\bin anderen worten\b|\ben otras palabras\b|"
            r"\ben d autres (?:mots|termes)\b"),
    )
)  # fmt: skip
    own = {
    "ner": tuple(
        (name, re.compile(pattern))
        for name, pattern in (
            # "Zählt „Samstag“ als Entität?"
            ("yes or no", r"^[^\W\d_]+ §text (?:als|as|comme|como|a|an|un|une|una|eine?)\b"),
            ("yes or no",
                r"^(?!do (?:ner|an?|the|named|entity)\b)(?:is|are|does|do|did|gibt es|enthalt|"
                r"kommt|kommen|sind|y a t il|est ce qu|contient|hay|contiene|aparece\w*|"
                r"menciona) (?!you\b|you see)"),
            ("an order",
                r"\b(?:sort|order|group|rank|geordnet|sortiert|gruppiert|classe[er]?s?|"
                r"classees|tri\w+|grupp\w+|ordena\w*|agrupa\w*|clasifica\w*) "
                r"(?:[^\W\d_]+ ){0,3}?(?:by|"
                r"nach|par|selon|por|segun) (?!(?:their |its |ihrem |leur |su )?(?:types?|"
                r"typ|tipo|category|kategorie|categorie|categoria|§ner))"),
            ("about the task",
                r"\b(?:what|was|qu|que|how) (?:is|does|ist|est|es|are)? ?(?:ce que |una |"
                r"an? |die |la |l )*(?:named entity|ner\b|entity recognition|entite nommee|"
                r"entidad nombrada|entitatenerkennung)"),
            ("more of each",
                r"\b(?:description|descripcion|role|rolle|rol|country|say what|what each|"
                r"who is)\b"),
        )
    ),
    "translation": tuple(
        (name, re.compile(pattern))
        for name, pattern in (
            ("a reply",
                r"\b(?:answer|beantwort\w*|antwort\w*|repon\w+|contest\w+|respond\w*) (?:it|sie|"
                r"y|la|(?:to )?(?:the|die|diese|this|a la|la|cette|esta) (?:question|frage|"
                r"pregunta))\b"),
            ("a reply",
                r"\b(?:answer|reply|respond|response|antwort\w*|repon\w+|respond\w*|respuesta|"
                r"contest\w+|react)\b(?! (?:only|with|just|should|must|in the form|nur|"
                r"mit|ausschliesslich|bitte nur|uniquement|seulement|avec|par|solo|unicamente|"
                r"con|exclusivamente|nothing|directly))(?!:)"),
            ("a second language",
                r"§lang (?:and|und|et|y|or|oder|ou|o|then|and then)(?: (?:also|back|into|"
                r"to|in|ins|ins|nach|en|al|vers|zuruck))* §lang"),
            ("a question about it",
                r"\b(?:which|what|welche[rnms]?|quelles?|que|en que) (?:languages?|sprachen?|"
                r"langues?|idiomas?|lenguas?)\b|\bhow (?:good|well|hard|accurate)\b"),
            ("an own translation",
                r"\b(?:correct|check|revisa|prufe|pruf|verifie\w*|corrige|korrigiere?|bewerte|"
                r"rate|review|revise|improve|this|diese|cette|esta|my|meine|ma|mi|the) (?:§lang |"
                r"[^\W\d_]+ )?(?:translation|ubersetzung|traduction|traduccion)\b(?=.*\b(?:correct|"
                r"right|bonne?|gut|richtig|buena|correcta|juste|good|ok|okay|§lang|mistakes?|"
                r"fehler)\b)|^(?:correct|check|revisa|prufe|pruf|verifie\w*|corrige)\b"),
            ("a yes or no",
                r"^(?:is|was|are|ist|sind|est|es) (?:the|this|that|it|das|dies\w*|der|die|"
                r"le|la|ce|cet|cette|el|esta|este|esto|§text)\b"
                r"(?! (?:possible|ok))(?!.*\b(?:translat|"
                r"ubersetz|tradu))"),
            ("a register", r"\b(?:tratando|tutoy\w+|vouvoy\w+|duz\w+|siez\w+)\b"),
            ("a part",
                r"\b(?:only|just|nur|bloss|seulement|uniquement|solo|solamente|unicamente|"
                r"que) (?:the|die|das|den|le|la|les|el|los|las) (?:title|headline|uberschrift|"
                r"titel|titre|titulo|titular|part|passage|sentence|line|body|quote)\b"),
        )
    ),
    "topic": (
        ("several labels", re.compile(
            r"\b(?:all|any|every|both|several|multiple|two|top|alle|beide|mehrere|zwei|"
            r"toutes|tous|plusieurs|deux|todas|todos|varias|varios|dos) "
            r"(?:[^\W\d_]+ ){0,3}?(?:§topic|"
            r"labels?|categories|classes|topics|kategorien|labels|themen|etiquettes|categories|"
            r"themes|sujets|etiquetas|categorias|temas)\b|\bapply\b|\b(?:two|three|zwei|"
            r"drei|deux|trois|dos|tres) (?:best|beste\w*|meilleur\w*|mejores)\b")),
    ),
    "sentiment": (
        ("several labels", re.compile(
            r"\b(?:two|top|mehrere|zwei|plusieurs|deux|varias|dos|all|both) "
            r"(?:best |beste\w* )?(?:§sentiment|"
            r"labels?|moods|feelings|emotions)\b")),
        ("the reader's own feeling", re.compile(
            r"\b(?:(?:would|do|did|might) you (?:[^\W\d_]+ )?feel|fuhlst du|fuhlen sie sich|"
            r"du dich fuhlen|te sens|te sentirais|tu ressens|te sientes|te sentirias|sientes)\b")),
        ("a number", re.compile(
            r"\bscores?\b(?! (?:the|this|it|that|following|each)\b)|\b(?:sentiment|polarity|"
            r"a|the) (?:rating|grade|index)\b(?! (?:word|label)\b)(?!.*§)|"
            r"\b(?:note|puntuacion|wertung)\b.*\b(?:de|von|sur) ")),
        ("about the task", re.compile(
            r"\b(?:how do|que es|what is|was ist|qu est ce que) (?:an? |el |la |l )?(?:sentiment|"
            r"analisis|analyse|classifier)\w*(?! (?:of|in|here|expressed|conveyed|behind|"
            r"von|in|des|der|de|du|this|the|is|§|:|label))")),),
}  # fmt: skip

    return {task: (*common, *own[task]) for task in CLOSED_TASKS}


def load_rules() -> None:
    """Read the vocabularies and compile the rules, once. Blocking, so not in a request."""
    _rules()


_SENTIMENT_NOUN = re.compile(
    r"sent[ei]?m[ie]{1,2}nt|polarit|stimmung|tonalit|tonalidad|polaridad|valence|valencia|"
    r"gefuhlslage"
)
_ENTITY_NOUN = re.compile(
    r"\bentit|\bentid|\bner\b|eigenname|noms? propres?|nombres? propios?|proper (?:name|noun)|named"
)
# What makes a clause that names a language ask for a translation.
_CUE = re.compile(
    r"translat|transl|tradu|trasl|ubersetz|uberstez|uebersetz|dolmetsch|ubertr|interpret|"
    r"render|localis|localiz|carry|version|fassung|convert|konvert|transpos|"
    r"\b(?:say|says|said|mean|means|read|heisst|hiesse|lautet|bedeutet|sagt|sagen|dit|"
    r"dirait|dire|dice|decir|diria|dicen|"
    r"significa|signifie|devuelv\w+|renvoi\w+|renvoy\w+|return|output|print|ausgeb\w+|"
    r"steht|pone|put|turn|bring|get|give|need|want|have|write|rewrite|make|express|"
    r"like|switch|change|port|supply|deliver|"
    r"bring\w*|setz\w*|formulier\w*|schreib\w*|gib|brauch\w*|mocht\w*|hatt\w*|mach\w*|"
    r"met[st]\w*|passe\w*|faudrait|faut|voudrais|ecri\w+|donne\w*|"
    r"rends|tourne\w*|pas[ae]\w*|pon\w*|falta|quiero|quisiera|necesit\w+|escrib\w+|"
    r"da|dame|expresa|vierte|vuelca|"
    r"target|zielsprache|cible|destino|sounds?|look|klingt|seria|serait|ware|would be|"
    r"equivalent|send|schicken|envoyer|enviar|dar(?:me|nos|lo|la)?|"
    r"dir(?:ias|iamos|ian|emos|iez|ions|aient)|formul\w+)\b|"
    r"\b(?:what|which) (?:is|s) the §lang (?:for|of)\b"
)
_BARE = re.compile(
        r"(?:(?:please|pls|bitte|now|und|and|jetzt|same|everything|this|it|das|ganze|alles|"
        r"lo|mismo|meme|chose|dasselbe|gleiche|thing|"
        r"now|once|again|here|for|me|s|il|te|vous|plait|stp|svp|por|favor|porfa|thanks|"
        r"thank|you|danke|merci|gracias|kurz|mal|nochmal|the|das|ganze|what|is|s|was|ist|"
        r"que|es|"
        r"a|an|in|into|to|ins|im|auf|nach|en|vers|l|au|al|from|vom|von|aus|dem|du|de|del|"
        r"the|from|der|die|and|"
        r"text|translation|language|sprache|langue|idioma|source|quelle|ausgangssprache|"
        r"quellsprache|origen|origine|el|la|le|quick|quickly|hi|hello|hey|hallo|hola|bonjour|"
        r"§text|:) ?)*"
)  # fmt: skip


# "You sort news into these classes: …" and then "Reply with the class".
_OUTPUT = re.compile(
    r"\b(?:class|category|label|topic|section|desk|answer|klasse|kategorie|etikett|"
    r"rubrik|ressort|label|"
    r"classe|categorie|etiquette|rubrique|clase|categoria|etiqueta|seccion|tipo)\b"
)


# The readings of a message share most of their clauses.
@lru_cache(maxsize=1024)
def _asks(clause: str, task: str) -> bool:
    """Return whether a clause names what the task gives."""
    words = clause.split()
    if task == "sentiment":
        return "§sentiment" in words or _SENTIMENT_NOUN.search(clause) is not None
    if task == "topic":
        return "§topic" in words
    if task == "ner":
        return "§ner" in words or _ENTITY_NOUN.search(clause) is not None
    if "§lang" not in words:
        return False
    bare = clause.replace("§lang", "").strip()
    return _CUE.search(clause) is not None or _BARE.fullmatch(" ".join(bare.split())) is not None


_QUESTION = re.compile(
    r"(?:and |und |et |y |but |¿)?(?:what|which|who|whom|how|why|where|when|was|welche[rsnm]?|"
    r"wer|wem|wen|wie|warum|wieso|wo|wann|"
    r"qu|que|quoi|qui|quel(?:le)?s?|comment|pourquoi|ou|quand|quien|cual(?:es)?|como|"
    r"por que|donde|cuando|de (?:quoi|que|quien)|a (?:quoi|que|quien|qui))\b"
)
# What a question of each task is about, besides its labels.
_ABOUT: Mapping[str, re.Pattern[str]] = {
    "sentiment": re.compile(
            r"§|sentim|sent[ei]ment|polarit|polarid|stimmung|tonal|\bton[oe]?\b|\bmood|"
            r"attitude|haltung|einstellung|actitud|humeur|animo|feel|feeling|"
            r"come across|comes across|sound|read|wirkt|klingt|steht|gefuhl|opinion|meinung|"
            r"label|kategorie|category|categoria|etiquette|etiqueta|etikett|class|"
            r"\bfits?\b|\bapplies\b|passt|zutrifft|trifft|convient|correspond|encaja|here$|"
            r"hier$|ici$|(?:is|ist) (?:it|this|es|das)$|judge|classify|rate|klassif|einordnen|"
            r"einstufen|"
        r"siente|sent\b|percoit|pense|opina|vibe|stance|emotion|verdict|urteil"
    ),
    "topic": re.compile(
            r"§|topic|subject|theme|thema|themen|about|section|desk|category|categor|kategor|"
            r"rubri|ressort|sparte|worum|geht|agit|parle|traite|trata|habla|versa|va\b|"
            r"gehort|belong|fits?\b|heading|uberschrift|titre|titulo|seite|page|bereich|"
            r"domain|domaine|area|ambito|seccion|apartado|tema|sujet|class|klasse|label|"
            r"etiquette|etiqueta|etikett|channel|bucket|case|shelf|schublade|range|passt|"
            r"convient|correspond|encaja|(?:is|ist) (?:it|this|es|das)$|file|put|place|"
            r"print|einordnen|"
        r"einsortieren|zuordnen|classer|clasific|coloca|pon|iria|fach|go|land|gets"
    ),
    "ner": re.compile(
        r"§|entit|entid|eigenname|propio|propre|proper|\bner\b|\bnam|nombre|\bnoms?\b|genannt|"
        r"cite|citan|mention|mencion|erwahnt"),
    "translation": re.compile(r"§lang|translat|ubersetz|tradu"),
}  # fmt: skip


# "It is one of these - which?" asks for what was said before.
_WHICH = frozenset(
    ("which", "which one", "which of them", "welche", "welches", "welcher", "laquelle", "lequel",
     "cual", "cual de ellas", "cual de ellos")
)  # fmt: skip


def _about_task(clause: str, task: str) -> bool:
    return _ABOUT[task].search(clause) is not None


_NOTHING_ASKED = "nothing is asked for"
_DENIAL = re.compile(
    r"\b(?:not|don t|doesn t|isn t|never|nicht|kein(?:e|en)?|pas|no) (?=(?P<rest>.*))"
)
# What may be denied: more output than the answer, and knowledge of a language.
_DENIABLE = re.compile(
    r"(?:[^\W\d_]+ ){0,4}?(?:"
    r"add|adding|write|output|print|include|give|return|say|provide|use|explain|comment|"
    r"elaborate|justify|change|omit|"
    r"anything|else|other|more|further|extra|additional|explanations?|comments?|reasons?|"
    r"reasoning|punctuation|any (?:text|words?)|a word|"
    r"sure|speak|understand|read|mind|possible|§lang|good|great|best|bother|worry|chat|"
    r"fluff|preamble|prose|notes?|quotes?|markdown|intro\w*|"
    r"hinzu\w*|dazu\w*|schreib\w*|erklar\w*|kommentar\w*|kommentier\w*|anmerkung\w*|"
    r"begrund\w*|weiter\w*|ander\w*|zusatz\w*|worte?|satz\w*|mehr|"
    r"sprech\w*|sprich\w*|versteh\w*|lesen|kann|nichts|sonst|einleitung|erlauter\w*|"
    r"hinweis\w*|bemerkung\w*|andern|"
    r"ajout\w*|ecri\w*|expli\w*|comment\w*|justifi\w*|phrase\w*|mots?|autre\w*|donne\w*|"
    r"renvo\w*|rien|plus|comprend\w*|compren\w*|parle\w*|lire|sais|arrive|change\w*|"
    r"anad\w*|agreg\w*|escrib\w*|coment\w*|pongas|des|incluyas|digas|entiendo|entiende|"
    r"hablo|habla|se|otr[oa]s?|nada|mas|palabras?|hace falta|necesit\w*|cambi\w*|"
    r"nor|ni|neither|§sentiment)\b"
)


_RELATIVE = re.compile(r"\b(?:that|which|was|das|die|qui|que) (?:(?:is|are|s|es|esta) )?$")


def _denial(clause: str) -> str | None:
    """Return a denied part of the task: "which of these does not fit"; None where there is none."""
    more_denied = False
    for found in _DENIAL.finditer(clause):
        if more_denied and _RELATIVE.search(clause[: found.start()]):
            # "Do not add anything that isn't in the text": which output is too much.
            continue
        if _DENIABLE.match(found["rest"]) is not None:
            more_denied = True
        elif found["rest"]:
            return f"{found.group()}{found['rest']}"[:40]
    return None


# "Sentiment and emotion", "entities and all figures": what the task gives, and something else.
_COORDINATED = re.compile(
    r"\b(?:sent[ei]?m[ie]{1,2}nt\w*|polarit\w*|stimmung|tonalit\w*|tonalidad|polaridad|topic|"
    r"thema|tema|theme|sujet|category|kategorie|categorie|categoria|rubrik|entit\w*|entidad\w*|"
    r"eigennamen|§(?:ner|lang)|translation|ubersetzung|traduction|traduccion) "
    r"(?:and|und|et|y|e|plus) (?P<all>(?:the|die|das|der|den|la|le|les|l|el|los|las|all|alle|"
    r"toutes|tous|todas|todos|its|their|ihre|leurs?|sus?) )*(?P<word>§?\w+)"
)
_ATTRIBUTE = re.compile(r"(?:types?|typ(?:en)?|tipos?|categor\w+|kategori\w+|class|klasse|label)s?")


def _second_output(clause: str) -> str | None:
    """Return what is asked for besides the task's output; None where nothing is.

    A verb of a request may follow ("the sentiment and return one word"), or a denial.
    """
    for found in _COORDINATED.finditer(clause):
        word = found["word"]
        if word[0] == "§" or _ATTRIBUTE.fullmatch(word):
            continue
        if found["all"] or not (asks(word) or word in context("negations") | _ADVERBS):
            return found.group()
    return None


_ADVERBS = frozenset(
    ("only", "just", "then", "please", "nur", "dann", "bitte", "sonst", "seulement", "puis",
     "uniquement", "solo", "luego", "solamente", "hand", "fuhre", "nada", "rien")
)  # fmt: skip


def closed_obstacle(clauses: Sequence[str], task: str) -> str | None:
    """Return why normalised clauses are no request for a task alone; None where they are one.

    Every word has a role, a clause that is no persona asks for the task, and no rule refuses.
    """
    return _obstacle(clauses, _orders(clauses), task)


def _orders(clauses: Sequence[str]) -> list[str]:
    return [fold(clause) for clause in without_personas(clauses)]


def _obstacle(clauses: Sequence[str], orders: Sequence[str], task: str) -> str | None:
    if not any(_asks(clause, task) for clause in orders) and not (
        any(_asks(fold(clause), task) for clause in clauses)
        and any(_OUTPUT.search(clause) for clause in orders)
    ):
        return _NOTHING_ASKED
    return unexplained_part(clauses, task)


def unexplained_part(clauses: Sequence[str], task: str) -> str | None:
    """Return a word without a role, or what a rule refuses; None where all is of the task."""
    if left := unexplained_words(clauses, task):
        return f"unexplained words: {left[:3]}"
    for clause in map(fold, clauses):
        if (denied := _denial(clause)) is not None:
            return f"a denial: {denied!r}"
        if _QUESTION.match(clause) and clause not in _WHICH and not _about_task(clause, task):
            return f"another question: {clause!r}"
        if (second := _second_output(clause)) is not None:
            return f"two outputs: {second!r}"
        for name, pattern in _rules()[task]:
            if (found := pattern.search(clause)) is not None:
                return f"{name}: {found.group()!r}"
    return None


def closed_task(clauses: Sequence[str], offered: Collection[str]) -> str:
    """Return the only task that explains normalised clauses, or a reason that begins with `no`."""
    because = "no task"
    found = []
    orders = _orders(clauses)
    for task in CLOSED_TASKS:
        if task not in offered:
            continue
        obstacle = _obstacle(clauses, orders, task)
        if obstacle is None:
            found.append(task)
        else:
            because = because if obstacle == _NOTHING_ASKED else f"no {task}: {obstacle}"
    if len(found) == 1:
        return found[0]
    return because if not found else f"no single task: {found}"
