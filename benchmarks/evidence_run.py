"""One stream through the folds of evidence: shadow, earn, watch, suspend, earn again."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from benchmarks.evidence_streams import Floats, Ints, Stream
from serving.evidence.statistics.audit_rate import AuditSchedule
from serving.evidence.statistics.earning import Earning, EarningRules, Reopened
from serving.evidence.statistics.examples import Example, Outcome
from serving.evidence.statistics.placement import (
    COMPARED_AT,
    COVERAGES,
    HORIZON,
    WIDER,
    place_thresholds,
    widest,
)
from serving.evidence.statistics.watching import Watch

SHRINKAGE = 0.9
_FOLDS = 5
_TEMPERATURES = 2.0 ** np.arange(-6.0, 2.5, 0.5)


@dataclass(frozen=True)
class Head:
    """A linear discriminant with a shrunk covariance. weights: (k, d). scale: of its scores."""

    weights: Floats
    bias: Floats
    scale: float = 1.0

    def probabilities(self, vectors: Floats) -> Floats:
        """Return (n, k), rows summing to 1; 0 for labels that it never saw."""
        scores = self.scale * (vectors @ self.weights.T + self.bias)
        scores -= scores.max(axis=1, keepdims=True)
        found: Floats = np.exp(scores)
        found /= found.sum(axis=1, keepdims=True)
        return found


def fit_head(vectors: Floats, labels: Ints, count: int) -> Head:
    """Return the head of labelled vectors. vectors: (n, d). labels: (n,)."""
    sizes = np.bincount(labels, minlength=count)
    means = np.zeros((count, vectors.shape[1]))
    np.add.at(means, labels, vectors)
    means /= np.maximum(sizes, 1)[:, None]
    centred = vectors - means[labels]
    spread = centred.T @ centred / max(1, len(labels) - int((sizes > 0).sum()))
    size = len(spread)
    shrunk = (1.0 - SHRINKAGE) * spread + (SHRINKAGE * np.trace(spread) / size + 1e-9) * np.eye(
        size
    )
    weights = np.linalg.solve(shrunk, means.T).T
    with np.errstate(divide="ignore"):
        prior = np.log(sizes / len(labels))
    return Head(weights, np.maximum(prior, -1e9) - 0.5 * (weights * means).sum(axis=1))


def cross_validated(vectors: Floats, labels: Ints, count: int) -> tuple[Head, Floats, Floats]:
    """Return the head with its temperature, and confidences and losses by cross-validation."""
    folds = np.arange(len(labels)) % _FOLDS
    raw = np.zeros((len(labels), count))
    for fold in range(_FOLDS):
        held = folds == fold
        part = fit_head(vectors[~held], labels[~held], count)
        raw[held] = vectors[held] @ part.weights.T + part.bias
    rows = np.arange(len(labels))
    best = min(_TEMPERATURES, key=lambda t: -_log_of(raw * t)[rows, labels].clip(-7.0).mean())
    logs = _log_of(raw * best)
    head = fit_head(vectors, labels, count)
    losses = (logs.argmax(axis=1) != labels).astype(np.float64)
    return Head(head.weights, head.bias, float(best)), np.exp(logs.max(axis=1)), losses


def _log_of(scores: Floats) -> Floats:
    shifted = scores - scores.max(axis=1, keepdims=True)
    logs: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


@dataclass
class Outcomes:
    """What happened on one stream. Arrays are by input; `wrong` against the right label.

    earned_at: inputs after which claims were first earned, one an episode. suspended_at: inputs.
    """

    accepted: Ints
    wrong: Ints
    differs: Ints
    audited: Ints
    earned_at: list[int] = field(default_factory=list)
    suspended_at: list[int] = field(default_factory=list)
    hypotheses: int = 0


@dataclass(frozen=True)
class Plan:
    """How a stream is run. sizes: labels of an episode at which a head is fitted again."""

    target: float
    sizes: tuple[int, ...] = tuple(100 * 2**fit for fit in range(10))
    min_groups: int = 50
    schedule: AuditSchedule = field(default_factory=AuditSchedule)


class Run:
    """A stream in progress. Labels reach it as in service: of all in shadow, then by coins."""

    def __init__(self, stream: Stream, plan: Plan, rng: np.random.Generator) -> None:
        self._stream, self._plan = stream, plan
        self._earning = Earning(EarningRules(plan.target, min_groups=plan.min_groups))
        self._watch = Watch(plan.target)
        self._coins = rng.random(len(stream.labels))
        self._proposals: dict[str, tuple[Floats, Ints]] = {}
        self._labelled: list[int] = []
        self._fitted = 0
        self._held_since = self._since_earned = 0
        n = len(stream.labels)
        self.outcomes = Outcomes(_zeros(n), _zeros(n), _zeros(n), _zeros(n))

    def all(self) -> Outcomes:
        """Run the whole stream and return what happened."""
        for place in range(len(self._stream.labels)):
            self._input(place)
        self.outcomes.hypotheses = self._earning.tested
        return self.outcomes

    def _input(self, place: int) -> None:
        earned, rate, accepts = self._earning.earned, 1.0, False
        if earned is not None:
            rate = self._plan.schedule.rate(self._held_since, 0.0)
            self._since_earned += 1
            confidence, answer = self._proposals[earned.opening.candidate]
            accepts = bool(confidence[place] >= earned.opening.threshold)
        chosen = bool(self._coins[place] < rate)
        if accepts:
            self._accept(place, int(answer[place]), chosen)
        if not accepts or chosen:
            self._learn(place, rate if chosen else None)

    def _accept(self, place: int, answer: int, chosen: bool) -> None:
        differs = answer != self._stream.reference[place]
        self._held_since += 1
        self.outcomes.accepted[place] = 1
        self.outcomes.differs[place] = differs
        self.outcomes.wrong[place] = answer != self._stream.labels[place]
        if chosen:
            self.outcomes.audited[place] = 1
            self._watch.add(float(differs))

    def _learn(self, place: int, coin: float | None) -> None:
        reference = self._stream.reference[place]
        seen = {
            name: Outcome(float(confidence[place]), float(answer[place] != reference))
            for name, (confidence, answer) in self._proposals.items()
        }
        example = Example(
            str(place), str(self._stream.groups[place]), str(place),
            float(self._stream.times_s[place]), coin, seen, label=str(reference),
        )  # fmt: skip
        if self._earning.add(example) is not None:
            self._hold(place)
        elif self._earning.earned is not None and self._watch.reason is not None:
            self._suspend(place)
        self._labelled.append(place)
        if len(self._labelled) in self._plan.sizes:
            self._fit()

    def _hold(self, place: int) -> None:
        if len(self.outcomes.earned_at) == len(self.outcomes.suspended_at):
            self.outcomes.earned_at.append(place + 1)
        self._watch, self._held_since, self._since_earned = Watch(self._plan.target), 0, 0

    def _suspend(self, place: int) -> None:
        self.outcomes.suspended_at.append(place + 1)
        self._earning.add(Reopened())
        self._proposals.clear()
        self._labelled.clear()

    def _fit(self) -> None:
        """Fit, and open the tests that the service would open."""
        earning = self._earning
        if earning.earned is None and any(
            one.is_on_course(earning.counted) for one in earning.hypotheses
        ):
            return
        rows = np.array(self._labelled)
        labels = self._stream.reference[rows]
        if len(np.unique(labels)) < 2:
            return
        self._fitted += 1
        best = min(self._fits(rows, labels), key=lambda fit: _error_of_the_surest(*fit[1:]))
        name, confidence, losses = best
        is_held = earning.earned is not None
        openings = place_thresholds(
            name, confidence, losses, self._plan.target, first=earning.tested + 1,
            coverages=WIDER if is_held else COVERAGES,
            horizon=len(losses) if is_held else HORIZON,
        )  # fmt: skip
        if is_held:
            openings = widest(openings, self._held_since / max(1, self._since_earned))
        for opening in openings:
            earning.add(opening)

    def _fits(self, rows: Ints, labels: Ints) -> Iterator[tuple[str, Floats, Floats]]:
        """Fit every candidate; yield its name, and confidences and losses of the fit's examples.

        head: over the vectors. model: the local model, recalibrated. both: over both.
        """
        stream, outputs = self._stream, self._stream.outputs
        features = {"head": stream.vectors}
        if outputs is not None:
            features |= {"model": outputs, "both": np.hstack([stream.vectors, outputs])}
        for kind, values in features.items():
            head, confidence, losses = cross_validated(values[rows], labels, stream.count)
            name = f"{kind}@{self._fitted}"
            probabilities = head.probabilities(values)
            self._proposals[name] = (probabilities.max(axis=1), probabilities.argmax(axis=1))
            yield name, confidence, losses


def _error_of_the_surest(confidence: Floats, losses: Floats) -> float:
    """Return the mean loss of the most confident examples, by which candidates are compared."""
    count = max(1, round(COMPARED_AT * len(losses)))
    return float(losses[np.argsort(-confidence, kind="stable")[:count]].mean())


def _zeros(count: int) -> Ints:
    return np.zeros(count, dtype=np.int64)
