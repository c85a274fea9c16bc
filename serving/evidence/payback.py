"""Whether a shortcut pays for the comparisons that its claim needs. Pure.

Tiers plan by the same estimates what they explore. The paired shortcuts compare a share of their
requests until they see that this costs more than it is expected to bring.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from serving.contracts.evidence import Claim, ClaimState, ShortcutName
from serving.contracts.evidence_settings import EvidenceSettings
from serving.evidence.statistics.betting import examples_needed
from serving.evidence.statistics.placement import bar

PAIRED: tuple[ShortcutName, ...] = ("brief_answer", "cached_answer", "pruned_context")
"""Shortcuts whose answers are compared with those without them, request by request."""

SHADOW_SHARE = 0.2
"""Of the requests that are compared while a claim on brief answers or contexts is being earned."""

LEAST_PAIRS = 50
"""Comparisons of known cost before they decide anything."""

MOST_EARNABLE = 0.5
"""Net share, of the target, above which earning takes too many pairs to be planned with."""

_FEWEST_PAIRS = 75.0
"""Pairs without any badly worse answer that earn a claim at a limit of 5 %."""

_PRIOR_PAIRS = 20.0
_PRIOR_NET = 0.02
PRIOR_CHANCE = 0.5
_PAIR_DEVIATION = 0.45
"""Standard deviation of (worse - better) of one pair, in both orders."""

_RESUMES_AT = 1.5
"""Of its cost, that a slowed claim must be expected to bring: means are of few comparisons."""

_LEAST_DAYS = 1.0 / 24.0
"""Comparisons of a shorter time say little about a day."""

_DECIDED = (ClaimState.NOT_EARNABLE, ClaimState.WITHDRAWN)


def _estimate(claim: Claim | None) -> tuple[float, float]:
    """Return the net share of worse answers seen so far, drawn towards a prior, and its pairs."""
    if claim is None or claim.shadow_loss is None:
        return _PRIOR_NET, _PRIOR_PAIRS
    pairs = _PRIOR_PAIRS + claim.audits
    return (_PRIOR_PAIRS * _PRIOR_NET + claim.audits * claim.shadow_loss) / pairs, pairs


def pairs_left(claim: Claim | None, target_error: float) -> float:
    """Return about how many more judged pairs earn a claim, given that it can be earned.

    Few pairs say little: a share above the target in the first thirty is mostly chance, which
    `chance` weighs. Abandoned for that, one of five good tiers was never earned.
    """
    net, _ = _estimate(claim)
    # Losses are half of net shares.
    distance = (target_error - min(net, MOST_EARNABLE * target_error)) / 2.0
    growth = min(0.06, distance**2 / (2.0 * 0.02))
    hypothesis = 1 if claim is None else max(1, claim.hypotheses)
    needed = max(_FEWEST_PAIRS, math.log(bar(hypothesis)) / growth)
    return needed * (1.0 - (0.0 if claim is None else claim.progress))


def chance(claim: Claim | None, target_error: float) -> float:
    """Return the probability that a claim is earned: that its net share is below the target.

    One half before any pair; then by the normal distribution about the share seen so far.
    """
    if claim is None or claim.shadow_loss is None or claim.audits == 0:
        return PRIOR_CHANCE
    net, pairs = _estimate(claim)
    score = (target_error - net) / (_PAIR_DEVIATION / math.sqrt(pairs))
    seen = 0.5 * math.erfc(-score / math.sqrt(2.0))
    weight = claim.audits / pairs
    return weight * seen + (1.0 - weight) * PRIOR_CHANCE


@dataclass(frozen=True, slots=True)
class Comparisons:
    """What was compared under one claim in some time.

    pairs: whose both answers have a known cost. avoided_usd: by the shortcut in these. usd: what
    comparing them cost, without the answers that the reference gave. inputs: that took the
    shortcut, or could have; estimated from the coins. first: when the first one was judged.
    """

    pairs: int
    avoided_usd: Decimal
    usd: Decimal
    inputs: float
    first: datetime

    def __add__(self, other: "Comparisons") -> "Comparisons":
        return Comparisons(
            self.pairs + other.pairs, self.avoided_usd + other.avoided_usd, self.usd + other.usd,
            self.inputs + other.inputs, min(self.first, other.first),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Payback:
    """What a claim is expected to bring within evidence.payback_days, and what comparing costs."""

    saved_usd: float
    compared_usd: float

    def pays(self, claim: Claim) -> bool:
        """Return whether comparing goes on. A claim that was slowed needs some margin to resume."""
        return self.saved_usd > self.compared_usd * (_RESUMES_AT if claim.is_slowed else 1.0)


def payback(
    found: Comparisons, claim: Claim, settings: EvidenceSettings, now: datetime
) -> Payback | None:
    """Return what a claim is expected to bring; None where too few pairs say so, or none is needed.

    found: of the last evidence.payback_days. What was spent before is spent: it decides nothing.
    """
    if found.pairs < LEAST_PAIRS or claim.state in _DECIDED:
        return None
    days = settings.payback_days
    seen_days = max(_LEAST_DAYS, (now - found.first) / timedelta(days=1))
    inputs = found.inputs / seen_days * days
    saving, pair_usd = (float(usd) / found.pairs for usd in (found.avoided_usd, found.usd))
    # An audit of a served answer pays for the reference's answer as well.
    audit_usd = max(0.0, pair_usd + saving)
    left, is_earned = _left(claim)
    used = max(0.0, inputs - left / _share(claim))
    new = settings.high_rate_inputs
    if claim.state is ClaimState.HELD:
        new = max(0, new - claim.since_signal)
    floor = settings.floor_rate
    watched_usd = (floor * used + (settings.high_rate - floor) * min(new, used)) * audit_usd
    return Payback(is_earned * saving * used, left * pair_usd + is_earned * watched_usd)


def _left(claim: Claim) -> tuple[float, float]:
    """Return about how many pairs a claim still needs, and the chance that it is earned."""
    target = claim.target_error
    if claim.state is ClaimState.HELD:
        return 0.0, 1.0
    if claim.loss == "net_worse":
        return pairs_left(claim, target), chance(claim, target)
    needed = examples_needed(MOST_EARNABLE * target, target, bar(max(1, claim.hypotheses)))
    return needed * (1.0 - claim.progress), chance(claim, target)


def _share(claim: Claim) -> float:
    """Return the share of the inputs that is compared while the claim is being earned."""
    # Of hits by meaning the model's own answer is paid for anyway: each is compared.
    return 1.0 if claim.shortcut == "cached_answer" else SHADOW_SHARE
