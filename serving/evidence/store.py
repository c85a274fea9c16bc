"""Evidence in the database: audits and events in one order, claims' states, and the lease.

Every method is blocking and raises LedgerUnavailable where the database is unreachable.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

from pydantic import TypeAdapter
from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Table,
    bindparam,
    case,
    delete,
    func,
    or_,
    select,
    type_coerce,
    update,
)

from serving.contracts.evidence import (
    Action,
    Audit,
    Candidate,
    Claim,
    ClaimEvent,
    ClaimState,
    Origin,
    Scope,
    ShortcutName,
)
from serving.contracts.routing import end_user_id
from serving.evidence.erasures import DrawnInput, erased, lock_evidence, note_erasure
from serving.evidence.payback import Comparisons
from serving.ledger.database import Database
from serving.ledger.instances import database_now
from serving.ledger.reports.query import refuse_unknown_tenant
from serving.ledger.schema import (
    Usd,
    UtcTime,
    evidence_acts,
    evidence_audits,
    evidence_claims,
    evidence_draws,
    evidence_events,
    evidence_lease,
    evidence_pending,
    evidence_sequence,
    evidence_states,
)
from serving.ledger.upsert import insert_new

_BATCH = 5000
_MOST_LEASE = timedelta(minutes=1)
_CANDIDATES: TypeAdapter[tuple[Candidate, ...]] = TypeAdapter(tuple[Candidate, ...])
_ACTION: TypeAdapter[Action] = TypeAdapter(Action)
_CLAIM: TypeAdapter[Claim] = TypeAdapter(Claim)


@dataclass(frozen=True, slots=True)
class Definition:
    """The part of a claim that never changes. has_suite: a gate certified its scope."""

    id: str
    scope: Scope
    shortcut: str
    loss: str
    target_error: float
    reference: str
    has_suite: bool
    opened_at: datetime


@dataclass(frozen=True, slots=True)
class EvidenceOwner:
    """A tenant, or one request or end user of it, whose evidence is deleted."""

    tenant: str
    request_id: str | None = None
    end_user: str | None = None

    def __post_init__(self) -> None:
        """Take the end user's id as it is stored."""
        if self.end_user is not None:
            object.__setattr__(self, "end_user", end_user_id(self.end_user))

    @property
    def is_tenant(self) -> bool:
        """Return whether everything of the tenant is meant."""
        return self.request_id is None and self.end_user is None


@dataclass(frozen=True, slots=True)
class States:
    """The states of all claims. sequence: the last row that any of them includes."""

    claims: Mapping[str, Claim]
    sequence: int


