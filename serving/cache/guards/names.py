"""Names must be equal up to inflection: people, places, products, acronyms. Pure."""

from serving.cache.guards.function_words import FILLERS, FUNCTION_WORDS
from serving.cache.guards.numbers import is_number
from serving.cache.guards.substitution import are_synonyms
from serving.cache.guards.words import Words, may_be_forms

# Words that begin a question or a request with a capital and are no names.
_STARTERS = frozenset(
    """
give tell explain describe list name show find define compare write suggest recommend summarize
summarise calculate compute convert help let outline discuss identify provide state mention teach
walk best good great top difference differences difference: steps ways way reasons ideas tips
examples advantages benefits instructions causes symptoms meaning definition people someone anyone
everyone somebody once today besides using given suppose assume imagine considering regarding hello
hi hey thank thanks dear ok okay quick question need want looking trying having making getting taking
erkläre erklär erklären nenne nennen beschreibe zeige zeig hilf welcher gibt sag sage liste vergleiche
guten hallo danke frage gib schreibe finde berechne definiere unterschied
explique expliquez donne donnez décris décrivez montre cite citez dis dites bonjour merci quelle
compare comparez trouve aide aidez existe définis calcule
explica explícame dime dame describe muestra enumera nombra hola gracias ayuda compara busca define
calcula existe cuéntame indica
""".split()
)

# Names that are written in more than one way.
_SAME = {
    "usa": "us", "u.s": "us", "u.s.a": "us", "u.k": "uk", "britain": "uk", "america": "us",
    "javascript": "js", "typescript": "ts", "postgresql": "postgres", "kubernetes": "k8s",
}  # fmt: skip
# Names that are another thing in lower case: Turkey, a turkey.
_OTHER_IN_LOWER_CASE = frozenset(
    """
turkey china polish mercury apple amazon windows word excel access java chrome safari reading nice job
bath cork rust go swift ruby shell gap target dove jordan chad guinea mobile august may march oracle
square slack teams zoom meta alphabet discord unity edge spring flask bash make numbers pages keys
""".split()
)
_NO_NAMES = frozenset({"i", "ok", "tv", "faq", "diy", "pc"})


def compare_names(a: Words, b: Words) -> str | None:
    """Return `names` where a name in one text has no form of it in the other.

    A name is a word with a capital that does not begin a sentence, or an acronym. In German these
    are the nouns, too.
    """
    is_same = _all_in(a, b) and _all_in(b, a)
    checks = (_extends, _has_plural)
    return None if is_same and not any(c(a, b) or c(b, a) for c in checks) else "names"


def _extends(a: Words, b: Words) -> bool:
    """Return whether a word makes a longer name of the same name: Georgia, Georgia state.

    In German any noun would be one.
    """
    if a.language == "de" or a.language is None:
        return False
    weighty = frozenset(a.weighty)
    for index in name_indices(a):
        after = index + 1
        while after < len(a.lower) and is_number(a.lower[after]):
            after += 1
        if after not in weighty or after in a.starts or a.lower[index] not in b.present:
            continue
        stands = (a.stems[after] == s or are_synonyms(a.lower[after], w, a.language)
                  for s, w in zip(b.stems, b.lower, strict=True))  # fmt: skip
        if not any(stands):
            return True
    return False


def name_indices(words: Words) -> tuple[int, ...]:
    """Return where a text has names."""
    return tuple(n for n in range(len(words.tokens)) if _is_name(words, n))


def _is_name(words: Words, index: int) -> bool:
    token, lower = words.tokens[index], words.lower[index]
    if words.language == "de" and lower in FILLERS["de"]:
        return False
    if not any(character.isupper() for character in token) or lower in _NO_NAMES:
        return False
    if any(lower in known for known in FUNCTION_WORDS.values()) and not _is_acronym(token):
        return False
    if index not in words.starts:
        return True
    return lower not in _STARTERS and words.language != "de"


def _is_acronym(token: str) -> bool:
    return len(token.rstrip("'")) > 1 and token.isupper()


def _has_plural(a: Words, b: Words) -> bool:
    """Return whether the other text has a name with an s more: Alien, Aliens are two films."""
    if a.language != "en" or b.language != "en":
        return False
    plurals = {b.lower[n] for n in name_indices(b) if n not in b.starts}
    return any(
        n not in a.starts
        and not _is_acronym(a.tokens[n])
        and a.lower[n] not in b.present
        and a.lower[n] + "s" in plurals
        for n in name_indices(a)
    )


def _all_in(a: Words, b: Words) -> bool:
    written = [_SAME.get(word, word) for word in b.lower]
    language = a.language if a.language == b.language else None
    joined = "".join(b.lower)
    for index in name_indices(a):
        name = _SAME.get(a.lower[index], a.lower[index])
        if language == "de" and any(are_synonyms(name, other, "de") for other in b.lower):
            continue
        if _is_acronym(a.tokens[index]) and len(name) > 2 and name not in written:
            # HTTP and HTTPS are two acronyms; APIs is the plural of API.
            plural = name + "s"
            if any(other.isupper() and other.lower() == plural for other in b.tokens):
                return False
        # A hyphen or a space may split a name: e-mail, email.
        if not any(may_be_forms(name, other, language) for other in written) and (
            len(name) < 5 or name.replace("-", "") not in joined.replace("-", "")
        ):
            return False
        if name in _OTHER_IN_LOWER_CASE and language != "de":
            same = [other for other in b.tokens if other.lower() == name]
            if same and all(other.islower() for other in same) and not b.text.islower():
                return False
        # An acronym is not a word of the same letters: US and us, IT and it.
        token = a.tokens[index]
        if _is_acronym(token) and name in {"us", "it", "who", "am", "or", "in", "as", "la"}:
            same = [other for other in b.tokens if _SAME.get(other.lower(), other.lower()) == name]
            if all(other.islower() for other in same):
                return False
    return True
