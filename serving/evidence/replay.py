"""When labelled inputs would have earned a claim, at which threshold and coverage. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from serving.contracts.evidence import Action, Audit, Candidate, ClaimEvent, ClaimState, Scope
from serving.contracts.evidence_settings import EvidenceSettings
from serving.evidence.candidates import MODEL
from serving.evidence.fold import ClaimFold
from serving.evidence.store import Definition

_BEGIN = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Replayed:
    """One input, as the running task answered it. confidence: below 0 where it was unreadable."""

    text: str
    confidence: float
    loss: float


@dataclass(frozen=True, slots=True)
class Replay:
    """What would have been. earned_after: inputs until the claim was held; None where it was not.

    accepted, errors: of the inputs after that. suspended_after: inputs until the first suspension.
    """

    inputs: int
    earned_after: int | None
    suspended_after: int | None
    action: Action | None
    accepted: int
    errors: float
    after: int

    @property
    def coverage(self) -> float | None:
        """Return the share of later inputs that would have been answered locally."""
        return self.accepted / self.after if self.after else None

    @property
    def error(self) -> float | None:
        """Return the mean loss among these."""
        return self.errors / self.accepted if self.accepted else None


def replay(rows: Sequence[Replayed], target_error: float, settings: EvidenceSettings) -> Replay:
    """Return when the inputs, in their order, would have earned a claim.

    Every input is its own group, and hours do not count: a file has no clients and no times.
    """
    rules = settings.model_copy(update={"group_window_s": 0.0, "min_span_h": 0.0})
    definition = Definition(
        "replay", Scope("replay", "replay"), "local_task", "exact", target_error, "labels", False,
        _BEGIN,
    )  # fmt: skip
    fold = ClaimFold(definition, rules)
    earned_after = suspended_after = action = None
    accepted, errors, after = 0, 0.0, 0
    for number, row in enumerate(rows, 1):
        held = fold.claim.action if fold.claim.state is ClaimState.HELD else None
        taken = held is not None and row.confidence >= held.threshold
        after += held is not None
        accepted += taken
        errors += row.loss if taken else 0.0
        fold.add(_audit(number, row, held, taken=taken))
        for test in fold.due_tests():
            fold.add(
                ClaimEvent("replay", "tested", "replay", "replay", _BEGIN, number, test, number)
            )
        if fold.claim.state is ClaimState.HELD and earned_after is None:
            earned_after, action = number, fold.claim.action
        if fold.claim.state is ClaimState.SUSPENDED and suspended_after is None:
            suspended_after = number
    return Replay(len(rows), earned_after, suspended_after, action, accepted, errors, after)


def _audit(number: int, row: Replayed, held: Action | None, *, taken: bool) -> Audit:
    at = _BEGIN + timedelta(seconds=number)
    return Audit(
        claim="replay", input=str(number), group=str(number), text=row.text,
        origin="accepted" if taken else "shadow", coin=1.0,
        verdict="different" if row.loss else "same", loss=row.loss, reference="labels",
        candidates=(Candidate(MODEL, row.confidence, row.loss),),
        hypothesis=0 if held is None else held.hypothesis, drawn_at=at, judged_at=at,
        sequence=number,
    )  # fmt: skip
