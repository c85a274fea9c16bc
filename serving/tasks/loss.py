"""The loss of an answer against the right one, in [0, 1]. The gate and evidence both use it."""

import string
from collections import Counter
from collections.abc import Sequence

from serving.contracts.answer import Entity, Translation, Value
from serving.contracts.task_spec import (
    ClassificationSpec,
    ExtractionSpec,
    TaskSpec,
    TranslationSpec,
)

Right = Value | tuple[tuple[str, str], ...]
"""The right answer: a label, entities or their sorted (text, type) pairs, a translation or its
text."""

_CHARACTER_ORDER = 6
_WORD_ORDER = 2
_BETA_SQUARED = 4.0
_PUNCTUATION = frozenset(string.punctuation)


def loss_of(spec: TaskSpec, value: Value, right: Right, *, valid: bool = True) -> float:
    """Return the loss that the spec names.

    valid: the answer could be read in full; otherwise its loss is 1. `exact` compares entities
    without their places. The F1 of two empty sets is 1.
    """
    if not valid:
        return 1.0
    match spec:
        case ClassificationSpec():
            return float(value != right)
        case ExtractionSpec():
            found, wanted = entity_pairs(value), entity_pairs(right)
            if spec.loss == "exact":
                return float(found != wanted)
            return 1.0 - entity_f1(found, wanted)
        case TranslationSpec():
            return float(sentence_chrf(_text(value), _text(right)) < spec.acceptable)


def entity_pairs(entities: Right) -> list[tuple[str, str]]:
    """Return entities as sorted (text, type) pairs."""
    assert isinstance(entities, tuple)
    return sorted(
        (item.text, item.type) if isinstance(item, Entity) else (item[0], item[1])
        for item in entities
    )


def entity_f1(found: Sequence[tuple[str, str]], wanted: Sequence[tuple[str, str]]) -> float:
    """Return the F1 of (text, type) pairs, counted with repetition; 1 where there are none."""
    total = len(found) + len(wanted)
    if total == 0:
        return 1.0
    return 2.0 * sum((Counter(found) & Counter(wanted)).values()) / total


def sentence_chrf(hypothesis: str, reference: str) -> float:
    """Return the chrF++ of one sentence, in [0, 1].

    Character n-grams to order 6 without white space, word n-grams to order 2, beta 2; the mean of
    precision and recall is over the orders that both sentences have. Popovic, "chrF++" (WMT 2017).
    """
    precision = recall = orders = 0.0
    for found, wanted in zip(_ngrams(hypothesis), _ngrams(reference), strict=True):
        n_found, n_wanted = sum(found.values()), sum(wanted.values())
        if n_found and n_wanted:
            matched = sum((found & wanted).values())
            precision += matched / n_found
            recall += matched / n_wanted
            orders += 1
    if precision + recall == 0.0:
        return 0.0
    precision, recall = precision / orders, recall / orders
    return (1.0 + _BETA_SQUARED) * precision * recall / (_BETA_SQUARED * precision + recall)


def _ngrams(text: str) -> list[Counter[tuple[str, ...]]]:
    characters = tuple("".join(text.split()))
    words = tuple(piece for word in text.split() for piece in _pieces(word))
    return [
        *(_counted(characters, n) for n in range(1, _CHARACTER_ORDER + 1)),
        *(_counted(words, n) for n in range(1, _WORD_ORDER + 1)),
    ]


def _counted(items: tuple[str, ...], n: int) -> Counter[tuple[str, ...]]:
    return Counter(items[start : start + n] for start in range(len(items) - n + 1))


def _pieces(word: str) -> tuple[str, ...]:
    """Return a word and the punctuation mark at its end or, where there is none, its beginning."""
    if len(word) > 1 and word[-1] in _PUNCTUATION:
        return word[:-1], word[-1]
    if len(word) > 1 and word[0] in _PUNCTUATION:
        return word[0], word[1:]
    return (word,)


def _text(translation: Right) -> str:
    return translation.text if isinstance(translation, Translation) else str(translation)
