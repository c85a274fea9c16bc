"""Prepositions, conjunctions, particles and pronouns must be equal: each is refused unless listed.

Every function word of a language counts, but for the words listed as free (another guard compares
them, or they say nothing) and as optional (one text may lack them). So a word that no list knows
refuses. Two different words are taken for one only where a line of `_SAME` or of `_IN_CONTEXT` says
so. Pure.
"""

import re
from collections import Counter
from itertools import pairwise

from serving.cache.guards.function_words import FUNCTION_WORDS, Language
from serving.cache.guards.question import kind_of
from serving.cache.guards.words import Words

# Function words that the lists of languages leave out, since some are nouns or adverbs as well.
_MORE: dict[Language, str] = {
    "en": """across along alongside around behind beside besides beneath below above beyond near opposite
        past till toward towards near throughout upon inside outside before after amid despite except versus vs
        once whereas whether lest though onto off away enough well little quite rather almost nearly fewer
        exactly precisely approximately roughly amongst whilst plus minus unlike regardless instead together
        apart aside ahead forward backward soon later earlier afterwards meanwhile hardly twice half
        he's she's aboard atop round astride concerning considering regarding following including excluding pending
        provided providing supposing assuming otherwise however therefore thus hence instead soon often
        sometimes usually rarely seldom mostly partly himself herself itself ourselves themselves yourselves oneself hers ours theirs they'd""",
    "de": """mit bis ab pro per via je desto mittels anhand binnen nahe unweit abseits mitten inmitten rund quer
        soweit insofern wenngleich obschon entweder sowie bzw jedoch doch trotzdem deshalb deswegen daher
        äußerst besonders höchst oft selten manchmal entlang trotz statt anstatt innerhalb außerhalb oberhalb unterhalb gegenüber samt nebst
        laut gemäß dank jenseits obwohl obgleich bevor ehe nachdem sobald solange falls sofern indem sodass
        während wohin woher wohinter wenig wenige wenigen weniger fast beinahe kaum genug genauso ebenso
        sogar erst bereits wieder immer vorher nachher danach davor dabei dafür dagegen darauf darin darum
        darüber darunter dadurch hin her heraus hinaus herein hinein hinauf herunter hinunter zurück
        würde würden wäre wären hätte hätten könnten ins ans aufs fürs durchs ums übers unters vors hinters
        hinterm überm unterm vorm ihrem ihren ihres ihrer seines unserer unserem unseres
        jemandem euer eure euren eurem sehr allein zusammen ziemlich ganz genau mich""",
    "fr": """via moyennant concernant suivant sitôt pourvu sinon plutôt voilà comme parfois rarement après avant derrière devant dès lors hors parmi malgré envers selon outre sauf durant voici
        jusqu' jusque lorsque lorsqu' puisque puisqu' quoique tandis afin trop assez peu autant tant tellement
        encore déjà toujours souvent presque environ ainsi aussitôt bientôt près loin autour dedans dehors
        dessus dessous ensemble seul seulement il elle ils elles celui celle ceux celles eux lui leur leurs
        se s' soi dont laquelle lequel auquel serait seraient aurait auraient voudrait voudrais iraient irait
        tard tôt ensuite enfin avant-hier vis-à-vis""",
    "es": """vía via siquiera conforme puesto nunca jamás menudo veces apenas antes después luego durante mediante excepto salvo encima debajo detrás delante dentro fuera
        cerca lejos junto alrededor frente arriba abajo adentro afuera aunque mientras apenas tanto tanta
        tantos tantas poca pocos pocas demasiado demasiada demasiados demasiadas bastante bastantes casi aún
        todavía aun siempre solo sólo además incluso también quizás sería serían habría habrían podrían
        adonde doquier cuyo cuya así tan junto juntos conmigo contigo consigo sí acaso u vuestra
        pronto tarde aproximadamente exactamente mucha muchos muchas""",
}  # fmt: skip

# Words of one meaning in every question, one set in each line; the first stands for all.
_SAME: dict[Language, str] = {
    "en": """
until till
toward towards
although though
on upon
while whilst
among amongst
much many
besides also
almost nearly
approximately roughly
exactly precisely
versus vs and
her hers
them they'd
""",
    "de": """
viel viele vielen vieles vieler vielem
wenig wenige wenigen weniger
schon bereits
fast beinahe
obwohl obgleich
bevor ehe
statt anstatt
genauso ebenso
in im ins
an am ans
zu zum zur
von vom
bei beim
auf aufs
für fürs
durch durchs
um ums
über übers überm
unter unters unterm
vor vors vorm
hinter hinters hinterm
""",
    "fr": """
de d' du des
à au aux
jusque jusqu'
quand lorsque lorsqu'
puisque puisqu' parce car
quelque quelques
se s'
aussi autant
""",
    "es": """
de del
a al
y e
o u
solo sólo
aún todavía aun
mucho mucha muchos muchas
poco poca pocos pocas
tanto tanta tantos tantas tan
demasiado demasiada demasiados demasiadas
bastante bastantes
porque pues
""",
}

