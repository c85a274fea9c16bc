"""The learned head that reads an instruction clause by clause."""

import base64
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.routing.clauses import BUCKETS, features
from serving.routing.grammar import BENIGN, FOREIGN

# Steps of a weight's int8: rounding changes a class's log-odds by less than 0.05.
_STEPS = 127
# A request's readings share most of their clauses; these are those of a few requests.
_RECENT_CLAUSES = 64


@dataclass(frozen=True, slots=True)
class ClauseReading:
    """What the clauses of one instruction ask for.

    task: the most probable task. certainty: the least probability of any clause to belong to it.
    worst: the clause that decides this. core: the clauses that ask for the task.
    """

    task: str
    certainty: float
    worst: str


@dataclass(frozen=True, slots=True)
class ClauseHead:
    """A softmax over the tasks, `benign` and `foreign`, of a clause's hashed features.

    classes: in the order of the rows. weights: (classes, BUCKETS) int8. scale: (classes,) float32,
    of one step of a weight. bias: (classes,). known: hashes of the words that are known.
    least: the certainty from which a reading is taken, certified on instructions that were not
    trained on.
    """

    classes: tuple[str, ...]
    weights: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.float32]
    known: frozenset[int]
    least: float
    _recent: Callable[[str], NDArray[np.float64]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_recent", lru_cache(_RECENT_CLAUSES)(self.probabilities))

    def probabilities(self, clause: str) -> NDArray[np.float64]:
        """Return (classes,): each class's probability. clause: normalised."""
        found = features(clause, self.known)
        total = self.weights[:, found].sum(axis=1, dtype=np.int64) * self.scale
        scores = (total / np.sqrt(max(len(found), 1)) + self.bias).astype(np.float64)
        exps = np.exp(scores - scores.max())
        return exps / exps.sum()  # type: ignore[no-any-return]

    def read(self, clauses: Sequence[str], tasks: Sequence[str]) -> ClauseReading | None:
        """Return the most probable task of an instruction; None for none of these tasks."""
        offered = [task for task in tasks if task in self.classes]
        if not clauses or not offered:
            return None
        rows = np.array([self._recent(clause) for clause in clauses])
        benign = rows[:, self.classes.index(BENIGN)]
        readings = []
        for task in offered:
            own = rows[:, self.classes.index(task)]
            fits = own + benign
            worst = int(fits.argmin())
            readings.append(ClauseReading(task, float(min(own.max(), fits[worst])), clauses[worst]))
        return max(readings, key=lambda reading: reading.certainty)


def quantised(
    classes: Sequence[str],
    weights: NDArray[np.float64],
    bias: NDArray[np.float64],
    known: frozenset[int],
    least: float,
) -> ClauseHead:
    """Return a head whose weights are rounded to int8, one scale a class."""
    scale = np.maximum(np.abs(weights).max(axis=1), 1e-9) / _STEPS
    steps = np.round(weights / scale[:, None]).astype(np.int8)
    return ClauseHead(
        tuple(classes), steps, scale.astype(np.float32), bias.astype(np.float32), known, least
    )


def clauses_to(head: ClauseHead) -> dict[str, Any]:
    """Return a head as JSON. Weights are base64 of int8, row by row; `digest` is theirs."""
    weights = head.weights.tobytes()
    return {
        "classes": list(head.classes),
        "buckets": head.weights.shape[1],
        "weights": base64.b64encode(zlib.compress(weights, 9)).decode(),
        "digest": hashlib.sha256(weights).hexdigest(),
        "scale": head.scale.tolist(),
        "bias": head.bias.tolist(),
        "known": base64.b64encode(np.array(sorted(head.known), "<u4").tobytes()).decode(),
        "least": head.least,
    }


def clauses_from(content: Mapping[str, Any]) -> ClauseHead:
    """Return the head of a JSON object. Raises ValueError, KeyError or TypeError where damaged."""
    classes = tuple(content["classes"])
    size = len(classes) * BUCKETS
    if content["buckets"] != BUCKETS:
        raise ValueError(f"clause weights have {content['buckets']!r} buckets, needs {BUCKETS}")
    inflate = zlib.decompressobj()
    try:
        weights = inflate.decompress(base64.b64decode(content["weights"], validate=True), size + 1)
    except zlib.error as error:
        raise ValueError(f"clause weights cannot be unpacked: {error}") from error
    if len(weights) != size or hashlib.sha256(weights).hexdigest() != content["digest"]:
        raise ValueError("clause weights do not match their digest")
    known = np.frombuffer(base64.b64decode(content["known"], validate=True), "<u4")
    scale = np.array(content["scale"], np.float32)
    bias = np.array(content["bias"], np.float32)
    for name, values in (("scale", scale), ("bias", bias)):
        if values.shape != (len(classes),) or not np.isfinite(values).all():
            raise ValueError(f"clause {name} needs {len(classes)} finite numbers")
    if not {BENIGN, FOREIGN} < set(classes):
        raise ValueError(f"clause classes {classes!r} need {BENIGN!r}, {FOREIGN!r} and a task")
    return ClauseHead(
        classes,
        np.frombuffer(weights, np.int8).reshape(len(classes), BUCKETS),
        scale,
        bias,
        frozenset(known.tolist()),
        float(content["least"]),
    )
