"""What earlier traffic has earned of a paired shortcut: the product's claims, simulated.

One claim for each model that answers. Comparing costs what it costs the product: the other answer,
and the judge, who reads the whole request in both orders.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

import numpy as np

from benchmarks.replay_assumptions import Values
from benchmarks.replay_earning import EVIDENCE, Earned, Rungs, Topics, defined, of_people
from benchmarks.replay_mix import Request
from benchmarks.replay_provider import lost
from benchmarks.tiers_simulation import AT, Judge, TierClaim
from serving.contracts.evidence import (
    Audit,
    Candidate,
    Claim,
    ClaimEvent,
    ClaimState,
    EventKind,
    ShortcutName,
)
from serving.contracts.prices import TokenPrices
from serving.evidence.pacing import Spent, has_room
from serving.evidence.payback import SHADOW_SHARE, Comparisons, payback
from serving.evidence.statistics.judged import Preference, judged_pair
from serving.pipeline.paired_auditor import AGAIN_SHARE, compared_share
from serving.tiers.policy import Rung, Traffic
from serving.tiers.shortcut import PairedModel

_PAID_BACK_EVERY = 10
"""Comparisons between two looks at whether they pay."""


@dataclass(frozen=True, slots=True)
class PairedRequest:
    """A request, and what a shortcut changes of it.

    input_tokens, output_tokens: of the whole request and of its usual answer. less_input,
    less_output: of them with the shortcut. lost: share of the right answers that it loses.
    is_changed: the shortcut changes the request; else there is nothing to compare.
    """

    request: Request
    input_tokens: float
    output_tokens: float
    less_input: float = 0.0
    less_output: float = 0.0
    lost: float = 0.0
    is_changed: bool = True

    @property
    def traffic(self) -> Traffic:
        """Return the request without the shortcut."""
        return Traffic(1, 1.0, self.input_tokens, self.output_tokens)

    def saved_usd(self, prices: TokenPrices) -> float:
        """Return what the shortcut saves of it."""
        return self.less_input * float(prices.uncached_input) + self.less_output * float(
            prices.output
        )


@dataclass(frozen=True, slots=True)
class PairedClaims:
    """The claims on one shortcut. what: as reports name it. version: of what it does to a request.

    holdout: share of requests without it while its claim is held.
    """

    what: str
    name: ShortcutName
    version: str
    target_error: float
    holdout: float = 0.0


@dataclass(frozen=True, slots=True)
class TrafficBefore:
    """The traffic of some days before the replay. present: the tier by cluster; else the start."""

    requests: Sequence[Request]
    topics: Topics
    rungs: Rungs
    values: Values
    present: Mapping[int, str]
    days: float

    def rung(self, request: Request) -> Rung:
        """Return the tier that answers a request."""
        tier = self.present.get(self.topics.clusters[request.key], self.rungs.start.tier)
        found = (self.rungs.start, *self.rungs.cheaper)
        return next(rung for rung in found if rung.tier == tier)


def paired_earned(
    found: Sequence[PairedRequest], before: TrafficBefore, claimed: PairedClaims, seed: int = 1
) -> Earned:
    """Return the claims on a shortcut of each model that answers. Blocking: seconds."""
    course = _Course(found, before, claimed, seed)
    for number in range(course.count):
        course.ask(number)
    return course.earned()


@dataclass(slots=True)
class _Held:
    claim: TierClaim
    rung: Rung
    requests: int = 0
    accepted: int = 0
    compared: Comparisons = field(
        default_factory=lambda: Comparisons(0, Decimal(0), Decimal(0), 0.0, AT)
    )


def _serves(held: _Held) -> bool:
    claim = held.claim.claim
    return claim.state is ClaimState.HELD and not claim.is_slowed


def _standing(claim: Claim) -> str:
    return f"{claim.state.value}, slowed" if claim.is_slowed else claim.state.value


class _Course:
    """One simulation, request by request."""

    def __init__(
        self,
        found: Sequence[PairedRequest],
        before: TrafficBefore,
        claimed: PairedClaims,
        seed: int,
    ) -> None:
        share = len(found) / len(before.requests)
        self.count = round(before.days * 86_400 / before.values["arrival_s"] * share)
        self._found = found
        self._before = before
        self._errs = Judge(before.values["slip"], before.values["place"])
        self._draw = np.random.default_rng(seed)
        self._claimed = claimed
        self._claims: dict[str, _Held] = {}
        for rung in {
            before.rung(one.request).model: before.rung(one.request) for one in found
        }.values():
            shortcut = PairedModel(
                claimed.name, rung.model, claimed.version, before.rungs.judge.model,
                claimed.target_error,
            )  # fmt: skip
            claim = TierClaim.of(rung.model, EVIDENCE, defined(shortcut, rung.model))
            self._claims[rung.model] = _Held(claim, rung)
        self._definitions = tuple(h.claim.fold.definition for h in self._claims.values())
        self._today: tuple[int, dict[str, float]] = (0, {})
        self._usd: defaultdict[str, float] = defaultdict(float)
        self._late: dict[str, float] = {}
        self._pairs = self._settled_at = 0
        self._paid_back_at: int | None = None

    def ask(self, number: int) -> None:
        """Answer a request and compare where it is drawn."""
        if number == self.count * 3 // 4:
            self._late = dict(self._usd)
        at = AT + timedelta(days=self._before.days * number / self.count)
        one = self._found[int(self._draw.integers(len(self._found)))]
        held = self._claims[self._before.rung(one.request).model]
        held.requests += 1
        prices = held.rung.prices
        whole = one.traffic.cost_usd(prices)
        short = whole - one.saved_usd(prices)
        is_held = _serves(held)
        taken = is_held and (
            not self._claimed.holdout or self._draw.random() >= self._claimed.holdout
        )
        self._usd["reference"] += whole
        self._usd["answers"] += short if taken else whole
        if one.is_changed and taken == is_held:
            held.accepted += is_held
            self._compared(one, held, number, at, (whole, short))
        is_ahead = self._spent(self._usd) < self._usd["reference"]
        if not is_ahead:
            self._paid_back_at = None
        elif self._paid_back_at is None:
            self._paid_back_at = number

    def _compared(
        self, one: PairedRequest, held: _Held, number: int, at: datetime, usd: tuple[float, float]
    ) -> None:
        claim = held.claim.claim
        is_held = _serves(held)
        share = compared_share(claim, EVIDENCE, SHADOW_SHARE, is_earned=is_held)
        kind = "audited" if is_held else "explored"
        if self._draw.random() >= share or not self._has_room(kind, at):
            return
        judging = one.traffic.judging_usd(self._before.rungs.judge.prices)
        whole, short = usd
        spent = (whole if is_held else short) + judging + AGAIN_SHARE * (whole + judging)
        self._usd[kind] += spent
        inputs = 0.0 if is_held else 1.0 / share
        held.compared += Comparisons(
            1, Decimal(whole - short), Decimal(spent - is_held * whole), inputs, AT
        )
        self._today[1][kind] = self._today[1].get(kind, 0.0) + spent
        self._pairs += 1
        held.claim.add(self._audit(one, held, number, at, share))
        self._pay_back(held, at)
        if held.claim.claim.state is not claim.state:
            self._settled_at = number

    def _pay_back(self, held: _Held, at: datetime) -> None:
        """Slow or resume the claim as the product does. All comparisons are of its window."""
        if held.compared.pairs % _PAID_BACK_EVERY:
            return
        claim = held.claim.claim
        expected = payback(held.compared, claim, EVIDENCE, at)
        if expected is None or expected.pays(claim) == (not claim.is_slowed):
            return
        kind: EventKind = "resumed" if claim.is_slowed else "slowed"
        held.claim.note(ClaimEvent(claim.id, kind, "payback", "narrowgate", at, 0))

    def _has_room(self, kind: str, at: datetime) -> bool:
        """Return whether the day's budget has room, which is one for all claims."""
        day = (at - AT).days
        if self._today[0] != day:
            self._today = (day, {})
        most = EVIDENCE.max_usd_a_day if kind == "audited" else EVIDENCE.shadow_judge_max_usd_a_day
        return has_room(Spent(today_usd=Decimal(self._today[1].get(kind, 0.0))), most, at)

    def _audit(
        self, one: PairedRequest, held: _Held, number: int, at: datetime, share: float
    ) -> Audit:
        claim, action = held.claim.claim, held.claim.claim.action
        pair = judged_pair(*self._errs.pair(self._truth(one, held.rung), self._draw))
        accepted, held.accepted = held.accepted, 0
        held.compared += Comparisons(0, Decimal(0), Decimal(0), float(accepted), AT)
        return Audit(
            claim.id, f"{self._claimed.name}-{number}", str(number), str(number),
            "accepted" if _serves(held) else "shadow", share,
            "same" if pair.loss <= 0.5 else "different", pair.loss, claim.reference,
            (Candidate("model", 1.0, pair.loss, None, pair.badly_worse),), accepted=accepted,
            hypothesis=0 if action is None else action.hypothesis, drawn_at=at, judged_at=at,
        )  # fmt: skip

    def _truth(self, one: PairedRequest, rung: Rung) -> Preference:
        """Return how the answer with the shortcut compares with the one without it."""
        if one.lost <= 0.0 or (one.lost < 1.0 and self._draw.random() >= one.lost):
            return "same"
        values, kind = self._before.values, self._before.topics.kinds.get(one.request.key)
        if self._draw.random() >= values["right_frontier"] - lost(kind, rung.tier, values):
            # The answer without it is wrong, too.
            return "same"
        return "badly_worse" if self._draw.random() < values["badly"] else "worse"

    def _spent(self, usd: Mapping[str, float]) -> float:
        return sum(usd.get(kind, 0.0) for kind in ("answers", "explored", "audited"))

    def earned(self) -> Earned:
        """Return what came of it."""
        usd = self._usd
        paid = usd["reference"] - self._late.get("reference", 0.0)
        spent = self._spent(usd) - self._spent(self._late)
        late = 1.0 - spent / paid if paid else 0.0
        return Earned(
            self._claimed.what, self._definitions,
            tuple(row for held in self._claims.values() for row in of_people(held.claim)), {},
            AT + timedelta(days=self._before.days), self.count, usd["reference"], usd["answers"],
            usd["explored"], usd["audited"], self._settled_at, self._paid_back_at,
            late_usd=late * usd["reference"], hits=self._pairs,
            states={
                held.rung.model: (_standing(held.claim.claim), held.requests / max(1, self.count))
                for held in self._claims.values()
            },
        )  # fmt: skip
