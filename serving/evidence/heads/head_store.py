"""Fitted heads in the database, shared by all replicas. All methods block."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from serving.contracts.errors import HeadRefused, NotFound
from serving.evidence.heads.candidate import Candidate
from serving.evidence.heads.example_store import ReadRows, lock_scopes
from serving.evidence.heads.schema import head_examples, head_scopes, heads
from serving.evidence.heads.statement import Head, SignedHead, sign_head, verified_head
from serving.ledger.database import Database


@dataclass(frozen=True, slots=True)
class EvidenceKeys:
    """Evidence's own keys. signer: of signing_key.load_signer. trusted: of trust.trusted_keys."""

    signer: Any
    trusted: Sequence[Any]


@dataclass(frozen=True, slots=True)
class HeadRow:
    """A stored head without its bytes. erased_at: an example of its fit was erased then."""

    digest: str
    scope: str
    kind: str
    version: int
    created_at: datetime
    erased_at: datetime | None


@dataclass(frozen=True, slots=True)
class Saved:
    """version: of the scope's newest heads. is_new: this fit gave a head that was not stored."""

    version: int
    is_new: bool


class HeadStore:
    """Saves, verifies, exports and deletes heads. Safe between threads and replicas."""

    def __init__(self, database: Database, keys: EvidenceKeys) -> None:
        self._database = database
        self._keys = keys

    def save(self, read: ReadRows, candidates: Sequence[Candidate]) -> Saved | None:
        """Sign and store the candidates of one fit under the scope's next version.

        None where an example of the fit was erased meanwhile: nothing is stored, and the scope is
        due for another fit. Candidates that are stored already keep their version.
        """
        scope = read.rows.scope
        with self._database.begin() as connection:
            if not lock_scopes(connection, head_scopes.c.id == scope.id):
                return None
            if not _all_exist(connection, read.ids, scope.id):
                return None
            known = select(heads.c.digest).where(
                heads.c.scope == scope.id, heads.c.erased_at.is_(None)
            )
            stored = set(connection.scalars(known))
            new = [candidate for candidate in candidates if candidate.digest not in stored]
            row = connection.execute(
                select(head_scopes.c.version).where(head_scopes.c.id == scope.id)
            ).one()
            version = int(row.version) + (1 if new else 0)
            for candidate in new:
                signed = sign_head(candidate, version, scope, self._keys.signer)
                # The same bytes, fitted without what was erased, may be marked as erased.
                connection.execute(delete(heads).where(heads.c.digest == candidate.digest))
                connection.execute(insert(heads), _row(candidate, version, signed))
            connection.execute(
                update(head_scopes)
                .where(head_scopes.c.id == scope.id)
                .values(version=version, fitted_examples=read.examples)
            )
            return Saved(version, bool(new))

    def listed(self, scope_id: str | None = None) -> list[HeadRow]:
        """Return the heads of a scope, or of all, newest first."""
        columns = (heads.c.digest, heads.c.scope, heads.c.kind, heads.c.version,
                   heads.c.created_at, heads.c.erased_at)  # fmt: skip
        found = select(*columns).order_by(heads.c.version.desc(), heads.c.kind)
        if scope_id is not None:
            found = found.where(heads.c.scope == scope_id)
        with self._database.read() as connection:
            return [HeadRow(*row) for row in connection.execute(found)]

    def load(self, digest: str) -> Head:
        """Return a stored head, verified. Raises NotFound, HeadRefused."""
        signed, scope = self._read(digest)
        head = verified_head(signed, self._keys.trusted)
        if (head.candidate.digest, head.candidate.provenance.scope) != (digest, scope):
            raise HeadRefused(
                f"head {head.candidate.digest!r} is stored as {digest!r} in scope {scope!r}, which "
                "is not its own",
                fix="delete it; it is fitted again from its examples",
            )
        return head

    def signed(self, digest: str) -> SignedHead:
        """Return a stored head as it is, for an export. Raises NotFound."""
        return self._read(digest)[0]

    def _read(self, digest: str) -> tuple[SignedHead, str]:
        found = select(heads.c.content, heads.c.envelope, heads.c.scope)
        with self._database.read() as connection:
            row = connection.execute(found.where(heads.c.digest == digest)).first()
        if row is None:
            raise NotFound(f"there is no head {digest!r}", field="digest")
        return SignedHead(row.content, row.envelope), row.scope

    def delete(self, digests: Collection[str]) -> int:
        """Delete heads; return how many there were."""
        with self._database.begin() as connection:
            done = connection.execute(delete(heads).where(heads.c.digest.in_(list(digests))))
            return int(done.rowcount)

    def prune(self, in_use: Collection[str], keep_versions: int, erase_within_h: float) -> int:
        """Delete what is not needed; return how many heads.

        in_use: digests under a claim. Of each scope the newest versions stay, and those in use. A
        head whose examples were erased is deleted as soon as it is neither the newest of its scope
        nor in use, and after erase_within_h in any case.
        """
        late = datetime.now(UTC) - timedelta(hours=erase_within_h)
        columns = (heads.c.digest, heads.c.version, heads.c.erased_at, head_scopes.c.version)
        with self._database.begin() as connection:
            found = connection.execute(select(*columns).join_from(heads, head_scopes)).all()
            gone = [
                digest
                for digest, version, erased_at, newest in found
                if (erased_at is not None and erased_at < late)
                or (
                    digest not in in_use
                    and (version <= newest - keep_versions or (erased_at and version < newest))
                )
            ]
            connection.execute(delete(heads).where(heads.c.digest.in_(gone)))
        return len(gone)


def delete_erased_heads(database: Database, within_h: float) -> int:
    """Delete heads whose examples were erased so many hours ago; return how many. Blocking."""
    late = datetime.now(UTC) - timedelta(hours=within_h)
    with database.begin() as connection:
        return int(connection.execute(delete(heads).where(heads.c.erased_at < late)).rowcount)


def _all_exist(connection: Connection, ids: Sequence[str], scope_id: str) -> bool:
    present = select(head_examples.c.id).where(head_examples.c.scope == scope_id)
    return set(ids) <= set(connection.scalars(present))


def _row(candidate: Candidate, version: int, signed: SignedHead) -> dict[str, object]:
    return {
        "digest": candidate.digest,
        "scope": candidate.provenance.scope,
        "kind": candidate.kind,
        "version": version,
        "content": signed.content,
        "envelope": signed.envelope,
        "created_at": datetime.now(UTC),
    }
