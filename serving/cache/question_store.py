"""Questions of cached answers in the database: by partition, with the state of doubtful ones.

Implements VectorSource. Every method is blocking and raises LedgerUnavailable where the database is
unreachable. A deletion holds at once: each lookup reads the entries that it may serve.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select, update

from serving.cache.entry import DamagedEntry, Entry, Question
from serving.cache.entry_store import EntryStore, question_name, storable
from serving.cache.schema import cache_aliases, cache_entries, cache_questions
from serving.cache.vector_index import Partition, VectorRow
from serving.evidence.heads.cipher import UnreadableContent
from serving.ledger.upsert import insert_new

_BATCH = 2000


@dataclass(frozen=True, slots=True)
class Asked:
    """A stored answer with its question. similarity: of a wording that was accepted as an alias."""

    entry: Entry
    question: str
    similarity: float | None = None


class QuestionReader:
    """Reads questions in one transaction."""

    def __init__(self, entries: EntryStore, connection: Connection) -> None:
        self._entries = entries
        self._connection = connection

    def rows_after(self, partition: Partition, sequence: int) -> list[VectorRow]:
        """Return the questions stored after a sequence number, at most some thousands, in order."""
        table = cache_questions.c
        query = (
            select(table.entry, table.sequence, table.namespace, *_question_columns())
            .where(
                table.namespace == partition.namespace,
                table.fingerprint == partition.fingerprint,
                table.sequence > sequence,
            )
            .order_by(table.sequence)
            .limit(_BATCH)
        )
        rows = self._connection.execute(query).all()
        return [VectorRow(row.sequence, row.entry, self._vector(row)) for row in rows]

    def asked(self, entries: Collection[str]) -> dict[str, Asked]:
        """Return entries with their questions, by id; those that cannot be read are left out."""
        joined = select(cache_entries, *_question_columns()).join_from(
            cache_questions, cache_entries
        )
        query = joined.where(cache_entries.c.id.in_(list(entries)))
        return self._read(self._connection.execute(query).all(), {})

    def alias(self, key: str) -> Asked | None:
        """Return the entry of which a key is an accepted wording."""
        joined = (
            select(cache_entries, *_question_columns(), cache_aliases.c.similarity)
            .join_from(cache_aliases, cache_entries)
            .join(cache_questions, cache_questions.c.entry == cache_entries.c.id)
            .where(cache_aliases.c.key == key)
        )
        rows = self._connection.execute(joined).all()
        found = self._read(rows, {row.id: row.similarity for row in rows})
        return next(iter(found.values()), None)

    def _read(
        self, rows: Sequence[Row[Any]], similarities: Mapping[str, float]
    ) -> dict[str, Asked]:
        found = {}
        for entry in self._entries.read(rows).entries.values():
            (row,) = (row for row in rows if row.id == entry.id)
            question = self._question(row.id, row)
            if question is not None:
                found[entry.id] = Asked(entry, question.text, similarities.get(entry.id))
        return found

    def _vector(self, row: Row[Any]) -> Any:
        question = self._question(row.entry, row)
        # As if it were deleted: without its key it could not be served either.
        return None if question is None else question.vector

    def _question(self, entry: str, row: Row[Any]) -> Question | None:
        data, cipher = row.question_content, self._entries.cipher
        try:
            if row.question_key_id:
                if cipher is None:
                    return None
                data = cipher.decrypted(data, question_name(entry, row.namespace))
            return Question.unpacked(data, row.fingerprint)
        except (UnreadableContent, DamagedEntry):
            return None


class QuestionStore:
    """Reads and changes what lookups by meaning need. entries: of the same database."""

    def __init__(self, entries: EntryStore) -> None:
        self._entries = entries
        self._database = entries.database

    @contextmanager
    def read(self) -> Iterator[QuestionReader]:
        """Yield a reader of one transaction: a lookup makes few round trips."""
        with self._database.read() as connection:
            yield QuestionReader(self._entries, connection)

    def rows_after(self, partition: Partition, sequence: int) -> list[VectorRow]:
        """Return what the reader does, in a transaction of its own."""
        with self.read() as reader:
            return reader.rows_after(partition, sequence)

    def newest(self, most: int) -> list[Partition]:
        """Return the partitions that were written last, the newest first."""
        table = cache_questions.c
        newest = func.max(table.sequence)
        query = select(table.namespace, table.fingerprint).group_by(
            table.namespace, table.fingerprint
        )
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(newest.desc()).limit(most)).all()
        return [Partition(row.namespace, row.fingerprint) for row in rows]

    def alive(self, partition: Partition) -> set[str]:
        """Return the entries of a partition that are stored."""
        table = cache_questions.c
        query = select(table.entry).where(
            table.namespace == partition.namespace, table.fingerprint == partition.fingerprint
        )
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())

    def count(self, partition: Partition) -> int:
        """Return how many entries of a partition are stored."""
        table = cache_questions.c
        query = select(func.count()).where(
            table.namespace == partition.namespace, table.fingerprint == partition.fingerprint
        )
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def add_alias(
        self, key: str, entry: str, similarity: float, made_by: str, now: datetime
    ) -> None:
        """Make a key an alias of an entry, unless the entry was deleted meanwhile."""
        row = {
            "key": key, "entry": entry, "similarity": similarity, "made_by": made_by,
            "created_at": now,
        }  # fmt: skip
        with self._database.begin() as connection:
            known = select(cache_entries.c.id).where(cache_entries.c.id == entry)
            if connection.execute(known.with_for_update()).first() is not None:
                connection.execute(insert_new(connection, cache_aliases), row)

    def aliases(
        self, *, namespace: str | None = None, entry: str | None = None, most: int = 10_000
    ) -> list[dict[str, Any]]:
        """Return accepted wordings, the newest first: their keys, which are digests, no texts."""
        alias, stored = cache_aliases.c, cache_entries.c
        query = select(
            alias.key, alias.entry, stored.namespace, alias.similarity, alias.made_by,
            alias.created_at,
        ).join_from(cache_aliases, cache_entries)  # fmt: skip
        if namespace is not None:
            query = query.where(stored.namespace == storable(namespace))
        if entry is not None:
            query = query.where(alias.entry == storable(entry))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(alias.created_at.desc()).limit(most)).all()
        return [{**row._asdict(), "created_at": row.created_at.isoformat()} for row in rows]

    def remove_alias(self, key: str) -> str | None:
        """Remove an accepted wording that was wrong; return its entry, None where there is none.

        The entry is found by its own key alone from then on: by meaning it would be found for the
        same wording again.
        """
        with self._database.begin() as connection:
            query = select(cache_aliases.c.entry).where(cache_aliases.c.key == storable(key))
            entry = connection.execute(query).scalar_one_or_none()
            if entry is not None:
                _unlist(connection, entry)
        return entry

    def unlist(self, entry: str) -> None:
        """Let an entry be found by its own key alone: its answer was wrong for another wording."""
        with self._database.begin() as connection:
            _unlist(connection, entry)

    def set_aside(self, reason: str | None, *, entry: str | None = None, key: str = "") -> bool:
        """Put an entry aside, or with None take it back; return whether there is such an entry.

        entry: its id; None where its key names it.
        """
        column = cache_entries.c
        which = column.key == key if entry is None else column.id == entry
        changed = update(cache_entries).where(which).values(aside=reason)
        with self._database.begin() as connection:
            return bool(connection.execute(changed).rowcount)

    def drop(self, entry: str) -> None:
        """Delete an entry that was found wrong."""
        with self._database.begin() as connection:
            connection.execute(delete(cache_entries).where(cache_entries.c.id == entry))


def _unlist(connection: Connection, entry: str) -> None:
    connection.execute(delete(cache_aliases).where(cache_aliases.c.entry == entry))
    connection.execute(delete(cache_questions).where(cache_questions.c.entry == entry))


def _question_columns() -> tuple[Any, ...]:
    table = cache_questions.c
    return (
        table.fingerprint,
        table.key_id.label("question_key_id"),
        table.content.label("question_content"),
    )