class EvidenceStore:
    """Reads and writes evidence. One object serves any thread."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def register(self, definitions: Iterable[Definition]) -> None:
        """Write claims that are not known yet."""
        rows = [_definition_row(item) for item in definitions]
        if rows:
            with self.database.begin() as connection:
                connection.execute(insert_new(connection, evidence_claims), rows)

    def has_claims(self) -> bool:
        """Return whether any claim was ever registered."""
        with self.database.read() as connection:
            return connection.execute(select(evidence_claims.c.id).limit(1)).first() is not None

    def definitions(self) -> list[Definition]:
        """Return every claim that was ever registered."""
        with self.database.read() as connection:
            found = connection.execute(select(evidence_claims).order_by(evidence_claims.c.id))
            return [_definition(row) for row in found]

    def draw(self, audits: Sequence[Audit]) -> None:
        """Write inputs that are to be audited, before their verdicts are known."""
        # A batch may be written again after its confirmation was lost.
        if not audits:
            return
        with self.database.begin() as connection:
            lock_evidence(connection)
            rows = [
                {"id": _draw_id(audit), **_common(audit)}
                for audit in not_erased(connection, audits)
            ]
            if rows:
                connection.execute(insert_new(connection, evidence_draws), rows)

    def append(
        self, audits: Sequence[Audit] = (), events: Sequence[ClaimEvent] = ()
    ) -> list[Audit | ClaimEvent]:
        """Append verdicts and events; return those that were new, with their sequences.

        Of two verdicts on one input of a claim, the first counts and the second is not written,
        nor is one on an input that was deleted after its draw.
        """
        if not audits and not events:
            return []
        with self.database.begin() as connection:
            written: list[Audit | ClaimEvent] = [*append_audits(connection, audits)]
            next_ = _take(connection, len(events)) if events else 0
            for number, event in enumerate(events, next_):
                event = replace(event, sequence=number)
                connection.execute(evidence_events.insert(), _event_row(event))
                written.append(event)
        return written

    def rows_after(self, sequence: int, claim: str | None = None) -> list[Audit | ClaimEvent]:
        """Return the audits and events after a sequence in their order, at most some thousands."""
        with self.database.read() as connection:
            found: list[Audit | ClaimEvent] = [
                *map(_audit, _after(connection, evidence_audits, sequence, claim)),
                *map(_event, _after(connection, evidence_events, sequence, claim)),
            ]
        found.sort(key=lambda row: row.sequence)
        # Both were cut at the same number: beyond the shorter one, rows of the other are missing.
        return found[:_BATCH]

    def missed(self, older_than: timedelta) -> list[Audit]:
        """Return inputs drawn so long ago that a crash must have ended their audits."""
        with self.database.read() as connection:
            # By the clock of gateways, as draws are: by the database's, if that is ahead, audits
            # that run were missed.
            before = datetime.now(UTC) - older_than
            rows = connection.execute(
                select(evidence_draws).where(evidence_draws.c.drawn_at < before).limit(_BATCH)
            )
            return [_dropped(row, before) for row in rows]

    def take_lease(self, holder: str, lease_s: float) -> bool:
        """Return whether this replica folds audits now; by the clock that all replicas share."""
        with self.database.begin() as connection:
            now = database_now(connection)
            until = now + timedelta(seconds=lease_s)
            row = {"id": 1, "holder": holder, "until": until}
            if insert_row(connection, evidence_lease, row):
                return True
            # Beyond what a lease can have left: the clock was set back since.
            latest = now + timedelta(seconds=2 * lease_s) + _MOST_LEASE
            ends = evidence_lease.c.until
            free = or_(evidence_lease.c.holder == holder, ends < now, ends > latest)
            values = update(evidence_lease).where(evidence_lease.c.id == 1, free)
            return bool(connection.execute(values.values(holder=holder, until=until)).rowcount)

    def save(self, claims: Iterable[Claim]) -> None:
        """Write the states of claims, for the replicas that do not fold.

        A state of fewer rows than the one that is stored is not written, nor one of rows that were
        erased: a replica that lost the lease while it folded comes late.
        """
        with self.database.begin() as connection:
            for claim in claims:
                row = _state_row(claim)
                older = evidence_states.c.sequence <= claim.sequence
                changed = connection.execute(
                    update(evidence_states)
                    .where(evidence_states.c.claim == claim.id, older)
                    .values(**row)
                )
                if not changed.rowcount and not _is_erased(connection, claim):
                    insert_row(connection, evidence_states, row)

    def states(self) -> States:
        """Return the states as they were last written."""
        with self.database.read() as connection:
            rows = connection.execute(select(evidence_states)).all()
        claims = {row.claim: _CLAIM.validate_json(row.document) for row in rows}
        return States(claims, max((row.sequence for row in rows), default=0))

    def judge_usd(self, since: datetime) -> Decimal:
        """Return what comparing in shadow cost since a moment, besides the clients' own answers."""
        cost = func.sum(evidence_audits.c.judge_usd).label("judge_usd")
        query = select(cost).where(evidence_audits.c.judged_at >= since)
        with self.database.read() as connection:
            return connection.execute(query).scalar_one() or Decimal(0)

    def spent_usd(self, since: datetime, *origins: Origin) -> dict[str, Decimal]:
        """Return what audits since a moment cost, by claim. origins: of these audits alone."""
        chosen = evidence_audits.c.judged_at >= since
        if origins:
            chosen &= evidence_audits.c.origin.in_(origins)
        cost = func.sum(evidence_audits.c.cost_usd).label("cost_usd")
        with self.database.read() as connection:
            rows = connection.execute(
                select(evidence_audits.c.claim, cost).where(chosen).group_by("claim")
            )
            return {row.claim: row.cost_usd or Decimal(0) for row in rows}

    def comparisons(
        self, since: datetime, shortcuts: Sequence[ShortcutName]
    ) -> dict[str, Comparisons]:
        """Return what comparing cost since a moment, and what it found, by claim of some shortcuts.

        Only inputs that the coin chose.
        """
        columns = evidence_audits.c
        chosen = (
            select(evidence_claims.c.id)
            .where(evidence_claims.c.shortcut.in_(shortcuts))
            .scalar_subquery()
        )
        query = (
            select(
                columns.claim, columns.origin, func.count(columns.avoided_usd),
                *(
                    type_coerce(func.sum(case((columns.avoided_usd.is_not(None), usd))), Usd)
                    for usd in (columns.avoided_usd, columns.cost_usd, columns.judge_usd)
                ),
                func.sum(1.0 / columns.coin), func.sum(columns.accepted),
                type_coerce(func.min(columns.judged_at), UtcTime),
            )
            .where(
                columns.judged_at >= since, columns.coin.is_not(None), columns.claim.in_(chosen),
                columns.origin.in_(("shadow", "accepted")),
            )
            .group_by(columns.claim, columns.origin)
        )  # fmt: skip
        found: dict[str, Comparisons] = {}
        with self.database.read() as connection:
            for claim, origin, *row in connection.execute(query):
                one = _comparisons(origin, *row)
                found[claim] = found[claim] + one if claim in found else one
        return found

    def refuse_unknown(self, tenant: str) -> None:
        """Raise NotFound for a tenant that there never was: a deletion for it must not look done.

        Blocking. Raises LedgerUnavailable.
        """
        refuse_unknown_tenant(self.database, tenant)

    def delete(self, owner: EvidenceOwner, actor: str) -> int:
        """Delete what names a tenant, a request or an end user; return the number of audits.

        A tenant's own claims go with their audits, and begin anew; those that a person withdrew
        stay withdrawn, without evidence. Of one request or end user the numbers stay, without ids,
        labels and digests. Both are noted as an act and, in claims that go on, as an event. What
        was drawn before and is still being audited is not written any more.
        """
        chosen = _chosen(evidence_audits, owner)
        with self.database.begin() as connection:
            lock_evidence(connection)
            note_erasure(connection, owner.tenant, owner.request_id, owner.end_user)
            claims = connection.execute(select(evidence_audits.c.claim).where(chosen).distinct())
            touched = set(claims.scalars())
            for table in (evidence_draws, evidence_pending):
                connection.execute(delete(table).where(_chosen(table, owner)))
            if owner.is_tenant:
                count = connection.execute(delete(evidence_audits).where(chosen)).rowcount
                touched -= _delete_claims(connection, owner.tenant, actor)
            else:
                count = _forget(connection, chosen)
            now = database_now(connection)
            why = "rows of a person were deleted"
            for claim in sorted(touched):
                _note(connection, ClaimEvent(claim, "deleted", why, actor, now, 0))
            row = {
                "id": uuid4().hex, "actor": actor, "act": "delete", "subject": owner.tenant,
                "at": now,
            }  # fmt: skip
            connection.execute(evidence_acts.insert(), row)
        return count

    def act(self, actor: str, act: str, subject: str) -> None:
        """Record who labelled, withdrew, exported, read or deleted what."""
        with self.database.begin() as connection:
            now = database_now(connection)
            row = {"id": uuid4().hex, "actor": actor, "act": act, "subject": subject, "at": now}
            connection.execute(evidence_acts.insert(), row)

    def acts(self) -> list[tuple[str, str, str, datetime]]:
        """Return (actor, act, subject, when), oldest first."""
        columns = (
            evidence_acts.c.actor, evidence_acts.c.act, evidence_acts.c.subject, evidence_acts.c.at,
        )  # fmt: skip
        with self.database.read() as connection:
            rows = connection.execute(select(*columns).order_by(evidence_acts.c.at))
            return [(row.actor, row.act, row.subject, row.at) for row in rows]


