"""Fits the linear model and chooses its threshold with a certified recall of answers. Pure."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.context.pairs import Need, Pair
from serving.context.pruning import Divided, Part
from serving.context.ranking import EncoderName, Floats, Model, Ranker
from serving.contracts.errors import InvalidArgument
from serving.reporting.intervals import clopper_pearson

TARGET_RECALL = 0.97
CONFIDENCE = 0.95
_FOLDS = 5
_PENALTY = 0.01
_STEPS = 50


@dataclass(frozen=True, slots=True)
class Example:
    """A pair's features, (questions, units, features), and for each need the units that hold it."""

    features: Floats
    holders: tuple[NDArray[np.bool_], ...]
    group: str


def parts_of(pair: Pair) -> list[Part]:
    """Return a pair's context as an application would send it: numbered passages with titles."""
    return [
        Part(f"Document [{number}](Title: {title}) {text}" if title else text, title)
        for number, (title, text) in enumerate(pair.documents, 1)
    ]


def example(pair: Pair, ranker: Ranker) -> Example:
    """Return a reachable pair's example. Blocking."""
    divided = Divided.of(parts_of(pair))
    holders = tuple(_holders(need, divided) for need in pair.needs)
    return Example(ranker.features(pair.question, divided.passages), holders, pair.group)


def _holders(need: Need, divided: Divided) -> NDArray[np.bool_]:
    aliases = [alias.casefold() for alias in need.aliases]
    return np.array(
        [
            part in need.documents and any(alias in text.casefold() for alias in aliases)
            for (part, _), text in zip(divided.candidates, divided.passages.texts, strict=True)
        ],
        bool,
    )


def fit(
    examples: Sequence[Example],
    certified_on: Sequence[Example],
    encoder: EncoderName,
    ranker: Ranker,
) -> Model:
    """Return the model of the examples.

    certified_on: a part of the examples, on which the threshold is certified; each is scored by a
    model that did not see its group. Raises InvalidArgument where they are too few.
    """
    usable = [e for e in examples if all(h.any() for h in e.holders)]
    certified = [e for e in certified_on if all(h.any() for h in e.holders)]
    margins = sorted(_out_of_fold(usable, certified))
    lost = _allowed_losses(len(margins))
    kept = len(margins) - lost
    weights = _solve(usable)
    return Model(
        encoder=encoder,
        features=ranker.names,
        weights=tuple(round(float(w), 5) for w in weights[:-1]),
        bias=round(float(weights[-1]), 5),
        threshold=math.floor(margins[lost] * 1e6) / 1e6,
        target_recall=TARGET_RECALL,
        recall=round(kept / len(margins), 4),
        recall_lower=round(lower_bound(kept, len(margins)), 4),
        confidence=CONFIDENCE,
        pairs=len(margins),
        texts=_digest(usable),
    )


def lower_bound(kept: int, of: int) -> float:
    """Return the one-sided Clopper-Pearson lower bound of a share at CONFIDENCE."""
    return clopper_pearson(kept, of, 2 * CONFIDENCE - 1).low


def refuse_too_few(pairs: int) -> None:
    """Raise InvalidArgument where so many pairs cannot certify the target."""
    _allowed_losses(pairs)


def is_usable(pair: Pair) -> bool:
    """Return whether a model can be fitted to a pair: an answer, in a context of several units."""
    return pair.is_reachable and bool(Divided.of(parts_of(pair)).passages.texts)


def _allowed_losses(pairs: int) -> int:
    """Return the most answers that may be lost where the lower bound still reaches the target."""
    allowed = -1
    while allowed + 1 < pairs and lower_bound(pairs - allowed - 1, pairs) >= TARGET_RECALL:
        allowed += 1
    if allowed < 0:
        least = math.ceil(math.log(1 - CONFIDENCE) / math.log(TARGET_RECALL))
        raise InvalidArgument(
            f"{pairs} pairs with a reachable answer cannot certify a recall of {TARGET_RECALL}",
            field="FILE",
            fix=f"give at least {least}",
        )
    return allowed


def _out_of_fold(examples: Sequence[Example], certified: Sequence[Example]) -> list[float]:
    """Return for each pair the highest threshold that keeps all its answers."""
    margins: list[float] = []
    for fold in range(_FOLDS):
        scored = [e for e in certified if _fold(e.group) == fold]
        if not scored:
            continue
        weights = _solve([e for e in examples if _fold(e.group) != fold])
        for one in scored:
            scores = _sigmoid((one.features @ weights[:-1]).max(axis=0) + weights[-1])
            margins.append(float(min(scores[holder].max() for holder in one.holders)))
    return margins


def _fold(group: str) -> int:
    return hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[0] % _FOLDS


def _solve(examples: Sequence[Example]) -> NDArray[np.float64]:
    """Return the weights and the bias of a logistic regression, by Newton's method.

    A pair's holders weigh as much as its other units together.
    """
    if not examples:
        raise InvalidArgument(
            "the pairs are too few or too much alike to fit a model", field="FILE", fix="give more"
        )
    rows, labels, shares = [], [], []
    for one in examples:
        positive = np.logical_or.reduce(one.holders)
        # Of the whole question: its parts are only to find what the whole one hides.
        rows.append(one.features[0])
        labels.append(positive.astype(np.float64))
        others = max(int((~positive).sum()), 1)
        shares.append(np.where(positive, 0.5 / positive.sum(), 0.5 / others))
    matrix = np.concatenate(rows).astype(np.float64)
    matrix = np.c_[matrix, np.ones(len(matrix))]
    label, share = np.concatenate(labels), np.concatenate(shares)
    penalty = np.r_[np.full(matrix.shape[1] - 1, _PENALTY), 1e-6]
    weights = np.zeros(matrix.shape[1])
    for _ in range(_STEPS):
        chance = _sigmoid(matrix @ weights)
        gradient = matrix.T @ (share * (chance - label)) + penalty * weights
        curvature = (matrix * (share * chance * (1 - chance))[:, None]).T @ matrix
        step = np.linalg.solve(curvature + np.diag(penalty + 1e-9), gradient)
        weights -= step
        if float(np.abs(step).max()) < 1e-8:
            break
    return weights


def _sigmoid(values: NDArray[np.floating]) -> NDArray[np.float64]:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -40, 40))), np.float64)


def _digest(examples: Sequence[Example]) -> str:
    total = hashlib.sha256()
    for one in examples:
        total.update(np.round(one.features, 3).astype(np.float32).tobytes())
    return total.hexdigest()[:16]
