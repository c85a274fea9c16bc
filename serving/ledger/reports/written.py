"""A ledger that is there already, for those who only read it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import exc, inspect

from serving.contracts.errors import LedgerUnusable
from serving.ledger.database import Database, database_url
from serving.ledger.schema import metadata


@contextmanager
def written_ledger(url: SecretStr | None, state: Path) -> Iterator[Database]:
    """Yield the database, and close it; nothing is created or changed. Blocking.

    Raises LedgerUnusable where there is none, or one of another version; InvalidSettings;
    LedgerUnavailable.
    """
    place = database_url(url, state)
    if url is None and not Path(place.database or "").is_file():
        raise LedgerUnusable(
            f"there is no ledger at {str(place.database)!r}",
            field="state",
            fix="give the --state or --config of the gateway; narrowgate serve makes the ledger",
        )
    database = Database(place)
    try:
        _require_tables(database)
        yield database
    finally:
        database.close()


def _require_tables(database: Database) -> None:
    try:
        with database.read() as connection:
            found = inspect(connection)
            tables = set(found.get_table_names())
            missing = [
                f"{table.name}.{column.name}" if table.name in tables else table.name
                for table in metadata.sorted_tables
                for column in table.columns
                if table.name not in tables
                or column.name not in {item["name"] for item in found.get_columns(table.name)}
            ]
    except exc.DatabaseError as error:
        raise LedgerUnusable(
            f"the ledger's database cannot be read: {type(error.orig).__name__}",
            field="ledger.url",
            fix="see that it is a ledger",
        ) from error
    if missing:
        raise LedgerUnusable(
            f"the ledger has no {missing[0]!r}",
            field="ledger.url",
            fix="narrowgate serve creates the tables and brings those of earlier versions up to "
            "date",
        )
