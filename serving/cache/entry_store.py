"""Cache entries in the database: read by key, written in batches, deleted for good.

Every method is blocking and raises LedgerUnavailable where the database is unreachable. Deletions
hold on every replica at once: each lookup reads the database.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, or_, select, update

from serving.cache.entry import SKEW, DamagedEntry, Entry, PackedEntry, unpacked
from serving.cache.erasures import kept, lock_entries, note_erasure
from serving.cache.schema import cache_entries as table
from serving.cache.schema import cache_questions, cache_sequence
from serving.contracts.cache_settings import CacheSettings
from serving.contracts.errors import InvalidKey
from serving.contracts.routing import end_user_id
from serving.evidence.heads.cipher import UnreadableContent, VectorCipher, load_cipher
from serving.ledger.database import Database
from serving.ledger.reports.query import refuse_unknown_tenant
from serving.ledger.upsert import insert_new

KEY_SETTING = "cache.encryption_key_file"
_EVICTED_AT_ONCE = 500
_LISTED = 1000
_LISTED_COLUMNS = tuple(
    column for column in table.columns if column.name not in ("content", "key", "key_id")
)


@dataclass(frozen=True, slots=True)
class Found:
    """Entries by key. unreadable: rows that no key decrypts, or that are damaged."""

    entries: Mapping[str, Entry]
    unreadable: int


@dataclass(frozen=True, slots=True)
class EntryFilter:
    """Which entries are meant; every field that is given must match."""

    namespace: str | None = None
    tenant: str | None = None
    request_id: str | None = None
    end_user: str | None = None
    entry: str | None = None

    def __post_init__(self) -> None:
        """Take the end user's id as it is stored."""
        if self.end_user is not None:
            object.__setattr__(self, "end_user", end_user_id(self.end_user))

    def condition(self) -> ColumnElement[bool]:
        """Return the condition; every entry where nothing is given."""
        own = [] if self.entry is None else [table.c.id == storable(self.entry)]
        return and_(True, *own, *(table.c[name] == value for name, value in self.given.items()))

    @property
    def given(self) -> Mapping[str, str]:
        """Return the fields that are given, besides `entry`, as they are stored."""
        fields = {
            "namespace": self.namespace, "tenant": self.tenant, "request_id": self.request_id,
            "end_user": self.end_user,
        }  # fmt: skip
        return {name: storable(value) for name, value in fields.items() if value is not None}


EVERY_ENTRY = EntryFilter()


