"""How many questions are answered from the cache, and how many of them wrongly. Pure."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.cache.eligible import ineligible_text
from serving.cache.guards.refusal import refusal_at
from serving.cache.guards.words import Words
from serving.cache.semantic import CANDIDATES, THRESHOLDS
from serving.contracts.errors import InvalidArgument
from serving.evidence.statistics.intervals import Interval, clopper_pearson

Encode = Callable[[Sequence[str]], NDArray[np.float32]]

FIXED_COSINES = (0.85, 0.90, 0.95)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two questions. duplicate: whether one answer is right for both."""

    a: str
    b: str
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a stream. answer: questions of one answer have the same."""

    text: str
    answer: str


@dataclass(frozen=True, slots=True)
class Measured:
    """One way of serving. hits: served. wrong: of these. right: pairs or questions with an answer.

    guarded: whether guards and eligibility took part. refused: what the cosine served, by reason.
    """

    name: str
    cosine: float
    guarded: bool
    total: int
    right: int
    hits: int
    wrong: int
    refused: Mapping[str, int]

    @property
    def wrong_share(self) -> Interval | None:
        """Return the share of wrong hits with its exact 95 % interval; None without a hit."""
        return clopper_pearson(self.wrong, self.hits) if self.hits else None

    @property
    def recall(self) -> Interval | None:
        """Return the share that was served of what could be; None where nothing could."""
        return clopper_pearson(self.hits - self.wrong, self.right) if self.right else None

    @property
    def served_changed(self) -> Interval | None:
        """Return the share that was served of what must not be; None where there is none."""
        count = self.total - self.right
        return clopper_pearson(self.wrong, count) if count else None

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        shares = {
            "wrong_share": self.wrong_share, "recall": self.recall,
            "served_of_different": self.served_changed,
        }  # fmt: skip
        return {
            "name": self.name, "cosine": self.cosine, "guarded": self.guarded, "total": self.total,
            "same": self.right, "hits": self.hits, "wrong": self.wrong,
            "refused": dict(self.refused),
            **{name: None if one is None else {"share": one.mean, "interval": [one.low, one.high]}
               for name, one in shares.items()},
        }  # fmt: skip


def read_pairs(rows: Sequence[Mapping[str, Any]], file: str) -> list[Pair]:
    """Return pairs from rows with a, b and duplicate. Raises InvalidArgument."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("duplicate"), bool):
            raise InvalidArgument(
                f"{file}, row {number}: `duplicate` is {row.get('duplicate')!r}, not true or false",
                field="FILE", fix='write {"a": TEXT, "b": TEXT, "duplicate": true or false}',
            )  # fmt: skip
    return [Pair(row["a"], row["b"], row["duplicate"]) for row in rows]


def measure_pairs(pairs: Sequence[Pair], encode: Encode) -> list[Measured]:
    """Return every way of serving: would one question of a pair get the other's answer?"""
    if not pairs:
        raise InvalidArgument("the file holds no pair", field="FILE", fix="add one pair a line")
    first, second = (encode([getattr(pair, side) for pair in pairs]) for side in ("a", "b"))
    cosines = np.einsum("ij,ij->i", first, second)
    total, right = len(pairs), sum(pair.duplicate for pair in pairs)
    found = []
    for name, threshold, guarded in _ways():
        near = [n for n in range(total) if cosines[n] >= threshold]
        reasons = {
            n: _reason(pairs[n].a, pairs[n].b, cosines[n], threshold) if guarded else None
            for n in near
        }
        served = [n for n, reason in reasons.items() if reason is None]
        refused = Counter(reason for reason in reasons.values() if reason is not None)
        wrong = sum(not pairs[n].duplicate for n in served)
        found.append(
            Measured(name, threshold, guarded, total, right, len(served), wrong, dict(refused))
        )
    return found


def measure_stream(questions: Sequence[Question], encode: Encode) -> list[Measured]:
    """Return every way of serving questions in order, each looked up among those before it.

    A question that is served is not stored. right: questions whose answer was asked before.
    """
    if not questions:
        raise InvalidArgument("the file holds no question", field="FILE", fix="add one a line")
    vectors = encode([question.text for question in questions])
    answers = [question.answer for question in questions]
    right = len(answers) - len(set(answers))
    return [_served_stream(questions, vectors, way, right) for way in _ways()]


def _served_stream(
    questions: Sequence[Question],
    vectors: NDArray[np.float32],
    way: tuple[str, float, bool],
    right: int,
) -> Measured:
    name, cosine, guarded = way
    stored: list[int] = []
    refused: Counter[str] = Counter()
    hits = wrong = 0
    for n, question in enumerate(questions):
        match = None
        similarities = vectors[stored] @ vectors[n] if stored else np.zeros(0, np.float32)
        for place in np.argsort(-similarities, kind="stable")[:CANDIDATES]:
            if similarities[place] < cosine:
                break
            other = questions[stored[int(place)]]
            reason = (
                _reason(question.text, other.text, similarities[place], cosine) if guarded else None
            )
            if reason is None:
                match = other
                break
            refused[reason] += 1
        if match is None:
            stored.append(n)
        else:
            hits += 1
            wrong += match.answer != question.answer
    return Measured(name, cosine, guarded, len(questions), right, hits, wrong, dict(refused))


def _ways() -> Iterator[tuple[str, float, bool]]:
    for name, cosine in THRESHOLDS.items():
        yield f"guards, {name}", cosine, True
    for cosine in FIXED_COSINES:
        yield "cosine alone", cosine, False


def _reason(a: str, b: str, similarity: float, threshold: float) -> str | None:
    if a == b:
        return None
    unfit = ineligible_text(a) or ineligible_text(b)
    if unfit is not None:
        return f"not eligible: {unfit}"
    return refusal_at(Words(a), Words(b), similarity, threshold)
