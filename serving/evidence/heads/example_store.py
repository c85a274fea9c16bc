"""Labelled examples in the database: vectors and labels, never texts.

Vectors can be turned back into text in part, so they are personal data: encrypted, erased by
tenant, request and end user, and kept for some days only. All methods block.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import numpy as np
from sqlalchemy import ColumnElement, Connection, delete, exc, func, select, update

from serving.contracts.errors import InvalidKey, InvalidRequest
from serving.evidence.erasures import DrawnInput, erased, lock_evidence
from serving.evidence.heads.arrays import DamagedArrays, pack, unpack
from serving.evidence.heads.candidate import DIMENSIONS, MAX_LABELS, Floats, HeadScope
from serving.evidence.heads.cipher import KEY_ID_BYTES, UnreadableContent, VectorCipher
from serving.evidence.heads.examples import Example, FitRows
from serving.evidence.heads.schema import head_examples, head_scopes, heads
from serving.evidence.store import EvidenceOwner
from serving.ledger.database import Database
from serving.ledger.upsert import insert_new

_END_USER = "end user"
_TEXT = "text"


@dataclass(frozen=True, slots=True)
class Task:
    """What the examples of a scope are labelled for.

    labels: of the task, in its order. encoder: names the encoder of the vectors. model: digest of
    the local model whose label probabilities are used; empty where none runs.
    """

    scope: HeadScope
    labels: tuple[str, ...]
    encoder: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class Source:
    """Where an example comes from. text: it is not stored, only its keyed digest is.

    by_person: a person labelled it; the label replaces an earlier one of the same text. drawn_at:
    when the input was drawn; None for one that no deletion can have come after.
    """

    tenant: str
    request_id: str
    text: str
    end_user: str | None = None
    by_person: bool = False
    drawn_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Rows for a fit, and the ids of the examples that they were made of.

    unreadable: examples left out because no key decrypts them. examples: of the scope, in all.
    """

    rows: FitRows
    ids: tuple[str, ...]
    unreadable: int
    examples: int


@dataclass(frozen=True, slots=True)
class Erased:
    """What was erased. scopes: ids of scopes whose heads are to be fitted again."""

    examples: int
    scopes: tuple[str, ...]


