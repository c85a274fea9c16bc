"""Names the right that the role of `ledger.url` lacks in PostgreSQL."""

import logging
import re
import time
from contextlib import suppress

import psycopg
from sqlalchemy import Engine, exc, text

from serving.contracts.errors import LedgerUnavailable

logger = logging.getLogger(__name__)

_REPEAT_S = 60.0
"""Between two log lines about one right: a gateway meets it again at every heartbeat."""

_TABLE_RIGHTS = text("""
    SELECT p.name || ' on table ' || c.relname
    FROM pg_catalog.pg_class c
    CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p(name)
    WHERE c.relkind IN ('r', 'p') AND c.relname = ANY(:words)
      AND c.relnamespace = ANY(SELECT oid FROM pg_catalog.pg_namespace
                               WHERE nspname = ANY(current_schemas(false)))
      AND NOT has_table_privilege(c.oid, p.name)
    ORDER BY c.relname, p.name""")
_SCHEMA_RIGHTS = text("""
    SELECT p.name || ' on schema ' || n.nspname
    FROM pg_catalog.pg_namespace n
    CROSS JOIN unnest(ARRAY['CREATE', 'USAGE']) AS p(name)
    WHERE n.nspname = ANY(:words) AND NOT has_schema_privilege(n.oid, p.name)
    ORDER BY n.nspname, p.name""")


class MissingRights:
    """Finds out and logs which rights are missing, for one database."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, str]] = {}

    def error_for(self, engine: Engine, error: exc.DBAPIError) -> LedgerUnavailable | None:
        """Return the error of a statement that the role may not run; None for another failure.

        Blocking: it asks the database, at most once in a minute for one right. The error holds
        names of tables and schemas only.
        """
        if not isinstance(error.orig, psycopg.errors.InsufficientPrivilege):
            return None
        refusal = error.orig.diag.message_primary or "permission denied"
        rights = self._rights(engine, refusal)
        return LedgerUnavailable(
            f"the ledger's database refuses a statement: {refusal}; missing: {rights}",
            fix=f"grant the role of ledger.url {rights}",
            retry_after_s=5,
        )

    def _rights(self, engine: Engine, refusal: str) -> str:
        asked, rights = self._known.get(refusal, (-_REPEAT_S, ""))
        now = time.monotonic()
        if now - asked < _REPEAT_S:
            return rights
        rights = _ask(engine, refusal)
        self._known[refusal] = now, rights
        logger.error("ledger.right_missing right=%r database_says=%r", rights, refusal)
        return rights


def _ask(engine: Engine, refusal: str) -> str:
    # The server's words depend on its language; the names in them do not.
    words = {"words": re.findall(r"\w+", refusal)}
    found: list[str] = []
    with suppress(exc.SQLAlchemyError), engine.connect() as connection:
        for query in (_TABLE_RIGHTS, _SCHEMA_RIGHTS):
            found += connection.execute(query, words).scalars()
    return ", ".join(found) or "a right that the database does not name"