def _comparisons(
    origin: Origin, pairs: int, avoided: Decimal | None, cost: Decimal | None,
    judge: Decimal | None, drawn: float | None, accepted: int | None, first: datetime,
) -> Comparisons:  # fmt: skip
    usd = [amount or Decimal(0) for amount in (avoided, cost, judge)]
    if origin == "shadow":
        return Comparisons(pairs, usd[0], usd[2], float(drawn or 0.0), first)
    # An audit asks for the answer without the shortcut; in shadow the client pays for that.
    return Comparisons(pairs, usd[0], usd[1] - usd[0], float(accepted or 0), first)


def append_audits(connection: Connection, audits: Sequence[Audit]) -> list[Audit]:
    """Append verdicts as EvidenceStore.append does, within a transaction; return the new ones."""
    if not audits:
        return []
    next_ = _take(connection, len(audits))
    kept = not_erased(connection, audits)
    numbered = [replace(row, sequence=next_ + n) for n, row in enumerate(kept)]
    new: set[int] = set()
    if numbered:
        inserted = insert_new(connection, evidence_audits).returning(evidence_audits.c.sequence)
        new.update(connection.execute(inserted, [_row(row) for row in numbered]).scalars())
    done = delete(evidence_draws).where(evidence_draws.c.id == bindparam("draw"))
    connection.execute(done, [{"draw": _draw_id(audit)} for audit in audits])
    return [row for row in numbered if row.sequence in new]


