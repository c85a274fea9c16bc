"""The arguments of a question must have the same roles, told by the word before each. Pure."""

from serving.cache.guards.closed_classes import are_equivalent_here, is_relation
from serving.cache.guards.function_words import FUNCTION_WORDS
from serving.cache.guards.words import Words

# Words before an argument that tell its role.
_MARKERS = frozenset(
    """
from to before after by than over under into without with against for of at on in
von nach vor aus zu mit ohne gegen für als in bei vom zum zur durch
de à avant après par que avec sans contre pour en dans vers des du au
desde a antes después por con sin contra para en hacia del al
""".split()
)
# Before a symmetric pair: "the difference between A and B".
_SYMMETRIC = frozenset(
    """
between difference differences compare comparison distance similarity similarities common versus vs
zwischen unterschied unterschiede vergleiche vergleich abstand entfernung
entre différence différences comparer compare comparaison distance
diferencia diferencias comparar compara comparación distancia
""".split()
)
# Verbs that stand before or after their noun by the wording alone.
_FREE = frozenset(
    """
online offline best quickly easily first
work works function functions mean means meaning explain please
funktioniert funktionieren erklären erklär erkläre dauert kostet heißt
fonctionne fonctionnent dure coûte explique funciona funcionan dura cuesta
""".split()
)
_CONTRACTED = {"del": "de", "al": "a", "du": "de", "des": "de", "au": "à", "vom": "von", "zum": "zu",
               "zur": "zu"}  # fmt: skip
_JOINS = frozenset({"and", "or", "vs", "versus", "und", "oder", "et", "ou", "y", "o", "between",
                    "zwischen", "entre", "with", "to", "from"})  # fmt: skip
_COORDINATORS = frozenset({"and", "or", "und", "oder", "et", "ou", "y", "o", "e", "u"})
_BETWEEN = frozenset({"between", "zwischen", "entre"})
# Prepositions that join a noun to its attribute and give no direction.
_ATTRIBUTIVE = frozenset(
    {"of", "in", "on", "at", "for", "de", "du", "des", "en", "d'", "del", "im", "am"}
)
_DETERMINERS = frozenset(
    """
a an the my your his her its our their this that these those some any
der die das den dem des ein eine einen einem einer eines mein meine meinen meinem
le la les l' un une des mon ma mes el los las una unos unas mi mis
""".split()
)


def compare_order(a: Words, b: Words) -> str | None:
    """Return `order` where two shared words have changed places or roles.

    Two words in another order keep their roles where the same word stands before each of them. A
    word has another role where another preposition stands before it.
    """
    places_a, places_b = _once(a), _once(b)
    shared = places_a.keys() & places_b.keys()
    if not shared:
        return None
    if any(_changed_direction(a, places_a[s], b, places_b[s]) for s in shared):
        return "order"
    if _moved_marker(a, places_a, b, places_b):
        return "order"
    ordered = sorted(shared, key=lambda s: places_a[s])
    moved = {
        s
        for n, first in enumerate(ordered)
        for second in ordered[n + 1 :]
        if places_b[first] > places_b[second] and not _are_joined(a, b, first, second)
        for s in (first, second)
    }
    changed = [s for s in moved if _before(a, places_a[s]) != _before(b, places_b[s])]
    # One word that moved alone, such as an adverb, changes the words before it and its neighbour.
    return "order" if len(changed) >= 2 and _exchanged(places_a, places_b, changed) else None


def _once(words: Words) -> dict[str, int]:
    """Return the index of each content word that occurs once, by its stem."""
    found: dict[str, list[int]] = {}
    for index in words.content:
        if words.lower[index] in _FREE:
            continue
        found.setdefault(words.stems[index], []).append(index)
    return {name: indices[0] for name, indices in found.items() if len(indices) == 1}


