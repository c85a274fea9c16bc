"""What earlier traffic has earned of context pruning: the product's claims, simulated.

One claim for each model that answers. Comparing costs what it costs the product: the other answer,
and the judge, who reads the whole context in both orders.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.replay_assumptions import Values
from benchmarks.replay_earning import (
    EVIDENCE,
    Earned,
    Rungs,
    Topics,
    defined,
    mean_tokens,
    of_people,
)
from benchmarks.replay_mix import Request
from benchmarks.replay_provider import CHARS_PER_TOKEN, lost
from benchmarks.tiers_simulation import AT, Judge, TierClaim
from serving.context.detection import context_places, question_of
from serving.context.pruning import Part
from serving.context.replacing import replaced, texts_at
from serving.contracts.evidence import Audit, Candidate, Claim, ClaimEvent, ClaimState, EventKind
from serving.contracts.requests import Message
from serving.evidence.pacing import Spent, has_room
from serving.evidence.payback import SHADOW_SHARE, Comparisons, payback
from serving.evidence.statistics.judged import Preference, judged_pair
from serving.pipeline.paired_auditor import AGAIN_SHARE, compared_share
from serving.tiers.policy import Rung, Traffic
from serving.tiers.shortcut import PairedModel

if TYPE_CHECKING:
    from serving.context.lazy import LazyPruner

_PAID_BACK_EVERY = 10
"""Comparisons between two looks at whether they pay."""


@dataclass(frozen=True, slots=True)
class PrunedRequest:
    """A request with a context, and what the pruner removes of it.

    input_tokens: of the whole request. has_answer: what the answer needs is left.
    """

    request: Request
    input_tokens: float
    removed_tokens: float
    has_answer: bool


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


def pruned_requests(requests: Sequence[Request], pruner: "LazyPruner") -> list[PrunedRequest]:
    """Return the requests with contexts, without repeats, as the product prunes them. Blocking."""
    return [
        _pruned(one, pruner) for one in requests if one.kind == "rag" and not one.is_repeat
    ]  # fmt: skip


def _pruned(one: Request, pruner: "LazyPruner") -> PrunedRequest:
    messages = [Message(m["role"], m["content"]) for m in one.messages]
    places = context_places(messages, (), ())
    texts = texts_at(messages, places)
    found = pruner.get().prune(question_of(messages, places), [Part(text) for text in texts])
    left = "\n".join(message.text for message in replaced(messages, places, found.texts))
    has_answer = all(any(a.casefold() in left.casefold() for a in need) for need in one.needs)
    whole = sum(len(message.text) for message in messages)
    removed = max(0, whole - len(left)) / CHARS_PER_TOKEN
    return PrunedRequest(one, whole / CHARS_PER_TOKEN, removed, has_answer)


def contexts_earned(
    found: Sequence[PrunedRequest],
    before: TrafficBefore,
    target_error: float,
    pruner: str,
    seed: int = 1,
) -> Earned:
    """Return the claims on pruned contexts of each model that answers. Blocking: seconds.

    pruner: digest of all that decides what is removed.
    """
    course = _Course(found, before, target_error, pruner, seed)
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
        found: Sequence[PrunedRequest],
        before: TrafficBefore,
        target_error: float,
        pruner: str,
        seed: int,
    ) -> None:
        share = len(found) / len(before.requests)
        self.count = round(before.days * 86_400 / before.values["arrival_s"] * share)
        self._found = found
        self._before = before
        self._errs = Judge(before.values["slip"], before.values["place"])
        self._draw = np.random.default_rng(seed)
        self._output = mean_tokens("rag", before.values)
        self._claims: dict[str, _Held] = {}
        for rung in {
            before.rung(one.request).model: before.rung(one.request) for one in found
        }.values():
            shortcut = PairedModel(
                "pruned_context", rung.model, pruner, before.rungs.judge.model, target_error
            )
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
        traffic = Traffic(1, 1.0, one.input_tokens, self._output)
        whole = traffic.cost_usd(prices)
        pruned = whole - one.removed_tokens * float(prices.uncached_input)
        is_held = _serves(held)
        self._usd["reference"] += whole
        self._usd["answers"] += pruned if is_held else whole
        if one.removed_tokens:
            held.accepted += is_held
            self._compared(one, held, number, at, (whole, pruned))
        is_ahead = self._spent(self._usd) < self._usd["reference"]
        if not is_ahead:
            self._paid_back_at = None
        elif self._paid_back_at is None:
            self._paid_back_at = number

    def _compared(
        self, one: PrunedRequest, held: _Held, number: int, at: datetime, usd: tuple[float, float]
    ) -> None:
        claim = held.claim.claim
        is_held = _serves(held)
        share = compared_share(claim, EVIDENCE, SHADOW_SHARE, is_earned=is_held)
        kind = "audited" if is_held else "explored"
        if self._draw.random() >= share or not self._has_room(kind, at):
            return
        judging = Traffic(1, 1.0, one.input_tokens, self._output).judging_usd(
            self._before.rungs.judge.prices
        )
        whole, pruned = usd
        spent = (whole if is_held else pruned) + judging + AGAIN_SHARE * (whole + judging)
        self._usd[kind] += spent
        inputs = 0.0 if is_held else 1.0 / share
        held.compared += Comparisons(
            1, Decimal(whole - pruned), Decimal(spent - is_held * whole), inputs, AT
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
        self, one: PrunedRequest, held: _Held, number: int, at: datetime, share: float
    ) -> Audit:
        claim, action = held.claim.claim, held.claim.claim.action
        pair = judged_pair(*self._errs.pair(self._truth(one, held.rung), self._draw))
        accepted, held.accepted = held.accepted, 0
        held.compared += Comparisons(0, Decimal(0), Decimal(0), float(accepted), AT)
        return Audit(
            claim.id, f"context-{number}", str(number), str(number),
            "accepted" if _serves(held) else "shadow", share,
            "same" if pair.loss <= 0.5 else "different", pair.loss, claim.reference,
            (Candidate("model", 1.0, pair.loss, None, pair.badly_worse),), accepted=accepted,
            hypothesis=0 if action is None else action.hypothesis, drawn_at=at, judged_at=at,
        )  # fmt: skip

    def _truth(self, one: PrunedRequest, rung: Rung) -> Preference:
        """Return how the answer from the pruned context compares with that from the whole one."""
        if one.has_answer:
            return "same"
        values, kind = self._before.values, self._before.topics.kinds.get(one.request.key)
        if self._draw.random() >= values["right_frontier"] - lost(kind, rung.tier, values):
            # The answer from the whole context is wrong, too.
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
            "contexts", self._definitions,
            tuple(row for held in self._claims.values() for row in of_people(held.claim)), {},
            AT + timedelta(days=self._before.days), self.count, usd["reference"], usd["answers"],
            usd["explored"], usd["audited"], self._settled_at, self._paid_back_at,
            late_usd=late * usd["reference"], hits=self._pairs,
            states={
                held.rung.model: (_standing(held.claim.claim), held.requests / max(1, self.count))
                for held in self._claims.values()
            },
        )  # fmt: skip
