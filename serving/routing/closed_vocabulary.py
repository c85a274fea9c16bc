"""The closed vocabulary of requests: what a word of an instruction may be, by language and task.

A request is explained if every word of it has a role: politeness, a verb of asking, the task's own
nouns, labels, a demand that the task's output satisfies, or a reference to the text. One word
without a role refuses the request, because it may ask for something else.
"""

import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources

import yaml

from serving.routing.grammar import LANGUAGES

CLOSED_TASKS = ("sentiment", "topic", "ner", "translation")
# A word of fewer letters is too near to other words to be read as a typing error.
_LEAST_TYPO_CHARS = 6
_LEAST_SWAPPED_CHARS = 3
# With one letter changed, many words are another word: "wertung", "werbung".
_LEAST_CHANGED_CHARS = 8
# More words without a role are not looked up as typing errors: this bounds the time.
_MAX_TYPOS = 3
_NEGATION_REACH = 7
# Endings of verbs and adjectives, folded. English forms are few and listed.
_ENDINGS: Mapping[str, frozenset[str]] = {
    "de": frozenset(
        ("en", "e", "st", "est", "t", "et", "te", "ten", "er", "es", "em", "end", "ende", "enden")
    ),
    "fr": frozenset(
        ("e", "es", "ez", "ent", "er", "ir", "re", "t", "ons", "ee", "ees", "ant", "rais", "rait",
         "riez", "ais", "ait", "issez", "erait", "erais", "eriez", "era", "eras", "erez", "is",
         "it", "issent", "issant", "irait", "irais", "iriez")
    ),
    "es": frozenset(
        ("a", "o", "e", "as", "es", "an", "en", "ar", "er", "ir", "amos", "emos", "ado", "ada",
         "ados", "adas", "ando", "iendo", "ido", "ida", "arla", "arlo", "arme", "erme", "irme",
         "ame", "eme", "alo", "ala", "alos", "alas", "ase", "ese", "ara", "iera", "aria", "arias",
         "arian", "eria", "erias", "erian", "iria", "irias", "irian", "ad", "ed", "id", "ais",
         "adme", "arnos", "ernos", "irnos", "anos", "enos", "arlos", "arlas", "erlo", "erla",
         "erlos", "erlas", "irlo", "irla", "irlos", "irlas", "elo", "ela", "elos", "elas")
    ),
}  # fmt: skip
# Of Spanish verbs: "ponme", "darnos", "traducelo".
_CLITICS = ("me", "nos", "lo", "la", "los", "las", "le", "melo", "mela", "noslo", "nosla")
_LEAST_VERB_CHARS = 3
_PLURALS = ("s", "es", "e", "en", "er", "n")
_LEAST_STEM_CHARS = 4
# A source of two words: "from an employee survey:".
_SOURCE_WORDS = 3
_TEXT_FOLLOWS = (":", "§text")
_MOST_ENDING_CHARS = 5
_MARK_REACH = 3