def not_erased(connection: Connection, audits: Sequence[Audit]) -> list[Audit]:
    """Return those whose inputs were not deleted since their draws. Call it after the lock."""
    gone = erased(connection, map(_drawn_input, audits))
    return [audit for audit in audits if _drawn_input(audit) not in gone]


def _drawn_input(audit: Audit) -> DrawnInput:
    return DrawnInput(audit.tenant, audit.request_id, audit.end_user, audit.drawn_at)


def find_audit(connection: Connection, claim: str, name: str) -> Audit | None:
    """Return the row of an input of a claim; None where there is none."""
    columns = evidence_audits.c
    query = select(evidence_audits).where(columns.claim == claim, columns.input == name)
    row = connection.execute(query).one_or_none()
    return None if row is None else _audit(row)


def _chosen(table: Table, owner: EvidenceOwner) -> ColumnElement[bool]:
    found = table.c.tenant == owner.tenant
    if owner.request_id is not None:
        found &= table.c.request_id == owner.request_id
    if owner.end_user is not None:
        found &= table.c.end_user == owner.end_user
    return found


def _delete_claims(connection: Connection, tenant: str, actor: str) -> set[str]:
    """Delete a tenant's own claims; return their ids. Those of a pool stay.

    A withdrawn claim stays withdrawn, without its evidence: a deletion must not undo what a person
    decided. An event stays of each, so that a replica that folded the rows begins the claim anew.
    """
    own = (evidence_claims.c.tenants == tenant) & evidence_claims.c.pooled.is_(False)
    names = set(connection.execute(select(evidence_claims.c.id).where(own)).scalars())
    events = evidence_events.c
    ended = select(evidence_events).where(events.claim.in_(names), events.kind == "withdrawn")
    withdrawn = {event.claim: event for event in map(_event, connection.execute(ended))}
    for column in (events.claim, evidence_states.c.claim):
        connection.execute(delete(column.table).where(column.in_(names)))
    others = evidence_claims.c.id.in_(names - set(withdrawn))
    connection.execute(delete(evidence_claims).where(others))
    now = database_now(connection)
    for name in sorted(names):
        why = "its tenant's evidence was deleted"
        _note(connection, ClaimEvent(name, "erased", why, actor, now, 0))
        if name in withdrawn:
            _withdraw_again(connection, withdrawn[name])
    return names


def _withdraw_again(connection: Connection, withdrawal: ClaimEvent) -> None:
    """Write a withdrawal behind an erasure, and the state of a claim without evidence."""
    sequence = _note(connection, withdrawal)
    query = select(evidence_claims).where(evidence_claims.c.id == withdrawal.claim)
    item = _definition(connection.execute(query).one())
    state = Claim(
        item.id, item.scope, item.shortcut, item.loss, item.target_error, item.reference,  # type: ignore[arg-type]
        ClaimState.WITHDRAWN, withdrawal.at, reason=withdrawal.reason, sequence=sequence,
    )  # fmt: skip
    connection.execute(evidence_states.insert(), _state_row(state))


def _note(connection: Connection, event: ClaimEvent) -> int:
    """Append an event behind every other row; return its sequence."""
    sequence = _take(connection, 1)
    event = replace(event, sequence=sequence, after=sequence - 1)
    connection.execute(evidence_events.insert(), _event_row(event))
    return sequence


def _state_row(claim: Claim) -> dict[str, Any]:
    document = _CLAIM.dump_json(claim).decode()
    return {"claim": claim.id, "document": document, "sequence": claim.sequence}


def _is_erased(connection: Connection, claim: Claim) -> bool:
    """Return whether a claim's tenant was deleted after the last row that a state includes."""
    events = evidence_events.c
    later = (events.claim == claim.id) & (events.kind == "erased")
    query = select(events.sequence).where(later, events.sequence > claim.sequence)
    return connection.execute(query.limit(1)).first() is not None


def _forget(connection: Connection, chosen: ColumnElement[bool]) -> int:
    """Take ids, labels and digests from audits, so that equal groups and texts stay equal."""
    columns = evidence_audits.c
    rows = connection.execute(
        select(columns.sequence, columns.group_id, columns.text_digest, columns.candidates).where(
            chosen
        )
    ).all()
    names: defaultdict[str, str] = defaultdict(lambda: uuid4().hex[:16])
    for row in rows:
        made = [replace(one, label=None) for one in _CANDIDATES.validate_json(row.candidates)]
        connection.execute(
            update(evidence_audits)
            .where(columns.sequence == row.sequence)
            .values(
                request_id="", end_user=None, served=None, label=None,
                candidates=_CANDIDATES.dump_json(tuple(made)).decode(),
                group_id=names[row.group_id], text_digest=names[row.text_digest],
            )
        )  # fmt: skip
    return len(rows)