# Compared by other guards, or without meaning of their own: auxiliaries, articles, question words,
# whoever is asked or asks, negations, quantities that `quantifiers` compares.
_FREE: dict[Language, str] = {
    "en": """
a an the i you we my your yours mine me our ours it one this that these those who whom whose what which where why how
is are was were be been being am do does did doing done have has had having can could will would shall
should may might must ought not no nor neither never all any some each every both either more most less fewer
least another other such own same yes there please tell get got let's ever only exactly precisely
""",
    "de": """
der die das den dem des ein eine einen einem einer eines ich du es wir man dich dir mir uns euch mein
meine meinen meinem meiner meines dein deine deinen deinem deiner unser unsere unseren sein wer wen wem
wessen was welche welcher welches welchen welchem wann wo warum wieso weshalb wie ist sind war waren bin
bist sei wird werden wurde wurden worden werde habe hat haben hatte hatten kann kannst können könnte
könnten muss müssen musste soll sollte sollen darf dürfen will wollen möchte mag dass ob nicht kein keine
keinen keinem keiner ja nein mal bitte alle jeder jede jedes einige mehr meisten etwas gibt geben bedeutet
heißt eigentlich denn nur kaum genau ungefähr etwa
""",
    "fr": """
le la les l' un une je j' tu on nous vous me m' te t' moi mon ma mes ton ta tes son sa ses notre nos
votre vos ce c' cet cette ces ça cela qui que qu' quoi quel quelle quels quelles où pourquoi comment
combien est sont était étaient fut être été suis es sommes êtes sera seront ai as a ont avait avoir peut
peux pouvez peuvent pourrait doit dois doivent faut devrait devrais ne n' pas non oui y tout tous toute
toutes chaque quelques plus moins même là fait font faire donc seul seulement toujours puis exactement
""",
    "es": """
el la los las lo un una unos unas yo tú nosotros ustedes vosotros te se le les mi mis tu tus su sus nuestro
nuestra este esta estos estas ese esa eso esto aquel quién quien quiénes qué que cuál cuáles cuándo dónde
adónde cómo cuánto cuánta cuántos cuántas es son era eran fue fueron ser sido soy está están estaba estar
ha han he había haber hay puede puedo pueden podría debe debo deben debería hace hacer no ni nada todo
todos toda todas cada algunos algunas más menos mismo entonces siempre solo exactamente
""",
}

# One text may lack them: of is said by a noun before a noun, too. Another of them in its place is
# refused.
_OPTIONAL: dict[Language, str] = {
    "en": "of in on at to for by about so then",
    "de": "von in an auf bei für um zu da dann so dort ganz",
    "fr": "de à en dans sur pour il elle ils elles ainsi",
    "es": "de en a para",
}

# Two optional words that say the same beside one of the words behind them, as stems or whole.
_IN_CONTEXT: dict[Language, tuple[tuple[str, str, str], ...]] = {
    "en": (
        (
            "on",
            "about",
            "story stories book books article articles course film documentary essay opinion views",
        ),
        ("of", "for", "synonym word term symbol abbreviation recipe"),
        ("of", "about", "importance important think thinks thought opinion"),
        ("in", "of", "planets population people languages"),
        (
            "in",
            "on",
            "windows linux mac macos ubuntu android ios iphone chromebook quora facebook instagram "
            "twitter youtube reddit whatsapp snapchat tiktok linkedin",
        ),
        ("to", "for", "way ways method methods tips steps"),
    ),
    "de": (("auf", "unter", "windows linux mac macos ubuntu android"),),
    "fr": (("sur", "sous", "windows linux mac macos ubuntu debian android"),),
    "es": (("en", "de", "población idiomas"),),
}

