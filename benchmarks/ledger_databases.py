"""The SQLite and PostgreSQL databases of the ledger benchmark."""

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.ledger.ledger import DatabaseLedger

LOCAL_MODEL = "instant"
_HOUR_USD = Decimal("0.10")


@dataclass(frozen=True, slots=True)
class LedgerDatabase:
    """A database. state: its folder. url: of PostgreSQL; None for SQLite in `state`."""

    name: str
    state: Path
    url: str | None


def open_ledger(
    url: str | None, state: Path, commit_wait_s: float | None = None
) -> "DatabaseLedger":
    """Return a ledger that is not started. commit_wait_s: None for the default of the settings."""
    from pydantic import SecretStr

    from benchmarks.fake_ledger import NullEvents
    from serving.contracts.ledger_settings import LedgerSettings
    from serving.ledger.build import build_ledger
    from serving.ledger.pricing.book import PriceBook
    from serving.ledger.pricing.cost import Pricing

    settings = LedgerSettings(url=None if url is None else SecretStr(url))
    if commit_wait_s is not None:
        settings = settings.model_copy(update={"commit_wait_s": commit_wait_s})
    pricing = Pricing(PriceBook.load(), {LOCAL_MODEL: _HOUR_USD}, settings.reference_model)
    return build_ledger(settings, state, pricing, NullEvents(), _HOUR_USD)


def rows_in(database: LedgerDatabase) -> int:
    """Return how many exits and calls are committed; blocking."""
    from pydantic import SecretStr
    from sqlalchemy import func, select

    from serving.ledger.reports.written import written_ledger
    from serving.ledger.schema import calls, exits

    url = None if database.url is None else SecretStr(database.url)
    with written_ledger(url, database.state) as opened, opened.read() as connection:
        return sum(
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (exits, calls)
        )


def versions(database: LedgerDatabase) -> str:
    """Return the database's name and version; blocking."""
    import sqlite3

    from pydantic import SecretStr
    from sqlalchemy import text

    from serving.ledger.reports.written import written_ledger

    if database.url is None:
        return f"SQLite {sqlite3.sqlite_version}"
    with written_ledger(SecretStr(database.url), database.state) as opened, opened.read() as found:
        return f"PostgreSQL {found.execute(text('SHOW server_version')).scalar_one()}"


@contextmanager
def open_databases(postgres_url: str | None) -> Iterator[list[LedgerDatabase]]:
    """Yield a SQLite database in a temporary folder and, if available, a PostgreSQL database.

    postgres_url: of an empty database. If None, the package pgserver starts a server, if installed.
    """
    with tempfile.TemporaryDirectory(prefix="ledger-") as name, _postgres(postgres_url) as url:
        databases = [LedgerDatabase("sqlite", Path(name) / "sqlite", None)]
        if url is not None:
            databases.append(LedgerDatabase("postgresql", Path(name) / "postgresql", url))
        yield databases


@contextmanager
def _postgres(url: str | None) -> Iterator[str | None]:
    if url is not None:
        yield url
        return
    try:
        with warnings.catch_warnings():
            # It warns at import where there is no runtime folder.
            warnings.simplefilter("ignore")
            from pgserver.postgres_server import get_server
    except ImportError:
        yield None
        return
    # Short: a Unix socket's path has 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
