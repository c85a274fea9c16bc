"""The counts of answers by length, shared by all replicas. Blocking."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite

from serving.ledger.database import Database
from serving.ledger.schema import answer_lengths as table

_KEPT = timedelta(days=30)
"""After this time without a request a scope is forgotten."""


class AnswerLengthStore:
    """Implements serving.pipeline.answer_lengths.LengthStore."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, counts: Mapping[tuple[str, str, int], int]) -> None:
        """Add to the stored counts in one transaction. Raises LedgerUnavailable."""
        now = datetime.now(UTC)
        rows = [
            {"scope": scope, "arm": arm, "bucket": bucket, "answers": n, "used_at": now}
            for (scope, arm, bucket), n in sorted(counts.items())
        ]
        with self._database.begin() as connection:
            statement: sqlite.Insert | postgresql.Insert
            is_sqlite = connection.dialect.name == "sqlite"
            statement = sqlite.insert(table) if is_sqlite else postgresql.insert(table)
            added = {
                "answers": table.c.answers + statement.excluded.answers,
                "used_at": statement.excluded.used_at,
            }
            key = ["scope", "arm", "bucket"]
            connection.execute(
                statement.on_conflict_do_update(index_elements=key, set_=added), rows
            )
            connection.execute(delete(table).where(table.c.used_at < now - _KEPT))

    def load(self, limit: int) -> dict[tuple[str, str, int], int]:
        """Return the counts of the scopes that were used last. Raises LedgerUnavailable."""
        found: dict[tuple[str, str, int], int] = {}
        scopes: set[str] = set()
        query = select(table.c.scope, table.c.arm, table.c.bucket, table.c.answers)
        with self._database.read() as connection:
            for scope, arm, bucket, answers in connection.execute(
                query.order_by(table.c.used_at.desc())
            ):
                if scope in scopes or len(scopes) < limit:
                    scopes.add(scope)
                    found[scope, arm, bucket] = answers
        return found
