"""Which tier answers a cluster, which is tried next, and whether trying pays back. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from serving.contracts.evidence import Claim, ClaimState
from serving.contracts.prices import TokenPrices
from serving.contracts.routing import Tier
from serving.evidence.payback import PRIOR_CHANCE, chance, pairs_left

_JUDGE_OUTPUT_TOKENS = 20
_JUDGE_PROMPT_TOKENS = 350
"""Instruction and delimiters of the judge's prompt (serving.evidence.judge)."""

_LEAST_SHARE = 0.01

_QUIET = 0.5
"""Of the alarm's logarithm: below it, a watch has seen nothing that speaks for a change."""

_INSIDE = 0.75
"""Of the target: an observed error up to it is well inside."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A tier that may answer: its first model that has a key and a price."""

    tier: Tier
    model: str
    prices: TokenPrices


@dataclass(frozen=True, slots=True)
class Traffic:
    """What requests of a cluster are like. days: over which they were counted, above 0.

    input_tokens, output_tokens: of one request, means.
    """

    requests: int
    days: float
    input_tokens: float
    output_tokens: float

    @property
    def requests_a_day(self) -> float:
        """Return the pace."""
        return self.requests / self.days

    def cost_usd(self, prices: TokenPrices) -> float:
        """Return what one request costs, without prompt caching."""
        return self.input_tokens * float(prices.uncached_input) + self.output_tokens * float(
            prices.output
        )

    def judging_usd(self, prices: TokenPrices) -> float:
        """Return what it costs to judge one pair of answers in both orders."""
        read = self.input_tokens + 2.0 * self.output_tokens + _JUDGE_PROMPT_TOKENS
        return 2.0 * (
            read * float(prices.uncached_input) + _JUDGE_OUTPUT_TOKENS * float(prices.output)
        )


def together(found: Sequence[Traffic]) -> Traffic:
    """Return the traffic of several as one. found: at least one."""
    requests = sum(one.requests for one in found)
    return Traffic(
        requests,
        max(one.days for one in found),
        sum(one.input_tokens * one.requests for one in found) / requests,
        sum(one.output_tokens * one.requests for one in found) / requests,
    )


def ladder(start: Rung, others: Sequence[Rung]) -> tuple[Rung, ...]:
    """Return the cheaper tiers below a start, the most expensive first.

    A tier is cheaper where input and output both cost less: then it is whatever the lengths are.
    """
    cheaper = [
        rung
        for rung in others
        if rung.prices.uncached_input < start.prices.uncached_input
        and rung.prices.output < start.prices.output
    ]
    return tuple(sorted(cheaper, key=lambda rung: -rung.prices.output))


@dataclass(frozen=True, slots=True)
class Place:
    """Where a cluster stands on its ladder. serving: position, None for the reference.

    open: cheaper positions that may still be earned.
    """

    serving: int | None
    open: tuple[int, ...]


def place_of(claims: Sequence[Claim | None]) -> Place:
    """Return where a cluster stands. claims: of its ladder, in order; None where not known.

    The cheapest tier with a held claim serves. Each claim is against the reference itself, so that
    none depends on another one.
    """
    held = [n for n, c in enumerate(claims) if c is not None and c.state is ClaimState.HELD]
    serving = max(held, default=None)
    ended = (ClaimState.NOT_EARNABLE, ClaimState.WITHDRAWN)
    first = 0 if serving is None else serving + 1
    left = enumerate(claims[first:], first)
    return Place(serving, tuple(n for n, c in left if c is None or c.state not in ended))


@dataclass(frozen=True, slots=True)
class Prospect:
    """What it would bring to earn one tier for one cluster.

    saving_usd: of one request. pair_usd: of one explored request: the cheaper answer, its judging,
    and the reference's answer where a cheaper tier serves the client. pairs_left: until it is
    earned, if it can be. chance: that it can be, in [0, 1].
    """

    cluster: str
    tier: Tier
    requests_a_day: float
    saving_usd: float
    pair_usd: float
    pairs_left: float
    chance: float

    @property
    def cost_usd(self) -> float:
        """Return what earning costs."""
        return self.pairs_left * self.pair_usd

    def net_usd(self, days: float) -> float:
        """Return what it is expected to bring within so many days, less its cost."""
        left = max(0.0, self.requests_a_day * days - self.pairs_left)
        return self.chance * self.saving_usd * left - self.cost_usd

    def payback_days(self) -> float:
        """Return after how many days the expected saving has paid the cost; inf for never."""
        gain = self.chance * self.saving_usd * self.requests_a_day
        if gain <= 0.0 or self.requests_a_day <= 0.0:
            return math.inf
        return self.pairs_left / self.requests_a_day + self.cost_usd / gain


def prospect(
    cluster: str,
    traffic: Traffic,
    rungs: tuple[Rung, Rung | None, Rung],
    judge: TokenPrices,
    claim: Claim | None,
    target_error: float,
) -> Prospect:
    """Return what it would bring to move a cluster to a cheaper tier.

    rungs: the reference, the tier that serves now (None for the reference), and the cheaper one.
    """
    reference, serving, rung = rungs
    present = reference if serving is None else serving
    cheaper = traffic.cost_usd(rung.prices)
    again = 0.0 if serving is None else traffic.cost_usd(reference.prices)
    return Prospect(
        cluster=cluster,
        tier=rung.tier,
        requests_a_day=traffic.requests_a_day,
        saving_usd=traffic.cost_usd(present.prices) - cheaper,
        pair_usd=cheaper + traffic.judging_usd(judge) + again,
        pairs_left=pairs_left(claim, target_error),
        chance=chance(claim, target_error),
    )


