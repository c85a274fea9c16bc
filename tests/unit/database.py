"""The two databases that the ledger is tested on, both real."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import text

from serving.ledger.database import Database, database_url

with warnings.catch_warnings():
    # It looks for a runtime folder at import and warns where there is none.
    warnings.simplefilter("ignore")
    import pgserver


@contextmanager
def postgres_server() -> Iterator[str]:
    """Yield the URL of a PostgreSQL server of its own, stopped and removed at the end."""
    # Short: a Unix socket's path has 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def fresh_postgres(server: str, name: str) -> SecretStr:
    """Return the URL of a new, empty database on a server."""
    admin = Database(database_url(SecretStr(server), Path()))
    with admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        connection.execute(text(f"CREATE DATABASE {name}"))
    admin.close()
    return SecretStr(server.replace("/postgres?", f"/{name}?"))
