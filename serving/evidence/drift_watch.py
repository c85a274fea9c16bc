"""Compares recent inputs of each held claim with those that earned it, in one gateway replica.

It sees every input, audited or not, and only raises the audit rate: the watch alone suspends.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from serving.contracts.evidence import Claim, ClaimEvent, ClaimState
from serving.evidence.statistics.drift import (
    Embedding,
    embedding_of,
    embeddings_moved,
    escalations_surged,
    label_shares_moved,
)

WINDOW = 100
"""Inputs of one look. Looks do not overlap."""

_BASELINE_VECTORS = 500
_MAX_CLAIMS = 1_000

Vector = NDArray[np.float32]


@dataclass(slots=True)
class _Window:
    """The inputs since the last look, under one hypothesis. labels: of accepted answers."""

    hypothesis: int
    inputs: int = 0
    escalated: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    vectors: list[Vector] = field(default_factory=list)


@dataclass(slots=True)
class _Vectors:
    """The vectors with which later ones are compared: the first that this replica saw."""

    hypothesis: int
    first: list[Vector] = field(default_factory=list)
    embedding: Embedding | None = None


class DriftWatch:
    """Counts inputs on the request path, and looks at full windows in the worker's thread.

    Label shares and escalations are compared with those that earned the claim, in every replica and
    after a restart. Vectors are not in the claim: they are compared with the first 500 that this
    replica saw under it. Bounded: 1,000 claims, of which the oldest is forgotten.
    """

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._windows: dict[str, _Window] = {}
        self._full: dict[str, _Window] = {}
        self._vectors: dict[str, _Vectors] = {}

    def observe(
        self, name: str, hypothesis: int, accepted: str | None, vector: Vector | None = None
    ) -> None:
        """Count one input under a held claim. Takes microseconds.

        accepted: the answer's label, empty where the task has none; None where it was below the
        threshold.
        """
        window = self._windows.get(name)
        if window is None or window.hypothesis != hypothesis:
            if len(self._windows) >= _MAX_CLAIMS:
                del self._windows[next(iter(self._windows))]
            window = self._windows[name] = _Window(hypothesis)
        window.inputs += 1
        if accepted is None:
            window.escalated += 1
        elif accepted:
            window.labels[accepted] += 1
        if vector is not None:
            window.vectors.append(vector)
        if window.inputs >= WINDOW:
            self._full[name] = window
            del self._windows[name]

    def signals(self, claims: Iterable[Claim]) -> list[ClaimEvent]:
        """Return an event for each held claim whose last full window differs: milliseconds."""
        found = []
        for claim in claims:
            window = self._full.pop(claim.id, None)
            if window is None or claim.state is not ClaimState.HELD or claim.action is None:
                continue
            if window.hypothesis != claim.action.hypothesis:
                continue
            reason = self._difference(claim, window)
            if reason is not None:
                event = ClaimEvent(
                    claim.id, "drifted", reason, "narrowgate", self._now(), claim.sequence,
                    claim.action,
                )  # fmt: skip
                found.append(event)
        return found

    def _difference(self, claim: Claim, window: _Window) -> str | None:
        base = claim.earned_from
        escalated = (base.inputs - base.accepted, base.inputs)
        if escalations_surged(escalated, (window.escalated, window.inputs)):
            return "the share of inputs below the threshold rose"
        labels = sorted({*base.labels, *window.labels})
        before = np.array([base.labels.get(label, 0) for label in labels], np.int64)
        recent = np.array([window.labels[label] for label in labels], np.int64)
        if label_shares_moved(before, recent):
            return "the label shares of accepted answers changed"
        if self._moved(claim.id, window):
            return "the texts changed"
        return None

    def _moved(self, name: str, window: _Window) -> bool:
        """Return whether the mean vector moved; first collect what it is compared with."""
        if not window.vectors:
            return False
        known = self._vectors.get(name)
        if known is None or known.hypothesis != window.hypothesis:
            if len(self._vectors) >= _MAX_CLAIMS:
                del self._vectors[next(iter(self._vectors))]
            known = self._vectors[name] = _Vectors(window.hypothesis)
        if known.embedding is None:
            known.first += window.vectors
            if len(known.first) >= _BASELINE_VECTORS:
                known.embedding = embedding_of(np.array(known.first, np.float64))
                known.first = []
            return False
        return embeddings_moved(known.embedding, np.array(window.vectors, np.float64))