@lru_cache(maxsize=4096)
def fold(word: str) -> str:
    """Return a word or a clause without accents, in lower case."""
    if word.isascii():
        return word.lower()
    plain = unicodedata.normalize("NFKD", word.lower().replace("ß", "ss"))
    return "".join(letter for letter in plain if not unicodedata.combining(letter))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The words of one language, folded.

    tasks: for each task, the words that need no context. text: nouns for a text. kinds: of texts,
    only beside such a noun. purposes: only after "for our" or the like. negated: only after a
    negation. places: only after a preposition. compounds: of a kind and a noun. stems: of
    the tasks' words. asking: words of requests and of their format.
    """

    tasks: Mapping[str, frozenset[str]]
    text: frozenset[str]
    kinds: frozenset[str]
    purposes: frozenset[str]
    negated: frozenset[str]
    places: frozenset[str]
    compounds: frozenset[str]
    stems: Mapping[str, frozenset[str]]
    asking: frozenset[str]
    language: str

    def unexplained(self, words: Sequence[str], task: str) -> Iterator[int]:
        """Yield the positions of the words without a role."""
        for position in range(len(words)):
            if not self._explains(words, position, task):
                yield position

    def _is_inflected(self, word: str, task: str) -> bool:
        """Return whether a word is another form of a known one, but no plural of a text."""
        endings = _ENDINGS.get(self.language)
        if endings is None or len(word) <= _LEAST_STEM_CHARS:
            return False
        if any(word.removesuffix(end) in self.text for end in _PLURALS):
            return False
        if self.language == "es" and any(
            word.endswith(clitic)
            and len(word) - len(clitic) >= _LEAST_VERB_CHARS
            and word.removesuffix(clitic) in self.tasks[task]
            for clitic in _CLITICS
        ):
            return True
        stems = self.stems[task]
        return any(
            word[:cut] in stems and word[cut:] in endings
            for cut in range(max(_LEAST_STEM_CHARS, len(word) - _MOST_ENDING_CHARS), len(word))
        )

    def _explains(self, words: Sequence[str], position: int, task: str) -> bool:
        word = words[position]
        if word in self.tasks[task] or word in self.compounds or self._is_inflected(word, task):
            return True
        before = words[max(0, position - _MARK_REACH) : position]
        if word in self.kinds and any(
            one in self.text or one in self.compounds
            for one in (*before, *words[position + 1 : position + 1 + _MARK_REACH])
        ):
            return True
        if not context("purpose_marks").isdisjoint(before) and (
            word in self.purposes
            or any(word.removesuffix(end) in self.compounds for end in ("n", "en", "e"))
        ):
            return True
        if self._is_source(words, position):
            return True
        if word in self.places and not context("place_marks").isdisjoint(before):
            return True
        return word in self.negated and _is_negated(words, position)

    def _is_source(self, words: Sequence[str], position: int) -> bool:
        """Return whether a word says who wrote the text or where it is from, and nothing follows.

        "A sentence from a contract: …", "Rückmeldung einer Teilnehmerin: …".
        """
        end = min(position + _SOURCE_WORDS, len(words))
        last = next((n for n in range(position, end) if words[n] in _TEXT_FOLLOWS), None)
        if last is None:
            return False
        for start in range(max(0, position - _SOURCE_WORDS), position):
            if words[start] not in context("source_articles"):
                continue
            marked = words[start - 1] in context("source_marks") if start else False
            noun = words[start - 2] if marked and start > 1 else words[start - 1] if start else ""
            genitive = self.language == "de" and words[start] in ("einer", "eines")
            if (marked or genitive) and (noun in self.text or noun in self.compounds):
                return True
        return False


def _is_negated(words: Sequence[str], position: int) -> bool:
    start = max(0, position - _NEGATION_REACH)
    for number in range(position - 1, start - 1, -1):
        if words[number] in context("negations"):
            return True
        if words[number] in context("reversals"):
            return False
    return not context("negations").isdisjoint(words[position + 1 : position + 3])


@cache
def context(role: str) -> frozenset[str]:
    """Return the words of a role in any language, such as `negations`. Reads a file once."""
    path = resources.files("serving.routing.texts") / "closed" / "context.yaml"
    content: Mapping[str, str] = yaml.safe_load(path.read_text("utf-8"))
    return frozenset(content[role].split())


@cache
def vocabulary(language: str) -> Vocabulary:
    """Return the shipped vocabulary of a language. Reads a file once, blocking."""
    path = resources.files("serving.routing.texts") / "closed" / f"{language}.yaml"
    content: Mapping[str, str] = yaml.safe_load(path.read_text("utf-8"))
    roles = {role: _folded(words) for role, words in content.items()}
    common = roles["all"] | roles["text"] | {":", "§text"}
    return Vocabulary(
        {
            task: common
            | roles[task]
            | ({"§lang"} if task == "translation" else {f"§{task}"} | roles["labels"])
            for task in CLOSED_TASKS
        },
        roles["text"], roles["kinds"], roles["purposes"], roles["negated"], roles["places"],
        _compounds(roles["kinds"], roles["text"]) if language == "de" else frozenset(),
        {
            task: _stems(common | roles[task], _ENDINGS.get(language, ())) for task in CLOSED_TASKS
        },
        roles["asking"], language,
    )  # fmt: skip


def _stems(words: Collection[str], endings: Collection[str]) -> frozenset[str]:
    """Return the stems of words: what is left without one of the endings."""
    return frozenset(
        word[: -len(end)]
        for word in words
        for end in endings
        if word.endswith(end) and len(word) - len(end) >= _LEAST_STEM_CHARS
    )


def _compounds(kinds: Collection[str], text: Collection[str]) -> frozenset[str]:
    """Return the German words of a kind and a noun for a text, such as Hotelbewertung."""
    return frozenset(
        f"{kind}{link}{noun}" for kind in kinds for link in ("", "s", "n") for noun in text
    )


def _folded(words: str) -> frozenset[str]:
    found = words.replace("-", " ").replace("'", " ").split()
    umlauts = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})
    return frozenset(fold(word) for one in found for word in (one, one.translate(umlauts)))


def unexplained_words(clauses: Sequence[str], task: str) -> list[str]:
    """Return the words without a role in a request for a task, of the first clause that has any.

    A clause is read in the language that leaves the fewest.
    """
    for clause in clauses:
        if left := _unexplained(fold(clause), task):
            return list(left)
    return []


# A request's readings share most of their clauses.
@lru_cache(maxsize=1024)
def _unexplained(clause: str, task: str) -> tuple[str, ...]:
    words = clause.split()
    left = [list(vocabulary(language).unexplained(words, task)) for language in LANGUAGES]
    if not all(left):
        # Typing errors are looked for only where no language explains all: that takes longest.
        return ()
    best: list[str] | None = None
    for language, positions in zip(LANGUAGES, left, strict=True):
        words_left = _left_over(words, positions, task, vocabulary(language))
        if best is None or len(words_left) < len(best):
            best = words_left
        if not words_left:
            break
    return tuple(best or ())


def _left_over(words: list[str], left: list[int], task: str, known: Vocabulary) -> list[str]:
    if len(left) > _MAX_TYPOS:
        return [words[position] for position in left]
    corrected = list(words)
    for position in left:
        word = mistyped(words[position], known, task)
        if word is None:
            return [words[position] for position in left]
        corrected[position] = word
    return [corrected[position] for position in known.unexplained(corrected, task)]


@lru_cache(maxsize=1)
def _asking() -> frozenset[str]:
    return frozenset(word for language in LANGUAGES for word in vocabulary(language).asking)


def names_text(word: str) -> bool:
    """Return whether a word is a noun for a text in any language."""
    return any(fold(word) in vocabulary(language).text for language in LANGUAGES)


def asks(clause: str, within: int | None = None) -> bool:
    """Return whether one of a clause's first words, or any, is of a request or of its format."""
    words = clause.split()[:within]
    return any((word[0] == "§" and word != "§text") or fold(word) in _asking() for word in words)


