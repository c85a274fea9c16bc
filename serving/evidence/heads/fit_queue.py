"""Which scope is fitted next, and by which replica. All methods block."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, Connection, func, or_, select, update

from serving.contracts.head_settings import HeadSettings
from serving.evidence.heads.schema import head_examples, head_scopes
from serving.ledger.database import Database

# Beyond the time of the fit itself: reading, writing, and clocks that differ between replicas.
_LEASE_MARGIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Due:
    """A scope that this replica fits. reason: `examples`, `erased`, or that of a request.

    requested_at, erased_at: as they were when the scope was taken.
    """

    scope_id: str
    task: str
    reason: str
    examples: int
    requested_at: datetime | None
    erased_at: datetime | None


def next_fit(fitted_examples: int, settings: HeadSettings) -> int:
    """Return the number of examples at which a scope is fitted next: 100, 200, 400, 800, ...

    fitted_examples: of the last fit, 0 before the first.
    """
    wanted = float(settings.first_fit)
    while int(wanted) <= fitted_examples:
        wanted *= settings.growth
    return int(wanted)


class FitQueue:
    """Takes scopes that are due for this replica. replica: its name, distinct."""

    def __init__(self, database: Database, settings: HeadSettings, replica: str) -> None:
        self._database = database
        self._settings = settings
        self._replica = replica

    def take(self) -> Due | None:
        """Return a scope that is due and that no other replica fits, reserved for this one.

        What was erased comes first, then requests, then scopes with enough new examples. The
        reservation ends with `finish`, or some time after max_fit_s.
        """
        now = datetime.now(UTC)
        longest = timedelta(seconds=self._settings.max_fit_s + _LEASE_MARGIN_S)
        until, held_until = now + longest, head_scopes.c.held_until
        # Beyond what a reservation can have left: the clock was set back since.
        is_free = or_(held_until.is_(None), held_until < now, held_until > until + longest)
        with self._database.read() as connection:
            found = _due(connection, is_free, self._settings)
        for due in found:
            with self._database.begin() as connection:
                taken = connection.execute(
                    update(head_scopes)
                    .where(head_scopes.c.id == due.scope_id, is_free)
                    .values(holder=self._replica, held_until=until)
                )
            if taken.rowcount == 1:
                return due
        return None

    def finish(self, due: Due, *, is_done: bool) -> None:
        """Free the scope. is_done: it is not due again for the same reason.

        A request or an erasure that came after the scope was taken stays.
        """
        ours = (head_scopes.c.id == due.scope_id) & (head_scopes.c.holder == self._replica)
        with self._database.begin() as connection:
            connection.execute(update(head_scopes).where(ours).values(holder=None, held_until=None))
            if not is_done:
                return
            same = head_scopes.c.id == due.scope_id
            requested = head_scopes.c.requested_at == due.requested_at
            erased = head_scopes.c.erased_at == due.erased_at
            connection.execute(
                update(head_scopes).where(same, requested).values(requested_at=None, request=None)
            )
            connection.execute(update(head_scopes).where(same, erased).values(erased_at=None))
            connection.execute(
                update(head_scopes)
                .where(same, head_scopes.c.fitted_examples < due.examples)
                .values(fitted_examples=due.examples)
            )


def _due(
    connection: Connection, is_free: ColumnElement[bool], settings: HeadSettings
) -> Sequence[Due]:
    count = func.count(head_examples.c.id)
    rows = connection.execute(
        select(head_scopes, count.label("examples"))
        .join_from(head_scopes, head_examples, isouter=True)
        .where(is_free)
        .group_by(head_scopes.c.id)
    ).all()
    found = []
    for row in rows:
        if row.erased_at is not None:
            rank, reason = 0, "erased"
        elif row.requested_at is not None:
            rank, reason = 1, row.request
        elif row.examples >= next_fit(row.fitted_examples, settings):
            rank, reason = 2, "examples"
        else:
            continue
        due = Due(row.id, row.task, reason, row.examples, row.requested_at, row.erased_at)
        found.append((rank, row.fitted_examples, row.id, due))
    return [due for _, _, _, due in sorted(found, key=lambda item: item[:3])]
