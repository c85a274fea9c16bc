"""The course of a claim over its audited inputs: periods, confidence sequences, coverage. Pure."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from serving.contracts.evidence import FOLD, Audit, ClaimEvent
from serving.evidence.statistics.intervals import mean_sequence

_POINTS = 200
_ENDS = {"earned": "held", "suspended": "suspended", "withdrawn": "withdrawn",
         "not_earnable": "not_earnable"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """The confidence sequence of the error after so many audits of accepted answers.

    number: of audited inputs of the claim in all, from 1.
    """

    number: int
    audits: int
    at: datetime
    error: float
    low: float
    high: float


@dataclass(slots=True)
class Period:
    """A time in one state. begin, end: numbers of audited inputs. accepted: answered locally.

    escalated: inputs below the threshold. hypothesis: the claimed one, 0 where none is.
    """

    state: str
    since: datetime | None
    begin: int
    end: int
    hypothesis: int = 0
    accepted: int = 0
    escalated: int = 0
    points: list[Point] = field(default_factory=list)

    @property
    def coverage(self) -> float | None:
        """Return the share of inputs that were answered locally; None where none was counted."""
        inputs = self.accepted + self.escalated
        return self.accepted / inputs if inputs and self.state == "held" else None

    def document(self) -> dict[str, Any]:
        """Return the period as JSON, with at most 200 points."""
        step = max(1, len(self.points) // _POINTS)
        kept = [p for n, p in enumerate(self.points, 1) if n % step == 0 or n == len(self.points)]
        points = [{**asdict(point), "at": point.at.isoformat()} for point in kept]
        since = None if self.since is None else self.since.isoformat()
        return {
            "state": self.state, "since": since, "begin": self.begin, "end": self.end,
            "hypothesis": self.hypothesis, "accepted": self.accepted,
            "escalated": self.escalated, "coverage": self.coverage, "points": points,
        }  # fmt: skip


def history(begun: str, rows: Iterable[Audit | ClaimEvent]) -> list[Period]:
    """Return the periods of a claim. begun: its first state. rows: in any order."""
    periods = [Period(begun, None, 0, 0)]
    number, losses, audits = 0, 0.0, 0
    for row in sorted(rows, key=_position):
        now = periods[-1]
        if isinstance(row, ClaimEvent):
            state = _ENDS.get(row.kind)
            if state is not None:
                hypothesis = row.action.hypothesis if row.action and state == "held" else 0
                periods.append(Period(state, row.at, number, number, hypothesis))
                losses, audits = 0.0, 0
            continue
        if row.origin == "person":
            continue
        # An input whose label is awaited has a row of its own once the label is there.
        number += row.verdict != "awaited"
        now.end = number
        now.escalated += row.origin == "escalated"
        if row.hypothesis == now.hypothesis:
            now.accepted += row.accepted
        is_own = row.origin == "accepted" and now.hypothesis == row.hypothesis
        if is_own and now.hypothesis and row.loss is not None:
            audits += 1
            losses += row.loss
            found = mean_sequence(losses, audits)
            now.points.append(
                Point(number, audits, row.judged_at, found.mean, found.low, found.high)
            )
    return periods


def _position(row: Audit | ClaimEvent) -> tuple[int, bool]:
    """Return where a row takes effect: what follows from an audit, directly after it."""
    if isinstance(row, ClaimEvent) and row.actor == FOLD:
        return (row.after, True)
    return (row.sequence, False)