# Phrases that one word stands for, and phrases that only ask politely.
_PHRASES: dict[Language, tuple[tuple[str, str], ...]] = {
    "en": (
        (r"(?:hi|hello|hey|thanks|thank you|question|please|kindly|just|in advance)", ""),
        (r"(?:can|could|would|will) (?:you|someone|anyone|somebody)(?: please)?(?= (?:tell|explain|give|show|recommend|"
         r"suggest|describe|list|help|clarify|name|provide|share) )", ""),
        (r"(?:tell|explain|teach|show|give)(?: to)? (?:me|us)(?: about)?", ""),
        (r"help me (?:to )?", ""),
        (r"(?:know|check|find out|see|sure|tell) (?:if|whether|that)", "know"),
        (r"(?:i (?:want|need|would like) to|do you|does anyone) (?:know|learn|understand)(?: about)?"
         r"(?= (?:how|what|who|where|when|why) )", ""),
        (r"(?<= why )(.*) so much(?= $)", r"\1"),
        (r"how (?:much|many|long|often|far|old|big|large|tall|high|deep|wide|heavy|fast|hot|frequently)", "how"),
        (r"(?:a lot of|lots of|a great deal of|plenty of)", "much"),
        (r"a few", "a-few"), (r"a little", "a-little"), (r"(?:in order|so as) to", "to"),
        (r"(?:because of|due to|owing to)", "because"), (r"next to", "beside"), (r"most of", "most-of"), (r"in front of", "in-front-of"),
        (r"with no", "without"), (r"as well as", "and"), (r"or not", ""), (r"at all", ""), (r"find out", "find"),
        (r"stands? for", "mean"), (r"((?:differen\w+|distinction|compare|comparison|distance)(?: \w+){0,3}?) between", r"\1"),
        (r"if (?:any|ever|yes|so|not)", ""), (r"(?:different|various) from", "different"),
    ),
    "de": (
        (r"(?:hallo|danke|bitte|vielen dank)", ""),
        (r"(?:kannst|können|könntest|könnten) du(?: mir| uns)?(?=.* (?:erklär|sag|nenn|zeig|beschreib))", ""),
        (r"(?:erkläre?|sage?|nenne?|zeige?|beschreibe?|gib)(?: sie)? (?:mir|uns)", ""),
        (r"wie ?(?:viele?|oft|lange?|alt|weit|groß|hoch|schwer|schnell|breit|tief)", "wie"),
        (r"(?:versteht man|verstehen wir) unter", "bedeutet"), (r"unterscheiden sich", "unterschied"),
        (r"((?:unterschiede?|vergleich\w*|abstand)(?: \w+){0,3}?) zwischen", r"\1"), (r"so dass", "sodass"), (r"um(?=.* zu )", ""), (r"aufgrund", "wegen"),
        (r"zu(?= \w+(?:en|eln|ern) )", ""),
    ),
    "fr": (
        (r"(?:s' il (?:vous|te) plaît|bonjour|merci|svp)", ""),
        (r"(?:peux tu|pouvez vous|pourriez vous|pourrais tu)(?: me| m'| nous)?", ""),
        (r"s' (?=ils? )", "si "), (r"(?:est ce que|qu' est ce qui|c' est)", ""),
        (r"parce que?", "parce"), (r"à cause de", "parce"), (r"alors qu[e']", "alors-que"),
        (r"bien qu[e']", "bien-que"), (r"avant (?:que|qu'|de|d')", "avant"), (r"dès qu[e']", "dès-que"),
        (r"pendant qu[e']", "pendant-que"), (r"tandis qu[e']", "tandis-que"), (r"d' où", "d'où"),
        (r"à côté d[eu']", "à-côté"), (r"en face d[eu']", "en-face"), (r"(?:le |la |les )?leur(?= \w+ )", "leur"),
        (r"((?:différences?|distance)(?: \w+){0,5}?) entre", r"\1"), (r"savoir si", "savoir"), (r"combien de", "combien"), (r"comment (?:se|s')", "comment"),
    ),
    "es": (
        (r"(?:por favor|hola|gracias)", ""), (r"por qué", "porqué"),
        (r"(?:me )?(?:puedes?|podrías?)(?= (?:decir|explicar|ayudar|dar|mostrar))", ""),
        (r"a favor de", "a-favor"), (r"en contra de", "contra"), (r"al lado de", "junto"),
        (r"como máximo", "máximo"), (r"al menos", "menos"), (r"por lo menos", "menos"),
        (r"((?:diferencias?|distancia)(?: \w+){0,3}?) entre", r"\1"), (r"cuánto tiempo", "cuánto"), (r"(?:de|a)? ?(?:dónde)", "dónde"),
        (r"sin embargo", "pero"), (r"para qué", "qué"),
    ),
}  # fmt: skip