class EntryStore:
    """Reads and writes entries. cipher: None where answers are not encrypted."""

    def __init__(self, database: Database, cipher: VectorCipher | None = None) -> None:
        self.database = database
        self.cipher = cipher

    def check_key(self) -> None:
        """Raise InvalidKey where entries were encrypted with a key that is not configured."""
        with self.database.read() as connection:
            used = set(connection.execute(select(table.c.key_id).distinct()).scalars())
        known = set() if self.cipher is None else set(self.cipher.key_ids)
        if missing := used - known - {""}:
            raise InvalidKey(
                f"cache entries were encrypted with another key: {sorted(missing)[0]!r}",
                field=KEY_SETTING,
                fix="add the earlier key as a second line of the file, or delete the entries: "
                "narrowgate cache clear",
            )

    def find(self, keys: Sequence[str]) -> Found:
        """Return the entries of keys, expired ones too."""
        with self.database.read() as connection:
            rows = connection.execute(select(table).where(table.c.key.in_(keys))).all()
        return self.read(rows)

    def write(self, entries: Sequence[PackedEntry]) -> int:
        """Store entries in one transaction; each replaces an earlier one of the same key.

        Return how many were left out: they were deleted while they were being made.
        """
        with self.database.begin() as connection:
            lock_entries(connection)
            found = kept(connection, entries)
            # Of equal keys in one batch the last is kept.
            newest = {packed.entry.key: packed for packed in found}
            rows = [self._row(packed) for packed in newest.values()]
            if not rows:
                return len(entries)
            connection.execute(delete(table).where(table.c.key.in_(list(newest))))
            # Another replica may have stored the same key in between: its answer is as good.
            connection.execute(insert_new(connection, table), rows)
            self._write_questions(connection, list(newest.values()))
        return len(entries) - len(found)

    def _write_questions(self, connection: Connection, entries: Sequence[PackedEntry]) -> None:
        """Store the questions of those entries that were not stored by another replica."""
        asked = {packed.entry.id: packed for packed in entries if packed.question is not None}
        if not asked:
            return
        stored = connection.execute(select(table.c.id).where(table.c.id.in_(list(asked))))
        kept = [asked[name] for name in sorted(stored.scalars())]
        if not kept:
            return
        value = cache_sequence.c.value
        taken = update(cache_sequence).values(value=value + len(kept)).returning(value)
        first = connection.execute(taken).scalar_one() - len(kept) + 1
        rows = [self._question_row(packed, first + n) for n, packed in enumerate(kept)]
        connection.execute(cache_questions.insert(), rows)

    def _question_row(self, packed: PackedEntry, sequence: int) -> dict[str, Any]:
        entry, question = packed.entry, packed.question
        assert question is not None
        data, key_id = question.packed(), ""
        if self.cipher is not None:
            data = self.cipher.encrypted(data, question_name(entry.id, entry.namespace))
            key_id = self.cipher.key_ids[0]
        return {
            "entry": entry.id, "sequence": sequence, "namespace": entry.namespace,
            "fingerprint": question.fingerprint, "key_id": key_id, "content": data,
        }  # fmt: skip

    def used(self, hits: Mapping[str, int], now: datetime) -> None:
        """Count hits by entry."""
        with self.database.begin() as connection:
            for entry, count in sorted(hits.items()):
                connection.execute(
                    update(table)
                    .where(table.c.id == entry)
                    .values(hits=table.c.hits + count, used_at=now)
                )

    def refuse_unknown(self, tenant: str) -> None:
        """Raise NotFound for a tenant that there never was: a deletion for it must not look done.

        Blocking. Raises LedgerUnavailable.
        """
        refuse_unknown_tenant(self.database, tenant)

    def delete(self, chosen: EntryFilter) -> int:
        """Delete entries, also those that are being made; return how many are deleted now."""
        with self.database.begin() as connection:
            lock_entries(connection)
            if chosen.entry is None:
                note_erasure(connection, chosen.given)
            return int(connection.execute(delete(table).where(chosen.condition())).rowcount)

    def sweep(self, now: datetime, settings: CacheSettings) -> "Swept":
        """Delete expired entries and, over the limits, the least recently used.

        Also those of a clock that was set back since: they would expire too late.
        """
        is_over = or_(table.c.expires_at <= now, table.c.created_at > now + SKEW)
        with self.database.begin() as connection:
            done = connection.execute(delete(table).where(is_over))
        evicted = sum(self._evict(name, size, settings) for name, size in self.sizes().items())
        return Swept(int(done.rowcount), evicted, tuple(self.sizes().values()))

    def _evict(self, namespace: str, size: "Size", settings: CacheSettings) -> int:
        """Delete the least recently used entries until the namespace is within its limits."""
        evicted = 0
        while size.entries > settings.max_entries or size.bytes > settings.max_bytes:
            with self.database.begin() as connection:
                oldest = connection.execute(
                    select(table.c.id, table.c.bytes)
                    .where(table.c.namespace == namespace)
                    .order_by(table.c.used_at, table.c.id)
                    .limit(_EVICTED_AT_ONCE)
                ).all()
                chosen = []
                for row in oldest:
                    if size.entries <= settings.max_entries and size.bytes <= settings.max_bytes:
                        break
                    chosen.append(row.id)
                    size = Size(size.entries - 1, size.bytes - row.bytes)
                connection.execute(delete(table).where(table.c.id.in_(chosen)))
            evicted += len(chosen)
            if not oldest:
                break
        return evicted

    def sizes(self, chosen: EntryFilter = EVERY_ENTRY) -> dict[str, "Size"]:
        """Return the number of entries and their bytes, by namespace. An index holds both."""
        query = select(table.c.namespace, func.count(), func.sum(table.c.bytes))
        query = query.where(chosen.condition()).group_by(table.c.namespace)
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(table.c.namespace)).all()
        return {name: Size(count, int(size)) for name, count, size in rows}

    def stats(self, chosen: EntryFilter) -> list[dict[str, Any]]:
        """Return entries, bytes and hits of each namespace. Reads every entry."""
        query = select(
            table.c.namespace, func.count(), func.sum(table.c.bytes), func.sum(table.c.hits)
        ).where(chosen.condition())
        with self.database.read() as connection:
            rows = connection.execute(
                query.group_by(table.c.namespace).order_by(table.c.namespace)
            ).all()
        return [
            {"namespace": name, "entries": count, "bytes": int(size), "hits": int(hits)}
            for name, count, size, hits in rows
        ]

    def listed(self, chosen: EntryFilter, most: int = _LISTED) -> list[dict[str, Any]]:
        """Return what is known of entries besides their answers, the newest first."""
        query = select(*_LISTED_COLUMNS).where(chosen.condition())
        with self.database.read() as connection:
            rows = connection.execute(
                query.order_by(table.c.created_at.desc(), table.c.id).limit(most)
            ).mappings()
            return [_shown(row) for row in rows]

    def entries(self, chosen: EntryFilter) -> Iterator[Entry]:
        """Yield entries with their answers, in the order of their ids.

        Raises InvalidKey where one cannot be decrypted.
        """
        last = ""
        while True:
            query = select(table).where(chosen.condition(), table.c.id > last)
            with self.database.read() as connection:
                rows = connection.execute(query.order_by(table.c.id).limit(_EVICTED_AT_ONCE)).all()
            if not rows:
                return
            last = rows[-1].id
            found = self.read(rows)
            if found.unreadable:
                self.check_key()
            yield from found.entries.values()

    def read(self, rows: Sequence[Row[Any]]) -> Found:
        """Return the entries of whole rows."""
        entries, unreadable = {}, 0
        for row in rows:
            try:
                entries[row.key] = self._entry(row)
            except (UnreadableContent, DamagedEntry):
                unreadable += 1
        return Found(entries, unreadable)

    def _entry(self, row: Row[Any]) -> Entry:
        data = row.content
        if row.key_id:
            if self.cipher is None:
                raise UnreadableContent("it is encrypted, and there is no key")
            data = self.cipher.decrypted(data, _name(row.id, row.namespace, row.key))
        content, origin = unpacked(data, row.kind)
        return Entry(
            row.key, row.namespace, row.tenant, row.request_id, row.kind, origin, content,
            row.created_at, row.expires_at, row.end_user, row.id, row.aside,
        )  # fmt: skip

    def _row(self, packed: PackedEntry) -> dict[str, Any]:
        entry, data, key_id = packed.entry, packed.data, ""
        if self.cipher is not None:
            name = _name(entry.id, entry.namespace, entry.key)
            data, key_id = self.cipher.encrypted(data, name), self.cipher.key_ids[0]
        return {
            "id": entry.id, "key": entry.key, "namespace": entry.namespace,
            "tenant": entry.tenant, "request_id": entry.request_id, "kind": entry.kind,
            "end_user": None if entry.end_user is None else storable(entry.end_user),
            "task": entry.origin.task, "model": storable(entry.origin.model),
            "claim": entry.origin.claim, "key_id": key_id, "content": data, "bytes": len(data),
            "hits": 0, "created_at": entry.created_at, "used_at": entry.created_at,
            "expires_at": entry.expires_at, "aside": entry.aside,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Size:
    """What a namespace holds. bytes: of the answers as they are stored."""

    entries: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Swept:
    """How many entries were deleted, and the sizes of the namespaces afterwards."""

    expired: int
    evicted: int
    sizes: tuple[Size, ...]


def open_store(database: Database, settings: CacheSettings) -> EntryStore:
    """Return the store that the settings describe. Blocking. Raises InvalidKey.

    Where the cache is off no answer is read, so that no key is needed.
    """
    file = settings.encryption_key_file if settings.enabled else None
    return EntryStore(database, None if file is None else load_cipher(file, KEY_SETTING))


def _name(entry: str, namespace: str, key: str) -> str:
    return f"cache/{namespace}/{key}/{entry}"


def question_name(entry: str, namespace: str) -> str:
    """Return the name of a question's row, with which its content is authenticated."""
    return f"cache/{namespace}/question/{entry}"


def storable(text: str) -> str:
    """Return a text that both databases can hold."""
    return text.replace("\x00", "").encode("utf-8", "replace").decode()[:256]


def _shown(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
    }
