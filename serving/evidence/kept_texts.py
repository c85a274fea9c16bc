"""Keeps texts of audited inputs for people to label. All methods block.

Encrypted like heads' examples, bounded for each claim, and deleted by tenant, request, end user and
age. What is kept of a claim is a random sample: of every input that the coin chose, the lowest of
ranks that are drawn at random.
"""

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, Connection, Row, delete, func, select

from serving.contracts.evidence import PEOPLE, Audit
from serving.evidence.erasures import lock_evidence
from serving.evidence.heads.cipher import UnreadableContent, VectorCipher
from serving.evidence.store import EvidenceOwner, not_erased
from serving.ledger.database import Database
from serving.ledger.schema import evidence_audits, evidence_texts
from serving.ledger.upsert import insert_new

MOST_TEXTS = 5000
"""Texts kept for one claim at most."""

_AUDIT: TypeAdapter[Audit] = TypeAdapter(Audit)
_random = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Proposed:
    """A candidate's answer to an input that only a person will judge."""

    name: str
    confidence: float
    value: str
    valid: bool


@dataclass(frozen=True, slots=True)
class KeptText:
    """An audited input with its text. labels: of the task.

    audit: its row; without a verdict where people are the reference, and then `proposed` is what
    its candidates answered.
    """

    audit: Audit
    text: str
    labels: tuple[str, ...]
    proposed: tuple[Proposed, ...] = ()

    @property
    def is_pending(self) -> bool:
        """Return whether a person's label is the verdict."""
        return self.audit.reference == PEOPLE


class KeptTexts:
    """Keeps texts in the database. One object serves any thread."""

    def __init__(self, database: Database, cipher: VectorCipher, most: int = MOST_TEXTS) -> None:
        self._database = database
        self._cipher = cipher
        self._most = most

    def keep(self, found: KeptText) -> None:
        """Keep a text; beyond the bound, the text of the highest rank goes.

        One that was deleted after its input was drawn is not kept.
        """
        audit = found.audit
        name = f"{audit.claim}:{audit.input}"
        row = {
            "id": name,
            "claim": audit.claim,
            "input": audit.input,
            "rank": _random.random(),
            "tenant": audit.tenant,
            "request_id": audit.request_id,
            "end_user": audit.end_user,
            "content": self._cipher.encrypted(_content(found), name),
            "kept_at": datetime.now(UTC),
        }
        with self._database.begin() as connection:
            lock_evidence(connection)
            if not not_erased(connection, [audit]):
                return
            connection.execute(insert_new(connection, evidence_texts), row)
            _bound(connection, audit.claim, self._most)

    def sample(self, claim: str, person: str, count: int) -> list[KeptText]:
        """Return texts of a claim that a person has not labelled, in random order.

        The order is the same for everybody, so that what two people label overlaps.
        """
        with self._database.read() as connection:
            named = select(evidence_audits.c.input).where(
                evidence_audits.c.claim == claim, evidence_audits.c.origin == "person"
            )
            labelled = set(connection.execute(named).scalars())
            rows = connection.execute(
                select(evidence_texts)
                .where(evidence_texts.c.claim == claim)
                .order_by(evidence_texts.c.rank)
            )
            found: list[KeptText] = []
            for row in rows:
                if len(found) == count:
                    break
                if f"{row.input}/{person}" not in labelled:
                    found += self._read(row)
        return found

    def find(self, claim: str, inputs: Iterable[str]) -> Mapping[str, KeptText]:
        """Return kept texts by the names of their inputs."""
        where = evidence_texts.c.input.in_(sorted(set(inputs)))
        with self._database.read() as connection:
            rows = connection.execute(
                select(evidence_texts).where(evidence_texts.c.claim == claim, where)
            ).all()
        return {found.audit.input: found for row in rows for found in self._read(row)}

    def count(self, claim: str) -> int:
        """Return how many texts of a claim are kept."""
        with self._database.read() as connection:
            return _count(connection, claim)

    def _read(self, row: Row[Any]) -> list[KeptText]:
        """Return a row's text; nothing where no key decrypts it any more."""
        try:
            content = json.loads(self._cipher.decrypted(row.content, row.id))
        except UnreadableContent:
            return []
        return [
            KeptText(
                _AUDIT.validate_python(content["audit"]),
                content["text"],
                tuple(content["labels"]),
                tuple(Proposed(**item) for item in content["proposed"]),
            )
        ]


def erase_texts(database: Database, owner: EvidenceOwner) -> int:
    """Delete the texts of a tenant, a request or an end user; return how many. Blocking."""
    columns = evidence_texts.c
    where = columns.tenant == owner.tenant
    if owner.request_id is not None:
        where &= columns.request_id == owner.request_id
    if owner.end_user is not None:
        where &= columns.end_user == owner.end_user
    return _delete(database, where)


def purge_texts(database: Database, keep_days: int | None) -> int:
    """Delete texts older than some days, all where None; return how many. Blocking."""
    before = datetime.now(UTC) - timedelta(days=keep_days or 0)
    return _delete(database, evidence_texts.c.kept_at <= before)


def _delete(database: Database, where: ColumnElement[bool]) -> int:
    with database.begin() as connection:
        return connection.execute(delete(evidence_texts).where(where)).rowcount


def _bound(connection: Connection, claim: str, most: int) -> None:
    own = evidence_texts.c.claim == claim
    if _count(connection, claim) > most:
        last = select(evidence_texts.c.id).where(own).order_by(evidence_texts.c.rank).offset(most)
        names = list(connection.execute(last.limit(1000)).scalars())
        connection.execute(delete(evidence_texts).where(evidence_texts.c.id.in_(names)))


def _count(connection: Connection, claim: str) -> int:
    own = select(func.count()).where(evidence_texts.c.claim == claim)
    return int(connection.execute(own).scalar_one())


def _content(found: KeptText) -> bytes:
    return json.dumps({
        "text": found.text,
        "labels": list(found.labels),
        "audit": _AUDIT.dump_python(found.audit, mode="json"),
        "proposed": [
            {"name": p.name, "confidence": p.confidence, "value": p.value, "valid": p.valid}
            for p in found.proposed
        ],
    }).encode()  # fmt: skip
