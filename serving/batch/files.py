"""Tenants' files: their rows, quotas, deletion and expiry.

Every method is blocking and raises LedgerUnavailable where the database is unreachable.
"""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Row, Select, and_, delete, func, or_, select, text

from serving.batch.blobs import Blob, BlobStore, BlobWriter
from serving.batch.schema import batch_files as table
from serving.batch.schema import batch_lines, batches
from serving.contracts.batch import FINAL_STATUSES, Page, PageRequest, Purpose, StoredFile
from serving.contracts.batch_settings import BatchSettings
from serving.contracts.errors import BodyTooLarge, FileInUse, InvalidKey, InvalidRequest, NotFound
from serving.ledger.database import Database

_UNFINISHED_S = 86_400.0
_SWEPT_AT_ONCE = 500


def utc_now() -> datetime:
    """Return the time with its zone."""
    return datetime.now(UTC)


class FileStore:
    """The files of all tenants; every method but `sweep` is for one of them."""

    def __init__(
        self,
        database: Database,
        blobs: BlobStore,
        settings: BatchSettings,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._settings = settings
        self._now = now

    def check_key(self) -> None:
        """Raise InvalidKey where a content, or a line of an unfinished batch, has another key."""
        known = self._blobs.key_ids
        running = select(batches.c.input_file).where(batches.c.status.not_in(FINAL_STATUSES))
        is_kept = or_(table.c.expires_at > self._now(), table.c.id.in_(running))
        of_files = select(table.c.key_id).where(table.c.key_id.not_in(known), is_kept)
        of_lines = (
            select(batch_lines.c.key_id)
            .join(batches, batches.c.id == batch_lines.c.batch)
            .where(batches.c.status.not_in(FINAL_STATUSES), batch_lines.c.key_id.not_in(known))
        )
        with self._database.read() as connection:
            for query in (of_files, of_lines):
                missing = connection.execute(query.limit(1)).scalar_one_or_none()
                if missing is not None:
                    raise InvalidKey(
                        f"files of batches were encrypted with another key: {missing!r}",
                        field="cache.encryption_key_file",
                        fix="add the earlier key as another line of the file; it is needed until "
                        "batch.file_ttl_s after the last file that it encrypted",
                    )

    def begin(self, tenant: str) -> "FileUpload":
        """Begin to receive a file."""
        return FileUpload(self, self._blobs.writer(tenant), self.left(tenant), self._settings)

    def left(self, tenant: str) -> int:
        """Return how many bytes a tenant may still store."""
        with self._database.read() as connection:
            return self._left(connection, tenant)

    def _left(self, connection: Connection, tenant: str) -> int:
        query = select(func.coalesce(func.sum(table.c.bytes), 0))
        used = connection.execute(query.where(table.c.tenant == tenant)).scalar_one()
        return self._settings.tenant_file_bytes - int(used)

    def keep(
        self, writer: BlobWriter, tenant: str, filename: str, purpose: Purpose, ttl_s: float | None
    ) -> StoredFile:
        """Keep a written content as a tenant's file, in one transaction.

        Raises InvalidRequest where others have taken the room since it was begun.
        """
        with self._database.begin() as connection:
            _lock(connection)
            left = self._left(connection, tenant)
            if writer.bytes > left:
                raise _no_room(self._settings, left)
            return self.keep_in(connection, writer, tenant, filename, purpose, ttl_s)

    def keep_in(
        self,
        connection: Connection,
        writer: BlobWriter,
        tenant: str,
        filename: str,
        purpose: Purpose,
        ttl_s: float | None,
    ) -> StoredFile:
        """As `keep`, in a transaction of the caller's."""
        created = self._now()
        ttl = timedelta(seconds=self._settings.file_ttl_s if ttl_s is None else ttl_s)
        # Between the name and the row no other process may delete the content.
        _lock(connection)
        blob = self._blobs.keep(writer)
        row = {
            "id": f"file-{uuid4().hex}", "tenant": tenant, "purpose": purpose,
            "filename": filename, "address": blob.address, "bytes": blob.bytes,
            "key_id": blob.key_id, "created_at": created, "expires_at": created + ttl,
        }  # fmt: skip
        connection.execute(table.insert(), [row])
        return _file(row)

    def find(self, tenant: str, file: str) -> StoredFile:
        """Return a file's facts. Raises NotFound."""
        return _file(self._row(tenant, file)._mapping)

    def blob(self, tenant: str, file: str) -> Blob:
        """Return a file's content. Raises NotFound."""
        row = self._row(tenant, file)
        return Blob(row.tenant, row.address, row.bytes, row.key_id)

    def listed(self, tenant: str, purpose: str | None, page: PageRequest) -> Page:
        """Return a tenant's files. Raises NotFound for an unknown `after`."""
        in_use = select(batches.c.input_file).where(batches.c.status.not_in(FINAL_STATUSES))
        query = select(table).where(
            table.c.tenant == tenant,
            or_(table.c.expires_at > self._now(), table.c.id.in_(in_use)),
        )
        if purpose is not None:
            query = query.where(table.c.purpose == purpose)
        with self._database.read() as connection:
            rows = paged(connection, query, table, tenant, page)
        return Page([_file(row._mapping) for row in rows[: page.limit]], len(rows) > page.limit)

    def delete(self, tenant: str, file: str) -> None:
        """Delete a file. Raises NotFound, and FileInUse for the input of an unfinished batch."""
        row = self._row(tenant, file)
        with self._database.begin() as connection:
            _lock(connection)
            if self._used(connection, [file]):
                raise FileInUse(
                    f"the file {file!r} is the input of a batch that has not ended",
                    field="file_id",
                    fix="cancel the batch, or wait until it has ended",
                )
            self._delete_rows(connection, [(row.id, row.address)])

    def sweep(self) -> int:
        """Delete expired files, and uploads that never ended; return how many files."""
        self._blobs.sweep(_UNFINISHED_S, time.time())
        with self._database.begin() as connection:
            _lock(connection)
            expired = connection.execute(
                select(table.c.id, table.c.address)
                .where(table.c.expires_at <= self._now())
                .order_by(table.c.expires_at)
                .limit(_SWEPT_AT_ONCE)
            ).all()
            used = self._used(connection, [row.id for row in expired])
            found = [(row.id, row.address) for row in expired if row.id not in used]
            self._delete_rows(connection, found)
        return len(found)

    def _used(self, connection: Connection, files: Sequence[str]) -> set[str]:
        """Return those that are the input of an unfinished batch."""
        query = select(batches.c.input_file).where(
            batches.c.input_file.in_(files), batches.c.status.not_in(FINAL_STATUSES)
        )
        return set(connection.execute(query).scalars())

    def _delete_rows(self, connection: Connection, found: Sequence[tuple[str, str]]) -> None:
        connection.execute(delete(table).where(table.c.id.in_([file for file, _ in found])))
        addresses = {address for _, address in found}
        query = select(table.c.address).where(table.c.address.in_(addresses))
        kept = set(connection.execute(query).scalars())
        for address in addresses - kept:
            self._blobs.delete(address)

    def _row(self, tenant: str, file: str) -> Row[Any]:
        query = select(table).where(table.c.id == file, table.c.tenant == tenant)
        with self._database.read() as connection:
            row = connection.execute(query).one_or_none()
            if row is not None and row.expires_at <= self._now():
                # The input of a batch stays as long as the batch needs it.
                row = row if self._used(connection, [file]) else None
        if row is None:
            raise NotFound(
                f"there is no file {file[:64]!r}",
                field="file_id",
                fix="send the id of a file in GET /v1/files; it may have expired",
            )
        return row


class FileUpload:
    """A file that is being received. Blocking."""

    def __init__(
        self, store: FileStore, writer: BlobWriter, left: int, settings: BatchSettings
    ) -> None:
        self._store = store
        self._writer = writer
        self._left = left
        self._settings = settings

    def write(self, data: bytes) -> None:
        """Append bytes. Raises BodyTooLarge, InvalidRequest."""
        total, limit = self._writer.bytes + len(data), self._settings.max_file_bytes
        if total > limit:
            raise BodyTooLarge(
                f"the file is longer than {limit} bytes",
                field="file",
                fix="split it into several files, or raise batch.max_file_bytes",
            )
        if total > self._left:
            raise _no_room(self._settings, self._left)
        self._writer.write(data)

    def finish(
        self, tenant: str, filename: str, purpose: Purpose, ttl_s: float | None
    ) -> StoredFile:
        """Keep the file."""
        return self._store.keep(self._writer, tenant, filename, purpose, ttl_s)

    def abandon(self) -> None:
        """Delete what was received; does nothing after `finish`."""
        self._writer.abandon()


def paged(
    connection: Connection, query: Select[Any], of: Any, tenant: str, page: PageRequest
) -> Sequence[Row[Any]]:
    """Return a page's rows and one more where there is one. Raises NotFound.

    of: the table, with the columns id, tenant and created_at.
    """
    if page.after is not None:
        cursor = connection.execute(
            select(of.c.created_at).where(of.c.id == page.after, of.c.tenant == tenant)
        ).scalar_one_or_none()
        if cursor is None:
            raise NotFound(
                f"there is no {page.after[:64]!r} to list from",
                field="after",
                fix="send the last_id of the page before, or leave it out",
            )
        at, same = of.c.created_at, of.c.created_at == cursor
        query = query.where(
            or_(at < cursor, and_(same, of.c.id < page.after))
            if page.newest_first
            else or_(at > cursor, and_(same, of.c.id > page.after))
        )
    columns = (of.c.created_at, of.c.id)
    ordered = [column.desc() if page.newest_first else column for column in columns]
    return connection.execute(query.order_by(*ordered).limit(page.limit + 1)).all()


def _no_room(settings: BatchSettings, left: int) -> InvalidRequest:
    return InvalidRequest(
        f"the tenant's files would take more than {settings.tenant_file_bytes} bytes; "
        f"{max(0, left)} are left",
        field="file",
        fix="delete files that are no longer needed, or raise batch.tenant_file_bytes",
    )


def _lock(connection: Connection) -> None:
    """Hold off other processes that keep or delete contents, until the transaction's end.

    SQLite has one writing transaction anyway.
    """
    if connection.dialect.name != "sqlite":
        connection.execute(text("SELECT pg_advisory_xact_lock(7883942)"))


def _file(row: Any) -> StoredFile:
    return StoredFile(
        row["id"], row["tenant"], row["purpose"], row["filename"], row["bytes"],
        row["created_at"], row["expires_at"],
    )  # fmt: skip