# Modal verbs, one set in each line. In questions for yes or no each set has another answer.
_MODALS: dict[Language, str] = {
    "en": "can able possible/could/may allowed/might/should ought advisable/will shall/would",
    "de": "kann kannst können möglich lässt/könnte könnten könntest/darf dürfen darfst erlaubt/soll sollte "
    "sollen sollten/würde würden wäre wären hätte hätten/will wollen willst möchte",
    "fr": "peut peux pouvez peuvent puis possible/pourrait pourrais/devrait devrais/serait seraient aurait "
    "auraient",
    "es": "puede puedo pueden puedes posible/podría podrían/debería/sería serían habría habrían",
}
_ARTICLES: dict[Language, frozenset[str]] = {
    "en": frozenset("a an the my your".split()),
    "de": frozenset("der die das den dem des ein eine einen einem einer eines mein meine".split()),
    "fr": frozenset("le la les l' un une mon ma mes".split()),
    "es": frozenset("el la los las una unos unas mi mis".split()),
}
# Some of the best, some best; la cause du tonnerre, qui cause le tonnerre; est-il bleu, est bleu.
_DROPPED_FREELY = frozenset("of de il elle ils elles".split())
# Two verbs for to be: ser malo, estar malo.
_SER = frozenset("ser es son era eran fue fueron sido soy somos".split())
_ESTAR = frozenset("estar está están estaba estaban estoy estamos".split())


def _first_of(lines: str) -> dict[str, str]:
    rows = [line.split() for line in lines.strip().splitlines()]
    return {word: row[0] for row in rows for word in row}


_CANONICAL = {code: _first_of(lines) for code, lines in _SAME.items()}
_IGNORED = {code: frozenset(words.split()) for code, words in _FREE.items()}
_MAY_LACK = {code: frozenset(words.split()) for code, words in _OPTIONAL.items()}
_COUNTED = {
    code: (FUNCTION_WORDS[code] | frozenset(words.split())) - _IGNORED[code]
    for code, words in _MORE.items()
}
_CONDENSED = {
    code: tuple((re.compile(rf" {phrase}(?= )"), f" {short}" if short else "")
                for phrase, short in phrases)
    for code, phrases in _PHRASES.items()
}  # fmt: skip
_JOINED = frozenset(
    {"zu-sehr", *(short for phrases in _PHRASES.values() for _, short in phrases if "-" in short)}
)
# They end as an infinitive does.
_ADJECTIVES = frozenset(
    "selten offen trocken gelegen betrunken verschieden schüchtern eben golden hölzern modern".split()
)
_MODAL_OF = {
    code: {word: row.split()[0] for row in rows.split("/") for word in row.split()}
    for code, rows in _MODALS.items()
}
_CONDITIONS: dict[Language, frozenset[str]] = {
    "en": frozenset({"when"}), "de": frozenset({"wenn"}), "fr": frozenset({"quand"}),
    "es": frozenset({"cuando"}),
}  # fmt: skip
# A number is exact or approximate: what stands before it counts even where it is optional.
_PRECISION = re.compile(
    r" (exactly|precisely|about|around|approximately|roughly|nearly|almost|over|under|genau|exakt|etwa|"
    r"ungefähr|circa|ca|rund|fast|knapp|über|unter|exactement|environ|presque|exactamente|unos|unas|"
    r"aproximadamente|casi) (?=[\d]|(?:two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|hundred|zwei|drei|"
    r"vier|fünf|sechs|sieben|acht|neun|zehn|zwölf|zwanzig|hundert|deux|trois|quatre|cinq|sept|huit|neuf|dix|douze|"
    r"vingt|cent|dos|tres|cuatro|cinco|seis|siete|ocho|nueve|diez|doce|veinte|cien) )"
)


def compare_function_words(a: Words, b: Words) -> str | None:
    """Return `function_words` where a preposition, conjunction, particle or pronoun differs.

    A word that one text only has is refused, unless it is optional. Two optional words in each
    other's place are refused, unless they say the same beside the words that stand there.
    """
    language = a.language
    if language is None or language != b.language:
        return None
    if _PRECISION.findall(a.line) != _PRECISION.findall(b.line) or _modals_differ(a, b, language):
        return "function_words"
    if language == "es" and _copulas_differ(a, b):
        return "function_words"
    first, second = said(a), said(b)
    if first == second:
        return None
    left, right = first - second, second - first
    for one, other in _equal_here(a, b, language):
        for mine, theirs in ((one, other), (other, one)):
            if left[mine] and left[mine] == right[theirs]:
                del left[mine], right[theirs]
    optional = _MAY_LACK[language]
    if any(word not in optional for word in (*left, *right)):
        return "function_words"
    if left and right:
        return "function_words"
    # Sell to minors, sell minors: nothing else of the construction has changed.
    is_dropped = _dropped(a, b, set(left)) or _dropped(b, a, set(right))
    return "function_words" if is_dropped else None