class ExampleStore:
    """Stores and erases examples. Safe between threads and replicas."""

    def __init__(self, database: Database, cipher: VectorCipher) -> None:
        self._database = database
        self._cipher = cipher

    def add(self, task: Task, source: Source, example: Example) -> bool:
        """Store an example; return whether it is new in its scope.

        A scope has each text once (case and white space apart): the first label stays, unless a
        person gives another. One that was deleted after it was drawn is not stored. Raises
        InvalidRequest for a label or a vector that the task does not
        have, LedgerUnavailable.
        """
        _refuse_unfit(task, example)
        scope = task.scope.id
        text = self._cipher.digest(_TEXT, f"{scope}\x00{' '.join(source.text.casefold().split())}")
        row_id = uuid4().hex
        end_user = source.end_user
        row = {
            "id": row_id,
            "scope": scope,
            "tenant": source.tenant,
            "request_id": source.request_id,
            "end_user_digest": end_user and self._cipher.digest(
                _END_USER, f"{source.tenant}\x00{end_user}"
            ),
            "text_digest": text,
            "encoder": task.encoder,
            "content": self._cipher.encrypted(
                _content(example), _row_name(row_id, scope, source.tenant)
            ),
            "created_at": datetime.now(UTC),
        }  # fmt: skip
        same = (head_examples.c.scope == scope) & (head_examples.c.text_digest == text)
        try:
            with self._database.begin() as connection:
                if _is_erased(connection, source):
                    return False
                _ensure_scope(connection, task)
                if source.by_person:
                    connection.execute(delete(head_examples).where(same))
                # PostgreSQL's driver does not tell how many rows such an insert added.
                added = insert_new(connection, head_examples).returning(head_examples.c.id)
                return connection.execute(added, row).first() is not None
        except exc.IntegrityError:
            # The scope was erased with its tenant in the meantime.
            return False

    def count(self, scope: HeadScope) -> int:
        """Return how many examples a scope has."""
        with self._database.read() as connection:
            return _count(connection, head_examples.c.scope == scope.id)

    def read(self, scope_id: str, max_rows: int) -> ReadRows:
        """Return the newest examples of one scope, decrypted, as rows for a fit.

        Only those of the encoder that the newest example has: others are not comparable. Raises
        InvalidRequest for an unknown scope.
        """
        with self._database.read() as connection:
            task = _read_task(connection, scope_id)
            found = connection.execute(
                select(head_examples)
                .where(head_examples.c.scope == scope_id)
                .order_by(head_examples.c.created_at.desc(), head_examples.c.id)
                .limit(max_rows)
            ).all()
            count = _count(connection, head_examples.c.scope == scope_id)
        encoder = found[0].encoder if found else ""
        examples: list[Example] = []
        ids: list[str] = []
        unreadable = 0
        for row in found:
            example = self._decrypted(row, len(task.labels)) if row.encoder == encoder else None
            if example is None or example.label not in task.labels:
                unreadable += 1
                continue
            examples.append(example)
            ids.append(row.id)
        rows = FitRows.of(task.scope, task.labels, encoder, task.model, examples)
        return ReadRows(rows, tuple(ids), unreadable, count)

    def erase_tenant(self, tenant: str) -> Erased:
        """Erase a tenant's examples, and its own scopes with all of their heads at once."""
        own = (head_scopes.c.tenants == tenant) & head_scopes.c.pooled.is_(False)
        with self._database.begin() as connection:
            # Before anything is deleted: an example that is being added waits, and finds no scope.
            gone = lock_scopes(connection, own)
            erased = _erase(connection, head_examples.c.tenant == tenant)
            connection.execute(delete(head_examples).where(head_examples.c.scope.in_(gone)))
            connection.execute(delete(heads).where(heads.c.scope.in_(gone)))
            connection.execute(delete(head_scopes).where(head_scopes.c.id.in_(gone)))
        return Erased(erased.examples, tuple(s for s in erased.scopes if s not in gone))

    def erase_request(self, tenant: str, request_id: str) -> Erased:
        """Erase the examples of one request of a tenant."""
        where = (head_examples.c.tenant == tenant) & (head_examples.c.request_id == request_id)
        with self._database.begin() as connection:
            return _erase(connection, where)

    def erase_end_user(self, tenant: str, end_user: str) -> Erased:
        """Erase the examples of one end user of a tenant (`user` or `safety_identifier`)."""
        digests = self._cipher.digests(_END_USER, f"{tenant}\x00{end_user}")
        where = (head_examples.c.tenant == tenant) & (head_examples.c.end_user_digest.in_(digests))
        with self._database.begin() as connection:
            return _erase(connection, where)

    def erase(self, owner: EvidenceOwner) -> int:
        """Erase the examples of a tenant, a request or an end user; return how many."""
        if owner.is_tenant:
            return self.erase_tenant(owner.tenant).examples
        count = 0
        if owner.request_id is not None:
            count += self.erase_request(owner.tenant, owner.request_id).examples
        if owner.end_user is not None:
            count += self.erase_end_user(owner.tenant, owner.end_user).examples
        return count

    def check_key(self, tenant: str) -> None:
        """Raise InvalidKey where a tenant's examples have another key: end users are not found."""
        name = func.substr(head_examples.c.content, 1, KEY_ID_BYTES)
        query = select(name).where(head_examples.c.tenant == tenant).distinct()
        with self._database.read() as connection:
            used = {bytes(found).hex() for found in connection.scalars(query)}
        if used - set(self._cipher.key_ids):
            raise InvalidKey(
                f"examples of tenant {tenant!r} were encrypted with another key, so that those of "
                "one end user cannot be found",
                field="evidence.vector_key_file",
                fix="add the earlier key as a second line of the file, or delete all evidence of "
                "the tenant",
            )

    def request_fit(self, scope: HeadScope, reason: str) -> None:
        """Have a scope fitted again soon, whatever its number of examples, by any replica."""
        with self._database.begin() as connection:
            connection.execute(
                update(head_scopes)
                .where(head_scopes.c.id == scope.id)
                .values(requested_at=datetime.now(UTC), request=reason[:200])
            )

    def _decrypted(self, row: Any, labels: int) -> Example | None:
        try:
            content = self._cipher.decrypted(row.content, _row_name(row.id, row.scope, row.tenant))
            return _example(content, labels)
        except (UnreadableContent, DamagedArrays):
            return None


def purge_examples(database: Database, keep_days: float) -> int:
    """Delete examples older than some days; return how many. Heads stay. Blocking."""
    before = datetime.now(UTC) - timedelta(days=keep_days)
    with database.begin() as connection:
        done = connection.execute(delete(head_examples).where(head_examples.c.created_at < before))
        return int(done.rowcount)


def _is_erased(connection: Connection, source: Source) -> bool:
    if source.drawn_at is None:
        return False
    lock_evidence(connection)
    found = DrawnInput(source.tenant, source.request_id, source.end_user, source.drawn_at)
    return bool(erased(connection, [found]))