def _before(words: Words, index: int) -> str:
    """Return the word before a place; the stem of a content word.

    Determiners are left out, and words that occur twice: Lake Erie, Lake Ontario.
    """
    once = _once(words).values()
    index -= 1
    while index >= 0 and (
        words.lower[index] in _DETERMINERS or (index in words.content and index not in once)
    ):
        index -= 1
    if index < 0:
        return ""
    word = words.lower[index]
    known = FUNCTION_WORDS[words.language] if words.language is not None else frozenset()
    return word if word in known or word in _MARKERS else words.stems[index]


def _changed_direction(a: Words, in_a: int, b: Words, in_b: int) -> bool:
    """Return whether another preposition or conjunction stands before a word."""
    one, other = _before(a, in_a), _before(b, in_b)
    language = a.language
    if one == other or language is None or language != b.language:
        return False
    if not _COORDINATORS.isdisjoint((one, other)) or not _BETWEEN.isdisjoint((one, other)):
        # Which of two comes first is compared apart.
        return False
    both = is_relation(one, language) and is_relation(other, language)
    return both and not are_equivalent_here(one, other, a, b)


def _moved_marker(a: Words, places_a: dict[str, int], b: Words, places_b: dict[str, int]) -> bool:
    """Return whether a preposition stands before another of the shared words: al perro, al gato."""
    found: list[dict[str, set[str]]] = [{}, {}]
    for governed, words, places in ((found[0], a, places_a), (found[1], b, places_b)):
        for shared in places_a.keys() & places_b.keys():
            marker = _before(words, places[shared])
            if marker in _MARKERS and marker not in _COORDINATORS:
                governed.setdefault(_CONTRACTED.get(marker, marker), set()).add(shared)
    first, second = found
    return any(
        first[marker] - second[marker] and second[marker] - first[marker]
        for marker in first.keys() & second.keys()
    )


def _exchanged(places_a: dict[str, int], places_b: dict[str, int], changed: list[str]) -> bool:
    return any(
        (places_a[first] < places_a[second]) != (places_b[first] < places_b[second])
        for n, first in enumerate(changed)
        for second in changed[n + 1 :]
    )


def _are_joined(a: Words, b: Words, first: str, second: str) -> bool:
    """Return whether two words may change places: they play one role, or make one name.

    They play one role as members of a list, and of a symmetric pair: the difference between A and
    B. They make one name where they are neighbours in one text and a preposition that gives no
    direction joins them in the other: profile name, name of a profile.
    """
    inner = [_between(words, first, second) for words in (a, b)]
    if all(_JOINS.issuperset(one) for one in inner):
        is_list = all(one and _COORDINATORS.issuperset(one) for one in inner)
        return is_list or all(
            not _SYMMETRIC.isdisjoint(words.lower[: _first_place(words, first, second)])
            for words in (a, b)
        )
    if all(not _COORDINATORS.isdisjoint(one) for one in inner):
        # A member of a symmetric pair may have several words: self esteem.
        known = FUNCTION_WORDS[a.language] if a.language is not None else frozenset()
        return all(
            not _SYMMETRIC.isdisjoint(words.lower[: _first_place(words, first, second)])
            and not [word for word in one if word in known and word not in _JOINS]
            for words, one in zip((a, b), inner, strict=True)
        )
    joints = [[word for word in one if word in _ATTRIBUTIVE or word in _MARKERS] for one in inner]
    is_short = all(len(one) - len(joint) <= 1 for one, joint in zip(inner, joints, strict=True))
    (shorter, longer) = sorted(joints, key=len)
    return is_short and not shorter and len(longer) == 1 and _ATTRIBUTIVE.issuperset(longer)


def _between(words: Words, first: str, second: str) -> list[str]:
    """Return the words between two, without determiners and words that occur twice."""
    places = _once(words)
    low, high = sorted((places[first], places[second]))
    return [
        words.lower[n]
        for n in range(low + 1, high)
        if words.lower[n] not in _DETERMINERS
        and (n not in words.content or words.stems[n] in places)
    ]


def _first_place(words: Words, first: str, second: str) -> int:
    places = _once(words)
    return min(places[first], places[second])
