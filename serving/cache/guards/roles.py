"""Who does what to whom, and what an operator stands before, must be the same. Pure."""

import re

from serving.cache.guards.function_words import Language
from serving.cache.guards.words import Words

_DETERMINERS = frozenset("a an the my your his her its our their this that these those".split())

# "What does a lion eat" asks for the object, "what eats a lion" for the subject.
_OBJECT = re.compile(r" whom | (?:who|what|which)(?: \w+){0,3}? (?:do|does|did) ")
_SUBJECT = re.compile(r" (?:who|what|which)(?: \w+){0,3}? (?:has|have|had|needs?) to ")
_AUXILIARY = re.compile(
    r" (?:do|does|did|is|are|am|was|were|be|been|has|have|had|can|could|will|would|should|shall|may|"
    r"might|must|whom) "
)
_ASKS = re.compile(r" (?:who|what|which) ")
_PERFECT = re.compile(
    r"(?:ed|en|wn|ung|unk|ght|ade|aid|eat|eld|elt|ent|ept|ilt|ind|old|ood|ost|one|ound|ut|un|um|ad|it)$"
)

# The case of the question word tells who acts; "von wem" and "por quién" ask for who acts.
_CASES: dict[Language, tuple[re.Pattern[str], re.Pattern[str]]] = {
    "de": (re.compile(r" (?:von wem|durch wen) "), re.compile(r" (wer|wen|wem|wessen) ")),
    "es": (re.compile(r" por qui[eé]n(?:es)? "), re.compile(r" ((?:a |de |con |para )?qui[eé]n)(?:es)? ")),
    "fr": (re.compile(r" par qui "), re.compile(r" ((?:à |de |avec |pour )?qui) ")),
}  # fmt: skip
_ACTS = {"de": " wer ", "es": " quién ", "fr": " qui "}

# Operators whose order decides what they say: not all, all not.
_OPERATORS = frozenset(
    """
not no never without only all every each most always but
nicht kein keine keinen nie ohne nur alle jeder jede immer aber sondern
pas jamais sans seulement tous toutes chaque toujours mais
nunca sin solo sólo solamente todos todas cada siempre pero sino
""".split()
)
_RESTRICTS = frozenset("only nur seulement uniquement solo sólo solamente".split())
# What stands before one of these happens before, or because of, what stands after it.
_CLAUSES = frozenset(
    """
before after until because if when unless while instead
bevor nachdem bis weil wenn falls während statt
avant après jusqu' parce si quand lorsqu'
antes después hasta porque si cuando mientras
""".split()
)


def compare_roles(a: Words, b: Words) -> str | None:
    """Return `roles` where who acts, or what an operator stands before, differs."""
    checks = (_subjects, _cases, _agents, _operators, _restricted, _clauses, _repeated)
    return "roles" if any(check(a, b) or check(b, a) for check in checks) else None


def _subjects(a: Words, b: Words) -> bool:
    """Return whether the first text asks for an object and the second for a subject."""
    if a.language != "en" or b.language != "en" or not _OBJECT.search(a.line):
        return False
    asks_subject = bool(_SUBJECT.search(b.line)) or not _AUXILIARY.search(b.line)
    return bool(_ASKS.search(b.line)) and asks_subject and not _OBJECT.search(b.line)


def _cases(a: Words, b: Words) -> bool:
    if a.language not in _CASES or a.language != b.language:
        return False
    by, case = _CASES[a.language]
    acts = _ACTS[a.language]
    first, second = (case.findall(by.sub(acts, words.line)) for words in (a, b))
    return bool(first and second) and first != second


def _agents(a: Words, b: Words) -> bool:
    """Return whether the agent behind the first text's passive is no subject in the second."""
    if a.language != "en" or b.language != "en" or "by" in b.present:
        return False
    for place, word in enumerate(a.lower):
        if word != "by" or place == 0 or not _PERFECT.search(a.lower[place - 1]):
            continue
        behind = (n for n in range(place + 1, len(a.lower)) if a.lower[n] not in _DETERMINERS)
        agent, verb = next(behind, None), a.stems[place - 1]
        if agent is None or a.stems[agent] not in b.stems or verb not in b.stems:
            continue
        if b.stems.index(a.stems[agent]) > b.stems.index(verb):
            return True
    return False


def _operators(a: Words, b: Words) -> bool:
    first, second = ([w for w in words.lower if w in _OPERATORS] for words in (a, b))
    return first != second and sorted(first) == sorted(second)


def _restricted(a: Words, b: Words) -> bool:
    """Return whether `only` stands before different words."""
    first, second = (
        [
            next((words.stems[m] for m in range(n + 1, len(words.lower))
                  if words.lower[m] not in _DETERMINERS), "")
            for n, word in enumerate(words.lower)
            if word in _RESTRICTS
        ]
        for words in (a, b)
    )  # fmt: skip
    return bool(first and second) and first != second


def _clauses(a: Words, b: Words) -> bool:
    """Return whether what stands before and after the same conjunction has changed sides."""
    for word in _CLAUSES & a.present & b.present:
        before_a, after_a = _sides(a, word)
        before_b, after_b = _sides(b, word)
        if before_a & after_b and after_a & before_b:
            return True
    return False


def _sides(words: Words, conjunction: str) -> tuple[set[str], set[str]]:
    place = words.lower.index(conjunction)
    before = {words.stems[n] for n in words.content if n < place}
    after = {words.stems[n] for n in words.content if n > place}
    return before - after, after - before


def _repeated(a: Words, b: Words) -> bool:
    """Return whether words that occur more than once in both stand in another order."""
    sequences = []
    for words in (a, b):
        stems = [words.stems[n] for n in words.content]
        sequences.append([name for name in stems if stems.count(name) > 1])
    first, second = sequences
    return first != second and len(set(first)) > 1 and sorted(first) == sorted(second)