def insert_row(connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
    """Insert a row unless its key exists; return whether it was new."""
    (key, *_) = table.primary_key.columns
    # Not rowcount: psycopg reports none for such an insert.
    inserted = insert_new(connection, table).returning(key)
    return connection.execute(inserted, row).first() is not None


def _take(connection: Connection, count: int) -> int:
    """Return the first of so many sequences. The row stays locked until the commit."""
    value = evidence_sequence.c.value
    taken = update(evidence_sequence).values(value=value + count).returning(value)
    last: int = connection.execute(taken).scalar_one()
    return last - count + 1


def _after(
    connection: Connection, table: Table, sequence: int, claim: str | None
) -> list[Row[Any]]:
    found = select(table).where(table.c.sequence > sequence).order_by(table.c.sequence)
    if claim is not None:
        found = found.where(table.c.claim == claim)
    return list(connection.execute(found.limit(_BATCH)))


def _draw_id(audit: Audit) -> str:
    return f"{audit.claim}:{audit.input}"


def _common(audit: Audit) -> dict[str, Any]:
    return {
        "claim": audit.claim,
        "input": audit.input,
        "group_id": audit.group,
        "text_digest": audit.text,
        "origin": audit.origin,
        "coin": audit.coin,
        "tenant": audit.tenant,
        "request_id": audit.request_id,
        "end_user": audit.end_user,
        "accepted": audit.accepted,
        "hypothesis": audit.hypothesis,
        "drawn_at": audit.drawn_at,
    }


def _row(audit: Audit) -> dict[str, Any]:
    return {
        **_common(audit),
        "sequence": audit.sequence,
        "verdict": audit.verdict,
        "loss": audit.loss,
        "reference": audit.reference,
        "candidates": _CANDIDATES.dump_json(audit.candidates).decode(),
        "served": audit.served,
        "label": audit.label,
        "cost_usd": audit.cost_usd,
        "judge_usd": audit.judge_usd,
        "judged_at": audit.judged_at,
        "avoided_usd": audit.avoided_usd,
    }


def _audit(row: Row[Any]) -> Audit:
    return Audit(
        row.claim, row.input, row.group_id, row.text_digest, row.origin, row.coin, row.verdict,
        row.loss, row.reference, _CANDIDATES.validate_json(row.candidates), row.served, row.label,
        row.cost_usd, row.tenant, row.request_id, row.end_user, row.accepted, row.hypothesis,
        row.drawn_at, row.judged_at, row.sequence, row.judge_usd,
        row.avoided_usd,
    )  # fmt: skip


def _dropped(row: Row[Any], at: datetime) -> Audit:
    return Audit(
        row.claim, row.input, row.group_id, row.text_digest, row.origin, row.coin, "dropped", None,
        "", tenant=row.tenant, request_id=row.request_id, end_user=row.end_user,
        accepted=row.accepted, hypothesis=row.hypothesis, drawn_at=row.drawn_at, judged_at=at,
    )  # fmt: skip


def _event_row(event: ClaimEvent) -> dict[str, Any]:
    action = None if event.action is None else _ACTION.dump_json(event.action).decode()
    return {**asdict(event), "action": action}


def _event(row: Row[Any]) -> ClaimEvent:
    action = None if row.action is None else _ACTION.validate_json(row.action)
    return ClaimEvent(
        row.claim, row.kind, row.reason, row.actor, row.at, row.after, action, row.sequence
    )


def _definition_row(item: Definition) -> dict[str, Any]:
    return {
        "id": item.id,
        "tenants": item.scope.tenants,
        "subject": item.scope.subject,
        "versions": json.dumps(dict(item.scope.versions), sort_keys=True),
        "shortcuts": json.dumps(list(item.scope.shortcuts)),
        "pooled": item.scope.pooled,
        "shortcut": item.shortcut,
        "loss": item.loss,
        "target_error": item.target_error,
        "reference": item.reference,
        "has_suite": item.has_suite,
        "opened_at": item.opened_at,
    }


def _definition(row: Row[Any]) -> Definition:
    scope = Scope(
        row.tenants, row.subject, json.loads(row.versions), tuple(json.loads(row.shortcuts)),
        row.pooled,
    )  # fmt: skip
    return Definition(
        row.id, scope, row.shortcut, row.loss, row.target_error, row.reference, row.has_suite,
        row.opened_at,
    )  # fmt: skip
