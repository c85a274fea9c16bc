"""Articles and pronouns must give a noun the same gender, case and number. Pure.

Der Band and das Band are two words, le livre and la livre too; beißt der Hund den Mann is another
question than beißt den Hund der Mann.
"""

from serving.cache.guards.function_words import Language
from serving.cache.guards.question import kind_of
from serving.cache.guards.words import Words

# What a determiner's form can be: gender (m, f, n, p for plural) and case (1 to 4).
_GERMAN = {
    "der": "m1 f3 f2 p2", "die": "f1 f4 p1 p4", "das": "n1 n4", "den": "m4 p3", "dem": "m3 n3", "des": "m2 n2",
    "im": "m3 n3", "am": "m3 n3", "zum": "m3 n3", "vom": "m3 n3", "beim": "m3 n3", "zur": "f3", "ins": "n4",
    "ans": "n4", "aufs": "n4", "fürs": "n4", "durchs": "n4", "ums": "n4",
    "dieser": "m1 f3 f2 p2", "diese": "f1 f4 p1 p4", "dieses": "n1 n4", "diesen": "m4 p3", "diesem": "m3 n3",
    "welcher": "m1 f3 f2 p2", "welche": "f1 f4 p1 p4", "welches": "n1 n4", "welchen": "m4 p3", "welchem": "m3 n3",
}  # fmt: skip
_ENDINGS = {"": "m1 n1 n4", "e": "f1 f4 p1 p4", "en": "m4 p3", "em": "m3 n3", "er": "f3 f2 p2",
            "es": "m2 n2"}  # fmt: skip
_GERMAN |= {
    stem + ending: forms
    for stem in ("ein", "kein", "mein", "dein", "sein", "ihr", "unser")
    for ending, forms in _ENDINGS.items()
}
_FRENCH = {
    "le": "m", "la": "f", "l'": "m f", "les": "p", "un": "m", "une": "f", "des": "p", "du": "m", "au": "m",
    "aux": "p", "mon": "m f", "ma": "f", "mes": "p", "ton": "m f", "ta": "f", "tes": "p", "son": "m f",
    "sa": "f", "ses": "p", "ce": "m", "cet": "m", "cette": "f", "ces": "p", "notre": "m f", "votre": "m f",
    "quel": "m", "quelle": "f", "quels": "p", "quelles": "p",
}  # fmt: skip
_SPANISH = {
    "el": "m", "la": "f", "los": "M", "las": "F", "un": "m", "una": "f", "unos": "M", "unas": "F", "del": "m",
    "al": "m", "este": "m", "esta": "f", "ese": "m", "esa": "f", "nuestro": "m", "nuestra": "f",
    "mi": "m f", "tu": "m f", "su": "m f", "mis": "M F", "tus": "M F", "sus": "M F",
}  # fmt: skip
_ENGLISH = dict.fromkeys(
    "my your his her its our their no any some each every one another what which".split(), "s p"
) | {"a": "s", "an": "s", "the": "s p", "this": "s", "these": "p", "those": "p"}
_TABLES: dict[Language, dict[str, str]] = {
    "en": _ENGLISH, "de": _GERMAN, "fr": _FRENCH, "es": _SPANISH,
}  # fmt: skip
_FORMS: dict[Language, dict[str, frozenset[str]]] = {
    code: {word: frozenset(forms.split()) for word, forms in table.items()}
    for code, table in _TABLES.items()
}
_INDEFINITE = frozenset("a an ein eine einen einem einer eines un une una".split())
_POSSESSIVE = frozenset(
    "mon ma mes ton ta tes son sa ses notre votre mi tu su mis tus sus nuestro nuestra".split()
)

# The last letters of two words of one stem that are a man's and a woman's.
_SEXES: dict[Language, tuple[tuple[str, str], ...]] = {
    "fr": (("", "e"), ("s", "es")),
    "es": (("o", "a"), ("os", "as"), ("", "a"), ("es", "as")),
}
_BEFORE_NOUN: dict[Language, frozenset[str]] = {
    "fr": frozenset(_FRENCH) | frozenset("pour avec sans chez contre par entre de d' à".split()),
    "es": frozenset(_SPANISH) | frozenset("para con sin contra por entre de a".split()),
}
_SELVES: dict[Language, dict[str, str]] = {
    "en": {"myself": "i", "yourself": "you", "himself": "he", "herself": "she", "itself": "it",
           "ourselves": "we", "themselves": "they", "oneself": "one"},
    "de": {"mich": "ich", "mir": "ich", "dich": "du", "dir": "du", "sich": "", "uns": "wir"},
}  # fmt: skip