def mistyped(word: str, known: Vocabulary, task: str) -> str | None:
    """Return the word of a vocabulary that one typing error turned into `word`, or None.

    The error is inside the word: an ending makes another word of it ("text", "texts").
    """
    if len(word) < _LEAST_SWAPPED_CHARS or not word.isalpha():
        return None
    for one in _by_start(known, task).get(word[0], ()):
        if abs(len(one) - len(word)) < 2 and _one_error(word, one):
            return one
    return None


@lru_cache(maxsize=32)
def _starts(words: frozenset[str]) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for word in sorted(words):
        if len(word) >= _LEAST_SWAPPED_CHARS:
            found.setdefault(word[0], []).append(word)
    return {start: tuple(those) for start, those in found.items()}


def _by_start(known: Vocabulary, task: str) -> Mapping[str, tuple[str, ...]]:
    return _starts(known.tasks[task])


def _one_error(word: str, other: str) -> bool:
    """Return whether two words differ by two letters swapped, or one left out, added or changed.

    Other than a swap, the error is not at the end, and not in a short word.
    """
    start = 0
    while start < min(len(word), len(other)) and word[start] == other[start]:
        start += 1
    end = 0
    while end < min(len(word), len(other)) - start and word[-1 - end] == other[-1 - end]:
        end += 1
    mine, its = word[start : len(word) - end], other[start : len(other) - end]
    if len(mine) == len(its) == 2:
        return mine == its[::-1]
    if end == 0 or len(word) < _LEAST_TYPO_CHARS:
        return False
    if len(mine) + len(its) == 1:
        return True
    if len(mine) == len(its) == 1:
        return len(word) >= _LEAST_CHANGED_CHARS
    return False
