"""How often accepted answers are audited, and whether an audit is affordable now. Pure."""

import secrets
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from serving.contracts.evidence import Claim, ClaimState
from serving.contracts.evidence_settings import EvidenceSettings
from serving.evidence.statistics.audit_rate import AuditSchedule, budget_by_now, is_drawn

_random = secrets.SystemRandom()


def coin(probability: float) -> bool:
    """Return true with a probability, from the system's cryptographic generator."""
    return is_drawn(_random.random(), probability)


def audit_rate(claim: Claim | None, settings: EvidenceSettings, now: datetime) -> float:
    """Return the share of inputs to audit. It depends on the claim and the time, never on an input.

    A claim that is not held is audited at high_rate.
    """
    if claim is None or claim.state is not ClaimState.HELD or claim.earned_at is None:
        return settings.high_rate
    schedule = AuditSchedule(
        settings.high_rate,
        settings.high_rate_inputs,
        # min_audits_a_day comes before the share of cost: few audits cost little.
        min(settings.floor_rate, claim.affordable_rate),
        settings.min_audits_a_day,
    )
    days = max((now - claim.earned_at).total_seconds() / 86_400, 1e-6)
    return schedule.rate(claim.since_signal, claim.accepted / days)


@dataclass(frozen=True, slots=True)
class Spent:
    """What audits cost. today_usd: of all claims since midnight, UTC. shadow_usd: by one claim."""

    today_usd: Decimal = Decimal(0)
    shadow_usd: Decimal = Decimal(0)


@dataclass(slots=True)
class DeferredCost:
    """Worst case of deferred audits that the last reading of the database may lack, US dollars.

    For the event loop alone. queued_usd: not stored yet. stored_usd: stored since the last reading
    began: an audit counts until a reading began after it was stored.
    """

    queued_usd: Decimal = Decimal(0)
    stored_usd: Decimal = Decimal(0)

    @property
    def total_usd(self) -> Decimal:
        """Return what counts beside the last reading."""
        return self.queued_usd + self.stored_usd

    def store(self, usd: Decimal) -> None:
        """Count queued audits as stored."""
        self.queued_usd -= usd
        self.stored_usd += usd

    def is_read(self, stored_usd: Decimal) -> None:
        """Leave out what a reading contains. stored_usd: as it was before the reading began."""
        self.stored_usd -= stored_usd


def is_affordable(spent: Spent, settings: EvidenceSettings, now: datetime) -> bool:
    """Return whether the day's budget, paced over the day, has room for another audit."""
    return has_room(spent, settings.max_usd_a_day, now)


def has_room(spent: Spent, max_usd_a_day: Decimal, now: datetime) -> bool:
    """Return whether a budget, paced over the day, has room for another call."""
    elapsed_s = now.hour * 3600 + now.minute * 60 + now.second
    return spent.today_usd < budget_by_now(max_usd_a_day, elapsed_s)


def shadow_rate(claim: Claim | None, spent: Spent, settings: EvidenceSettings) -> float:
    """Return the share of shadowed inputs that are evidence.

    All of them, until the stop rule, its payback or the shadow's budget leaves a sample.
    """
    is_over = claim is not None and (claim.state is ClaimState.NOT_EARNABLE or claim.is_slowed)
    stopped = is_over or spent.shadow_usd >= settings.shadow_max_usd
    return settings.sample_rate if stopped else 1.0