_CONTRACTED = {"im": "in", "ins": "in", "am": "an", "ans": "an", "zum": "zu", "zur": "zu", "vom": "von",
               "beim": "bei", "aufs": "auf", "fürs": "für", "durchs": "durch", "ums": "um"}  # fmt: skip
_PREPOSITIONS = frozenset(
    """
in an auf zu von bei für durch um mit nach aus seit gegen ohne über unter vor hinter neben zwischen während
wegen bis ab
""".split()
)

_Noun = tuple[int, str | None]


def compare_inflection(a: Words, b: Words) -> str | None:
    """Return `inflection` where a noun has another gender, case or number, or a person another sex."""
    language = a.language
    if language is None or language != b.language:
        return None
    checks = (_determiners_differ, _sexes_differ, _selves_differ, _plurals_differ)
    return "inflection" if any(check(a, b, language) for check in checks) else None


def _determiners_differ(a: Words, b: Words, language: Language) -> bool:
    nouns_a, nouns_b = _nouns(a, language), _nouns(b, language)
    if language == "de" and (_weak_differs(nouns_a, nouns_b) or _weak_differs(nouns_b, nouns_a)):
        return True
    is_definition = _is_definition(a) and _is_definition(b)
    changed = 0
    for noun in nouns_a.keys() & nouns_b.keys():
        (place_a, one), (place_b, other) = nouns_a[noun], nouns_b[noun]
        if one == other:
            continue
        if _countable(a, place_a, one, b, place_b, other) or (
            is_definition and _definite(one) != _definite(other)
        ):
            return True
        if one is None or other is None:
            continue
        forms = _FORMS[language]
        if forms[one] & forms[other]:
            continue
        if language == "de" and _preposition(a, place_a) != _preposition(b, place_b):
            # Another preposition gives another case; whether it may differ is compared apart.
            genders = [{form[0] for form in forms[word]} for word in (one, other)]
            if genders[0] & genders[1]:
                continue
        if language == "de" and _is_attribute(a, place_a, one, b, place_b, other):
            changed += 1
            continue
        return True
    return changed > 1


def _weak_differs(first: dict[str, _Noun], second: dict[str, _Noun]) -> bool:
    """Return whether a noun that changes with its case acts in one text alone: der Bär, den Bären."""
    forms = _FORMS["de"]
    return any(
        one is not None
        and "m1" in forms[one]
        and other is not None
        and not forms[other].isdisjoint(("m3", "m4"))
        for noun, (_, one) in first.items()
        for ending in ("n", "en")
        for _, other in [second.get(noun + ending, (0, None))]
    )


def _nouns(words: Words, language: Language) -> dict[str, _Noun]:
    """Return place and determiner of each content word that occurs once, by the word as written.

    One adjective may stand between them.
    """
    found: dict[str, _Noun] = {}
    forms, content = _FORMS[language], frozenset(words.content)
    for index in words.content:
        noun = words.lower[index]
        if words.lower.count(noun) > 1:
            continue
        before = index - 1
        if before in content and before not in words.starts and words.tokens[before].islower():
            before -= 1
        word = words.lower[before] if before >= 0 else ""
        found[noun] = (index, word if word in forms else None)
    return found


def _definite(word: str | None) -> str:
    if word is None:
        return "none"
    return "indefinite" if word in _INDEFINITE else "definite"


def _is_definition(words: Words) -> bool:
    """Return whether a text asks for the meaning of its last word: what is a moon."""
    last = len(words.lower) - 1
    is_acronym = words.tokens[last].isupper()
    is_one_word = len(words.content) == 1 and words.content[0] == last
    return kind_of(words) == "thing" and is_one_word and not is_acronym


