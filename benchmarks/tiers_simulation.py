"""Simulates tiers that are earned per cluster: policy, claims and money, without any model.

Six topics have a known share of answers that each cheaper tier makes worse or better than the
frontier tier's. The judge errs. Claims are those of the product: serving.evidence.fold.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np

from serving.contracts.evidence import Audit, Candidate, Claim, ClaimEvent, Scope
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.prices import TokenPrices
from serving.evidence.fold import NET_WORSE, ClaimFold
from serving.evidence.statistics.judged import Preference, judged_pair
from serving.evidence.store import Definition
from serving.tiers.policy import (
    AuditShares,
    Exploration,
    Rung,
    Traffic,
    allot,
    ladder,
    place_of,
    prospect,
)

AT = datetime(2026, 11, 2, tzinfo=UTC)
TARGET = 0.1


def _prices(input_usd: str, output_usd: str) -> TokenPrices:
    price = Decimal(input_usd) / 1_000_000
    return TokenPrices(price, price / 10, price, price, Decimal(output_usd) / 1_000_000)


# US dollars for a million tokens: Claude Opus, Sonnet and Haiku as of 2026 (genai-prices).
FRONTIER = Rung("frontier", "fake/frontier", _prices("5", "25"))
STANDARD = Rung("standard", "fake/standard", _prices("3", "15"))
ECONOMY = Rung("economy", "fake/economy", _prices("1", "5"))


@dataclass(frozen=True, slots=True)
class Quality:
    """How a tier's answers compare with the frontier's in one topic: shares of all answers.

    badly: of those that are worse, the share that is badly worse.
    """

    worse: float
    better: float = 0.0
    badly: float = 0.2

    @property
    def net(self) -> float:
        """Return the share worse less the share better."""
        return self.worse - self.better


@dataclass(frozen=True, slots=True)
class Topic:
    """One cluster. best: the cheapest tier whose net share keeps the target; empty if not asked.

    weight: its share of the requests, relative to the others'. input_tokens, output_tokens: of a
    request; the simulation's where None. counted: share of its requests that may be explored; of
    the others' conversation one continuation was.
    """

    name: str
    standard: Quality
    economy: Quality
    best: str = ""
    weight: float = 1.0
    input_tokens: float | None = None
    output_tokens: float | None = None
    counted: float = 1.0


TOPICS = (
    Topic("facts", Quality(0.01), Quality(0.02), "economy"),
    Topic("letters", Quality(0.02, 0.02), Quality(0.03, 0.02), "economy"),
    Topic("summaries", Quality(0.01), Quality(0.30), "standard"),
    Topic("code", Quality(0.03, 0.02), Quality(0.45, 0.02), "standard"),
    # The trap: the cheaper models are confidently wrong.
    Topic("moral scenarios", Quality(0.40, 0.01, 0.8), Quality(0.45, 0.01, 0.8), "frontier"),
    Topic("how-to", Quality(0.0), Quality(0.01), "economy"),
)


@dataclass(frozen=True, slots=True)
class Judge:
    """A judge that errs. slip: share of orders with a verdict at random. place: share of ties
    in which it prefers the first answer."""

    slip: float = 0.05
    place: float = 0.1

    def pair(self, truth: Preference, rng: np.random.Generator) -> tuple[Preference, Preference]:
        """Return the verdicts on one answer: where it came first, and where it came second."""
        return self._one(truth, rng, is_first=True), self._one(truth, rng, is_first=False)

    def _one(self, truth: Preference, rng: np.random.Generator, *, is_first: bool) -> Preference:
        if rng.random() < self.slip:
            return "better" if rng.random() < 0.5 else "worse"
        if truth == "same" and rng.random() < self.place:
            return "better" if is_first else "worse"
        return truth


def definition(subject: str) -> Definition:
    """Return the claim on one cluster and tier."""
    scope = Scope("default", f"cluster/{subject}", {}, ("cheaper_tier",))
    return Definition(subject, scope, "cheaper_tier", NET_WORSE, TARGET, FRONTIER.model, False, AT)


@dataclass(slots=True)
class TierClaim:
    """One claim under the fold of the product, with the events that the worker would write.

    rows: folded so far, in order.
    """

    fold: ClaimFold
    claim: Claim
    rows: list[Audit | ClaimEvent] = field(default_factory=list)
    sequence: int = 0
    accepted: int = 0

    @classmethod
    def of(
        cls, subject: str, settings: EvidenceSettings, defined: Definition | None = None
    ) -> "TierClaim":
        """Return the claim of one cluster and tier."""
        fold = ClaimFold(defined or definition(subject), settings)
        made = cls(fold, fold.claim)
        made.decide(AT)
        return made

    def add(self, audit: Audit) -> None:
        """Fold one audit and what follows from it."""
        self._fold(audit)
        self.decide(audit.judged_at)

    def note(self, event: ClaimEvent) -> None:
        """Fold an event that depends on time, and what follows from it."""
        self._fold(event)
        self.decide(event.at)

    def decide(self, at: datetime) -> None:
        """Append transitions and tests until none is due."""
        while found := [
            *self.fold.unrecorded,
            *(
                ClaimEvent(
                    self.claim.id, "tested", "", "narrowgate", at, self.sequence, action
                )
                for action in self.fold.due_tests()
            ),
        ]:  # fmt: skip
            for event in found:
                self._fold(event)
        self.claim = self.fold.claim

    def _fold(self, row: Audit | ClaimEvent) -> None:
        self.sequence += 1
        self.rows.append(replace(row, sequence=self.sequence))
        self.fold.add(self.rows[-1])


@dataclass(slots=True)
class Result:
    """One run. assignment: tier by topic at the end. losses: net loss of cheaper answers by topic,
    true, not judged. reference_usd: everything to the frontier. explored_usd, audited_usd: cheaper
    answers that nobody got, second answers of the reference, and judging. paid_back_at: request
    after which the run stayed cheaper than the reference; None where it never did. settled_at:
    request after which no topic changed its tier. late_saving: as saving, of the last quarter."""

    requests: int
    assignment: dict[str, str] = field(default_factory=dict)
    served: dict[str, int] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    reference_usd: float = 0.0
    answers_usd: float = 0.0
    explored_usd: float = 0.0
    audited_usd: float = 0.0
    explored: int = 0
    paid_back_at: int | None = None
    settled_at: int = 0
    late_saving: float = 0.0

    @property
    def is_best(self) -> bool:
        """Return whether every topic ended on its best tier."""
        return self.assignment == {topic.name: topic.best for topic in TOPICS}

    @property
    def loss(self) -> float:
        """Return the net loss over all answers of cheaper tiers; 0 where there are none."""
        count = sum(self.served.values())
        return sum(self.losses.values()) / count if count else 0.0

    @property
    def spent_usd(self) -> float:
        """Return everything that was paid."""
        return self.answers_usd + self.explored_usd + self.audited_usd

    @property
    def saving(self) -> float:
        """Return the share of the reference cost that was saved, net of exploring and auditing."""
        return 1.0 - self.spent_usd / self.reference_usd


_AUDITS = AuditShares(of_saving=0.1, floor=0.02, high=0.2, first=500, settled=100)
_SETTINGS = EvidenceSettings(group_window_s=0.0)


@dataclass(frozen=True, slots=True)
class Simulation:
    """requests: in all, over `days`. budget_usd_a_day, payback_days: of exploration."""

    requests: int = 5_000
    days: float = 10.0
    budget_usd_a_day: Decimal = Decimal(5)
    payback_days: float = 30.0
    judge: Judge = Judge()
    judged_by: Rung = ECONOMY
    audits: AuditShares = _AUDITS
    settings: EvidenceSettings = _SETTINGS
    topics: Sequence[Topic] = TOPICS
    input_tokens: float = 300.0
    output_tokens: float = 500.0
    start: Rung = FRONTIER
    cheaper: Sequence[Rung] = (ECONOMY, STANDARD)
    defined: Callable[[Topic, Rung], Definition] | None = None

    def run(self, seed: int) -> Result:
        """Run it once."""
        return self.course(seed).run()

    def course(self, seed: int) -> "Course":
        """Return a run that is not begun, with its claims."""
        return Course(self, np.random.default_rng(seed))


class Course:
    """One run. claims: by topic and tier."""

    def __init__(self, simulation: Simulation, rng: np.random.Generator) -> None:
        self._is = simulation
        self._rng = rng
        self._rungs = ladder(simulation.start, simulation.cheaper)
        defined = simulation.defined
        self.claims = {
            (topic.name, rung.tier): TierClaim.of(
                f"{topic.name}/{rung.tier}", simulation.settings,
                None if defined is None else defined(topic, rung),
            )
            for topic in simulation.topics
            for rung in self._rungs
        }  # fmt: skip
        weights = [topic.weight for topic in simulation.topics]
        self._until = None if len(set(weights)) == 1 else np.cumsum(weights) / sum(weights)
        self._seen = dict.fromkeys((topic.name for topic in simulation.topics), 0)
        self._shares: dict[str, Exploration] = {}
        self._day = 0.0
        self._before_today_usd = 0.0
        self._result = Result(simulation.requests)

    def run(self) -> Result:
        """Send every request; return what came of it."""
        step = timedelta(days=self._is.days / self._is.requests)
        result = self._result
        late, before = self._is.requests * 3 // 4, (0.0, 0.0)
        for number in range(self._is.requests):
            if number == late:
                before = (result.spent_usd, result.reference_usd)
            now = AT + number * step
            topic = self._is.topics[self._drawn()]
            self._seen[topic.name] += 1
            if number % 50 == 0:
                self._shares = self._allotted(number)
            self._request(topic, number, now)
            is_ahead = result.spent_usd < result.reference_usd
            if not is_ahead:
                result.paid_back_at = None
            elif result.paid_back_at is None:
                result.paid_back_at = number
        for topic in self._is.topics:
            result.assignment[topic.name] = self._tier(topic)
        spent, paid = result.spent_usd - before[0], result.reference_usd - before[1]
        result.late_saving = 1.0 - spent / paid if paid else 0.0
        return result

    def traffic(self, topic: Topic) -> Traffic:
        """Return what the whole run's requests of a topic are like."""
        return self._traffic(topic, self._is.requests)

    def _drawn(self) -> int:
        if self._until is None:
            return int(self._rng.integers(len(self._is.topics)))
        return int(np.searchsorted(self._until, self._rng.random(), side="right"))

    def _tier(self, topic: Topic) -> str:
        place = place_of([c.claim for c in self._ladder(topic)])
        return self._is.start.tier if place.serving is None else self._rungs[place.serving].tier

    def _ladder(self, topic: Topic) -> list[TierClaim]:
        return [self.claims[topic.name, rung.tier] for rung in self._rungs]

    def _traffic(self, topic: Topic, number: int) -> Traffic:
        days = max(0.05, self._is.days * number / self._is.requests)
        seen = self._seen[topic.name]
        given, made = topic.input_tokens, topic.output_tokens
        return Traffic(
            seen, days, self._is.input_tokens if given is None else given,
            self._is.output_tokens if made is None else made,
        )  # fmt: skip

    def _allotted(self, number: int) -> dict[str, Exploration]:
        day, begun = divmod(self._is.days * number / self._is.requests, 1.0)
        if day != self._day:
            self._day, self._before_today_usd = day, self._result.explored_usd
        today_usd = self._result.explored_usd - self._before_today_usd
        left = max(0.0, float(self._is.budget_usd_a_day) - today_usd)
        prospects = []
        for topic in self._is.topics:
            claims = self._ladder(topic)
            place = place_of([c.claim for c in claims])
            serving = None if place.serving is None else self._rungs[place.serving]
            prospects += [
                prospect(
                    topic.name,
                    self._traffic(topic, number),
                    (self._is.start, serving, self._rungs[position]),
                    self._is.judged_by.prices,
                    claims[position].claim,
                    TARGET,
                )
                for position in place.open
            ]
        # As the planner: what is left is spread over the rest of the day.
        pace = Decimal(left / max(1.0 - begun, 1.0 / 24.0))
        return dict(allot(prospects, pace, self._is.payback_days))

    def _request(self, topic: Topic, number: int, now: datetime) -> None:
        result, traffic = self._result, self._traffic(topic, number)
        claims = self._ladder(topic)
        place = place_of([c.claim for c in claims])
        reference = traffic.cost_usd(self._is.start.prices)
        judging = traffic.judging_usd(self._is.judged_by.prices)
        result.reference_usd += reference
        serving = place.serving
        if serving is None:
            result.answers_usd += reference
        else:
            rung, held = self._rungs[serving], claims[serving]
            truth = self._truth(topic, rung)
            answer = traffic.cost_usd(rung.prices)
            result.answers_usd += answer
            result.served[topic.name] = result.served.get(topic.name, 0) + 1
            result.losses[topic.name] = result.losses.get(topic.name, 0.0) + _net(truth)
            held.accepted += 1
            rate = self._is.audits.rate(reference - answer, reference + judging, held.claim)
            if self._rng.random() < rate:
                result.audited_usd += reference + judging
                self._add(held, topic, self._audit(held, truth, number, now, rate, True))
        explored = self._shares.get(topic.name)
        if explored is None or self._rng.random() >= explored.share:
            return
        if topic.counted < 1.0 and self._rng.random() >= topic.counted:
            # It would be no evidence, so that nothing is asked.
            return
        position = next(n for n, rung in enumerate(self._rungs) if rung.tier == explored.tier)
        if position not in place.open:
            return
        rung, tested = self._rungs[position], claims[position]
        # The reference of the claim is the frontier: where a cheaper tier serves, it is asked, too.
        again = reference if serving is not None else 0.0
        result.explored += 1
        result.explored_usd += again + traffic.cost_usd(rung.prices) + judging
        truth = self._truth(topic, rung)
        self._add(tested, topic, self._audit(tested, truth, number, now, explored.share, False))

    def _add(self, claim: TierClaim, topic: Topic, audit: Audit) -> None:
        before = self._tier(topic)
        claim.add(audit)
        if self._tier(topic) != before:
            self._result.settled_at = int(audit.group)

    def _truth(self, topic: Topic, rung: Rung) -> Preference:
        quality = topic.standard if rung.tier == "standard" else topic.economy
        draw = self._rng.random()
        if draw < quality.worse * quality.badly:
            return "badly_worse"
        if draw < quality.worse:
            return "worse"
        return "better" if draw < quality.worse + quality.better else "same"

    def _audit(
        self,
        claim: TierClaim,
        truth: Preference,
        number: int,
        now: datetime,
        coin: float,
        is_accepted: bool,
    ) -> Audit:
        pair = judged_pair(*self._is.judge.pair(truth, self._rng))
        action = claim.claim.action
        count, claim.accepted = claim.accepted, 0
        return Audit(
            claim=claim.claim.id,
            input=f"{number}-{self._rng.integers(2**62)}",
            group=str(number),
            text=str(number),
            origin="accepted" if is_accepted else "shadow",
            coin=coin,
            verdict="same" if pair.loss <= 0.5 else "different",
            loss=pair.loss,
            reference=self._is.start.model,
            candidates=(Candidate("model", 1.0, pair.loss, None, pair.badly_worse),),
            accepted=count,
            hypothesis=0 if action is None else action.hypothesis,
            drawn_at=now,
            judged_at=now,
        )


def _net(truth: Preference) -> float:
    return {"better": -1.0, "same": 0.0}.get(truth, 1.0)
