"""Opens an existing ledger for reading."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import exc, inspect

from serving.contracts.errors import LedgerUnusable
from serving.ledger.database import Database, database_url
from serving.ledger.migrate import refuse_newer
from serving.ledger.schema import metadata


@contextmanager
def written_ledger(url: SecretStr | None, state: Path) -> Iterator[Database]:
    """Yield the ledger's database and close it. Creates and changes nothing. Blocking.

    Raises LedgerUnusable for a missing ledger or one of another version, InvalidSettings, and
    LedgerUnavailable.
    """
    place = database_url(url, state)
    if url is None and not Path(place.database or "").is_file():
        raise LedgerUnusable(
            f"no ledger at {str(place.database)!r}",
            field="state",
            fix="give the gateway's --state or --config; narrowgate serve creates the ledger",
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
            refuse_newer(connection)
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
            fix="check that ledger.url names a ledger of narrowgate",
        ) from error
    if missing:
        raise LedgerUnusable(
            f"the ledger has no {missing[0]!r}",
            field="ledger.url",
            fix="narrowgate serve creates the tables and brings those of earlier versions up to "
            "date",
        )