def said(words: Words) -> Counter[str]:
    """Return the function words that count in a text, the first of their set for each."""
    language = words.language
    if language is None:
        return Counter()
    counted, canonical = _COUNTED[language], _CANONICAL[language]
    tokens = _condensed(words, language).split()
    found = Counter(
        canonical.get(token, token) for token in tokens if token in counted or token in _JOINED
    )
    # A question word is compared by its kind; behind another one it is a conjunction.
    for condition in _CONDITIONS[language]:
        if condition in found and kind_of(words) == "time":
            found[condition] -= 1
    if language == "de":
        # Behind the first, which asks, it compares: wie viel ist wie.
        found["wie"] += max(0, tokens.count("wie") - 1)
    return +found


def are_equivalent(first: str, second: str, language: Language) -> bool:
    """Return whether two function words in lower case say the same in every question."""
    canonical = _CANONICAL[language]
    return canonical.get(first, first) == canonical.get(second, second)


def are_equivalent_here(first: str, second: str, a: Words, b: Words) -> bool:
    """Return whether two function words in lower case say the same in these two texts."""
    language = a.language
    if language is None or language != b.language:
        return False
    if are_equivalent(first, second, language):
        return True
    return any({first, second} == {*pair} for pair in _equal_here(a, b, language))


def is_relation(word: str, language: Language) -> bool:
    """Return whether a word in lower case is a function word that counts."""
    return word in _COUNTED[language]


def _condensed(words: Words, language: Language) -> str:
    """Return the words of a text in lower case, phrases of function words as one word each."""
    tokens = list(words.lower)
    if language == "de":
        # The polite form is written with a capital; at the start it cannot be told.
        for n, token in enumerate(words.tokens):
            if token in ("Sie", "Ihnen", "Ihr", "Ihre", "Ihren", "Ihrem", "Ihrer"):
                tokens[n] = "du"
            elif token.lower() == "zu" and _is_degree(words.tokens[n + 1 : n + 2]):
                tokens[n] = "zu-sehr"
    line = f" {' '.join(tokens)} "
    for pattern, short in _CONDENSED[language]:
        line = pattern.sub(short, line)
    return line


def _is_degree(after: tuple[str, ...]) -> bool:
    """Return whether zu stands before an adjective or a quantity: zu kalt, zu viel."""
    if not after or not after[0].islower():
        return False
    word = after[0]
    if word in FUNCTION_WORDS["de"]:
        return _CANONICAL["de"].get(word) in ("viel", "wenig")
    return not word.endswith(("en", "eln", "ern")) or word in _ADJECTIVES


def _equal_here(a: Words, b: Words, language: Language) -> list[tuple[str, str]]:
    """Return the pairs of function words that say the same beside the words of these texts."""
    present = a.present | b.present
    return [
        (one, other)
        for one, other, beside in _IN_CONTEXT[language]
        if not present.isdisjoint(beside.split())
    ]


def _dropped(a: Words, b: Words, words: set[str]) -> bool:
    """Return whether one of some words stands in a between two that follow each other in b."""
    language = a.language
    words = words - _DROPPED_FREELY
    if not words or language is None:
        return False
    canonical, articles = _CANONICAL[language], _ARTICLES[language]
    first, second = ([w for w in text.lower if w not in articles] for text in (a, b))
    neighbours = set(pairwise(second))
    return any(
        canonical.get(word, word) in words and (before, after) in neighbours
        for before, word, after in zip(first, first[1:], first[2:], strict=False)
    )


def _modals_differ(a: Words, b: Words, language: Language) -> bool:
    kinds = {kind_of(a), kind_of(b)}
    if kinds <= {"manner", "action"}:
        return False
    table = _MODAL_OF[language]
    first, second = (
        {table[word] for word in _condensed(words, language).split() if word in table}
        for words in (a, b)
    )
    if kinds & {"polar", "none"} and kinds <= {"polar", "none"}:
        return first != second
    return bool(first - second and second - first)


def _copulas_differ(a: Words, b: Words) -> bool:
    """Return whether one text has ser alone and the other estar alone."""
    first, second = (
        (not _SER.isdisjoint(words.present), not _ESTAR.isdisjoint(words.present))
        for words in (a, b)
    )
    return (
        first != second
        and all(any(one) for one in (first, second))
        and ({first, second} >= {(True, False), (False, True)} or (True, True) in (first, second))
    )
