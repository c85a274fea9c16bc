"""The real ledgers that a benchmark writes to, and how many rows are in them."""

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
class Kept:
    """A ledger's database. state: its folder. url: of PostgreSQL; None for SQLite in `state`."""

    name: str
    state: Path
    url: str | None


def open_ledger(
    url: str | None, state: Path, commit_wait_s: float | None = None
) -> "DatabaseLedger":
    """Return a ledger, to be started. commit_wait_s: as the settings have it where None."""
    from pydantic import SecretStr

    from benchmarks.no_ledger import NoEvents
    from serving.contracts.ledger_settings import LedgerSettings
    from serving.ledger.build import build_ledger
    from serving.ledger.pricing.book import PriceBook
    from serving.ledger.pricing.cost import Pricing

    settings = LedgerSettings(url=None if url is None else SecretStr(url))
    if commit_wait_s is not None:
        settings = settings.model_copy(update={"commit_wait_s": commit_wait_s})
    pricing = Pricing(PriceBook.load(), {LOCAL_MODEL: _HOUR_USD}, settings.reference_model)
    return build_ledger(settings, state, pricing, NoEvents(), _HOUR_USD)


def rows_in(kept: Kept) -> int:
    """Return how many exits and calls are committed; blocking."""
    from pydantic import SecretStr
    from sqlalchemy import func, select

    from serving.ledger.reports.written import written_ledger
    from serving.ledger.schema import calls, exits

    url = None if kept.url is None else SecretStr(kept.url)
    with written_ledger(url, kept.state) as database, database.read() as connection:
        return sum(
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (exits, calls)
        )


def versions(kept: Kept) -> str:
    """Return the database's name and version; blocking."""
    import sqlite3

    from pydantic import SecretStr
    from sqlalchemy import text

    from serving.ledger.reports.written import written_ledger

    if kept.url is None:
        return f"SQLite {sqlite3.sqlite_version}"
    with written_ledger(SecretStr(kept.url), kept.state) as database, database.read() as found:
        return f"PostgreSQL {found.execute(text('SHOW server_version')).scalar_one()}"


@contextmanager
def databases(postgres_url: str | None) -> Iterator[list[Kept]]:
    """Yield SQLite in a folder of its own and, where there is one, PostgreSQL.

    postgres_url: of an empty database; where None, the pgserver package starts one, if installed.
    """
    with tempfile.TemporaryDirectory(prefix="books-") as name, _postgres(postgres_url) as url:
        kept = [Kept("sqlite", Path(name) / "sqlite", None)]
        if url is not None:
            kept.append(Kept("postgresql", Path(name) / "postgresql", url))
        yield kept


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