_KEPT_PRIOR = 0.5
_FIRST_FIT = 100.0
_LAST_FIT = 600
_TEST_PAIRS = 250.0
_CASCADE_STOP = 1_500


def cascade_usd(
    traffic: Traffic, rungs: tuple[Rung, Rung], calls: int, kept: float, audit_usd: float = 0.0
) -> float:
    """Return the expected cost of one request that a cascade answers, all of its calls included.

    rungs: the reference, which answers what is not kept, and the cheaper one. calls: of the cheaper
    one. kept: share of its answers that are kept. audit_usd: of one kept answer, on average.
    """
    reference, rung = rungs
    return (
        calls * traffic.cost_usd(rung.prices)
        + (1.0 - kept) * traffic.cost_usd(reference.prices)
        + kept * audit_usd
    )


def is_cascade_open(claim: Claim | None) -> bool:
    """Return whether a cascade may still be earned: thresholds are placed until 600 pairs."""
    if claim is None:
        return True
    if claim.state not in (ClaimState.SHADOW, ClaimState.SUSPENDED):
        return False
    return claim.audits < _LAST_FIT or (claim.hypotheses > 0 and claim.audits < _CASCADE_STOP)


def cascade_prospect(
    cluster: str,
    traffic: Traffic,
    rungs: tuple[Rung, Rung | None, Rung],
    judge: TokenPrices,
    claim: Claim | None,
    calls: int,
) -> Prospect:
    """Return what it would bring to earn a cascade for a cluster. Arguments as of `prospect`.

    calls: of the cheaper model. Half of its answers are taken to be kept, at even odds.
    """
    reference, serving, rung = rungs
    present = reference if serving is None else serving
    again = 0.0 if serving is None else traffic.cost_usd(reference.prices)
    expected = cascade_usd(traffic, (reference, rung), calls, _KEPT_PRIOR)
    done = 0.0 if claim is None else claim.progress
    seen = 0 if claim is None else claim.audits
    left = max(0.0, _FIRST_FIT - seen) + _TEST_PAIRS / _KEPT_PRIOR * (1.0 - done)
    return Prospect(
        cluster=cluster,
        tier=rung.tier,
        requests_a_day=traffic.requests_a_day,
        saving_usd=traffic.cost_usd(present.prices) - expected,
        pair_usd=calls * traffic.cost_usd(rung.prices) + traffic.judging_usd(judge) + again,
        pairs_left=left,
        chance=PRIOR_CHANCE,
    )


@dataclass(frozen=True, slots=True)
class Exploration:
    """Which tier of a cluster is explored, and the share of its requests.

    pair_usd: what one explored request is expected to cost.
    """

    tier: Tier
    share: float
    pair_usd: float


def allot(
    prospects: Sequence[Prospect], budget_usd_a_day: Decimal, payback_days: float
) -> Mapping[str, Exploration]:
    """Return what to explore, by cluster: at most one tier of each.

    The most profitable first, each as fast as the budget of a day lets it. What does not pay back
    in time is not explored.
    """
    left = float(budget_usd_a_day)
    found: dict[str, Exploration] = {}
    ranked = sorted(prospects, key=lambda one: (-one.net_usd(payback_days), one.cluster, one.tier))
    for one in ranked:
        if one.net_usd(payback_days) <= 0.0 or left <= 0.0 or one.cluster in found:
            continue
        whole = one.requests_a_day * one.pair_usd
        share = 1.0 if whole <= 0.0 else min(1.0, left / whole)
        if share >= _LEAST_SHARE:
            found[one.cluster] = Exploration(one.tier, share, one.pair_usd)
            left -= share * whole
    return found


@dataclass(frozen=True, slots=True)
class AuditShares:
    """How much a held tier is watched. of_saving: audits may cost this share of what it saves.

    floor, high: least and largest share of its requests. first: requests after earning, and after
    traffic has changed, for which twice as many are audited. settled: audits after which a tier
    whose watch is quiet is audited at the floor; 0 for never.
    """

    of_saving: float
    floor: float
    high: float
    first: int
    settled: int = 0

    def rate(self, saving_usd: float, audit_usd: float, claim: Claim) -> float:
        """Return the share of requests to audit. It never depends on the request itself.

        It may depend on earlier verdicts: the watch is valid for any share that is fixed before the
        request is known.
        """
        since_signal = claim.since_signal
        if since_signal >= self.first and self._is_settled(claim):
            return self.floor
        affordable = self.high if audit_usd <= 0.0 else self.of_saving * saving_usd / audit_usd
        wanted = affordable * (2.0 if since_signal < self.first else 1.0)
        return min(self.high, max(self.floor, wanted))

    def _is_settled(self, claim: Claim) -> bool:
        if not self.settled or claim.audits < self.settled or claim.observed_error is None:
            return False
        is_inside = claim.observed_error <= _INSIDE * claim.target_error
        return is_inside and claim.alarm_progress <= _QUIET