def _countable(
    a: Words, place_a: int, one: str | None, b: Words, place_b: int, other: str | None
) -> bool:
    """Return whether a noun is counted in one text alone: an iron, iron."""
    kinds = {_definite(one), _definite(other)}
    if kinds != {"none", "indefinite"}:
        return False
    for words, place, word in ((a, place_a, one), (b, place_b, other)):
        after = place + 1
        is_head = after >= len(words.lower) or after not in words.content or after in words.starts
        before = place - 1
        if not is_head or (word is not None and words.lower[before] != word):
            return False
        if word is None and before >= 0 and words.lower[before] in _POSSESSIVE:
            return False
    # What stands before it is an adjective, unless it stands before the article in the other.
    (plain, bare), (counted, article) = sorted(
        ((a, place_a), (b, place_b)), key=lambda side: side[0].lower[side[1] - 1] in _INDEFINITE
    )
    neighbour = plain.lower[bare - 1] if bare else ""
    return bare - 1 not in plain.content or neighbour == counted.lower[max(article - 2, 0)]


def _is_attribute(a: Words, place_a: int, one: str, b: Words, place_b: int, other: str) -> bool:
    """Return whether the noun of one gender is an attribute in one text: Symptome einer Grippe."""
    forms = _FORMS["de"]
    genders = [{form[0] for form in forms[word]} for word in (one, other)]
    cases = [{form[1] for form in forms[word]} for word in (one, other)]
    if not genders[0] & genders[1] or not any("2" in found for found in cases):
        return False
    for words, place, found in ((a, place_a, cases[0]), (b, place_b, cases[1])):
        before = place - 2
        if (
            "2" in found
            and before >= 0
            and before in words.content
            and (words.tokens[before][:1].isupper())
        ):
            return True
    return False


def _preposition(words: Words, noun: int) -> str:
    """Return the preposition before a noun's determiner or in it; empty where there is none."""
    place = noun - 1
    while place >= 0 and words.lower[place] not in _FORMS["de"]:
        place -= 1
    word = words.lower[place] if place >= 0 else ""
    if word in _CONTRACTED:
        return _CONTRACTED[word]
    before = words.lower[place - 1] if place > 0 else ""
    return before if before in _PREPOSITIONS else ""


def _sexes_differ(a: Words, b: Words, language: Language) -> bool:
    """Return whether a person is a man in one text and a woman in the other: amigo, amiga."""
    if language not in _SEXES:
        return False
    before = _BEFORE_NOUN[language]
    first, second = (
        {words.lower[n] for n in words.content if n and words.lower[n - 1] in before}
        for words in (a, b)
    )
    return any(
        one.endswith(man) and other == one[: len(one) - len(man)] + woman
        for left, right in ((first - second, second - first), (second - first, first - second))
        for one in left
        for other in right
        for man, woman in _SEXES[language]
        if len(one) >= 3
    )


# Plurals that are other words than their singulars.
_OTHER_IN_PLURAL = frozenset(
    """
customs glasses goods arms news contents spectacles forces manners scales damages spirits premises compasses woods airs
ashes lodgings irons papers pains quarters regards respects savings sands stairs surroundings wits blinds bearings
greens grounds humanities morals odds outskirts physics proceeds provisions shorts statistics straits trunks economics
athletics classics electronics genetics clothes authorities troops
""".split()
)


def _plurals_differ(a: Words, b: Words, language: Language) -> bool:
    """Return whether a word of one text is a plural in the other that is another word: custom(s)."""
    if language != "en":
        return False
    only_a, only_b = a.present - b.present, b.present - a.present
    return any(
        f"{one}{ending}" in others and f"{one}{ending}" in _OTHER_IN_PLURAL
        for ones, others in ((only_a, only_b), (only_b, only_a))
        for one in ones
        for ending in ("s", "es")
    )


def _selves_differ(a: Words, b: Words, language: Language) -> bool:
    """Return whether one text is about who acts and the other about somebody else: help myself."""
    if language not in _SELVES:
        return False
    return _selves(a, language) != _selves(b, language)


def _selves(words: Words, language: Language) -> frozenset[str]:
    selves, found = _SELVES[language], set()
    for word in words.lower:
        if word not in selves:
            continue
        actor = selves[word]
        if language == "de" and word in ("mir", "uns", "dir") and actor not in words.present:
            # Erkläre mir: politeness.
            continue
        if word == "sich" and any(one.startswith("unterscheid") for one in words.lower):
            continue
        found.add("self" if not actor or actor in words.present else word)
    return frozenset(found)