def _row_name(row_id: str, scope: str, tenant: str) -> str:
    return f"{scope}/{tenant}/{row_id}"


def _content(example: Example) -> bytes:
    header = {"label": example.label, "chars": example.chars, "model": example.model}
    arrays = {"vector": example.vector}
    if example.log_probabilities is not None:
        arrays["log_probabilities"] = example.log_probabilities
    return pack(header, arrays)


def _example(content: bytes, labels: int) -> Example:
    packed = unpack(content)
    header, arrays = packed.content, packed.arrays
    logs = arrays.get("log_probabilities")
    if logs is not None and logs.shape != (labels,):
        logs = None
    return Example(
        header["label"], arrays["vector"], header["chars"], logs,
        header["model"] if logs is not None else "",
    )  # fmt: skip


def _refuse_unfit(task: Task, example: Example) -> None:
    if not 2 <= len(task.labels) <= MAX_LABELS:
        raise InvalidRequest(
            f"task {task.scope.task!r} has {len(task.labels)} labels, and a head learns 2 to "
            f"{MAX_LABELS}",
            field="labels",
        )
    if example.label not in task.labels:
        raise InvalidRequest(
            f"label {example.label!r} is not a label of task {task.scope.task!r}",
            field="label",
            fix=f"use one of its {len(task.labels)} labels",
        )
    _refuse_shape("vector", example.vector, DIMENSIONS)
    if example.log_probabilities is not None:
        _refuse_shape("log_probabilities", example.log_probabilities, len(task.labels))


def _refuse_shape(name: str, array: Floats, size: int) -> None:
    if array.shape != (size,) or array.dtype != np.float32 or not np.isfinite(array).all():
        raise InvalidRequest(
            f"{name} are {array.dtype} {array.shape} and need ({size},) finite float32", field=name
        )


def _ensure_scope(connection: Connection, task: Task) -> None:
    scope = task.scope
    known = connection.execute(
        select(head_scopes.c.model).where(head_scopes.c.id == scope.id)
    ).scalar_one_or_none()
    if known is None:
        row = {
            "id": scope.id,
            "tenants": scope.tenants,
            "pooled": scope.pooled,
            "task": scope.task,
            "spec_digest": scope.spec_digest,
            "labels": json.dumps(list(task.labels)),
            "model": task.model,
            "fitted_examples": 0,
            "version": 0,
            "created_at": datetime.now(UTC),
        }
        connection.execute(insert_new(connection, head_scopes), row)
    elif task.model and known != task.model:
        changed = update(head_scopes).where(head_scopes.c.id == scope.id)
        connection.execute(changed.values(model=task.model))


def _read_task(connection: Connection, scope_id: str) -> Task:
    row = connection.execute(select(head_scopes).where(head_scopes.c.id == scope_id)).first()
    if row is None:
        raise InvalidRequest(f"there is no scope {scope_id!r}", field="scope")
    scope = HeadScope(row.tenants, row.task, row.spec_digest, row.pooled)
    return Task(scope, tuple(json.loads(row.labels)), "", row.model)


def _count(connection: Connection, where: ColumnElement[bool]) -> int:
    found = select(func.count()).select_from(head_examples).where(where)
    return int(connection.execute(found).scalar_one())


def _erase(connection: Connection, where: ColumnElement[bool]) -> Erased:
    """Delete examples and mark the heads that were fitted on them.

    A replica that saves a head locks the scope's row and then looks whether all examples are there
    (head_store.py). This locks the row after deleting, so that a head is either saved before and
    marked here, or not saved.
    """
    deleted = connection.scalars(
        delete(head_examples).where(where).returning(head_examples.c.scope)
    ).all()
    scopes = sorted(set(deleted))
    lock_scopes(connection, head_scopes.c.id.in_(scopes))
    now = datetime.now(UTC)
    connection.execute(
        update(head_scopes)
        .where(head_scopes.c.id.in_(scopes), head_scopes.c.version > 0)
        .values(erased_at=now)
    )
    connection.execute(
        update(heads)
        .where(heads.c.scope.in_(scopes), heads.c.erased_at.is_(None))
        .values(erased_at=now)
    )
    return Erased(len(deleted), tuple(scopes))


def lock_scopes(connection: Connection, where: ColumnElement[bool]) -> list[str]:
    """Lock the rows of scopes until the transaction ends, in one order; return their ids."""
    found = select(head_scopes.c.id).where(where).order_by(head_scopes.c.id).with_for_update()
    return list(connection.scalars(found))
