"""The ledger's database: SQLite in the state folder, or PostgreSQL by URL."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.engine import URL, make_url

from serving.contracts.errors import InvalidSettings, LedgerUnavailable

_SQLITE_BUSY_MS = 1000
_POSTGRES_TIMEOUT_MS = 2000
_LIMIT = f"timeout={_POSTGRES_TIMEOUT_MS}"
# A server that is silent is given up after about 5 s: 2 s of idling and 3 probes.
_POSTGRES = {
    "connect_timeout": 2,
    "options": f"-c statement_{_LIMIT} -c lock_{_LIMIT}",
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": _POSTGRES_TIMEOUT_MS,
}


class Database:
    """One database, reached by blocking calls. url: as database_url returns it."""

    def __init__(self, url: URL) -> None:
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.engine = _sqlite(url) if self.is_sqlite else _postgres(url)
        self._reading = self.engine.execution_options(read_only=True)

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that may write; with SQLite, the only such one.

        Commits on leaving, rolls back on an error. Raises LedgerUnavailable, blocking for 1 to 2 s
        at most before it, or 5 s where the server fell silent.
        """
        yield from _transaction(self.engine)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that only reads. Raises as `begin`."""
        yield from _transaction(self._reading)

    def close(self) -> None:
        """Close every connection that is not in use."""
        self.engine.dispose()


def database_url(url: SecretStr | None, state: Path) -> URL:
    """Return where the ledger is. Raises InvalidSettings for a URL of another kind."""
    if url is None:
        return URL.create("sqlite+pysqlite", database=str(state.resolve() / "ledger" / "ledger.db"))
    try:
        found = make_url(url.get_secret_value())
    except exc.ArgumentError:
        found = None
    if found is None or found.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise InvalidSettings(
            "ledger.url is no URL of a PostgreSQL database",
            field="ledger.url",
            fix="give postgresql://USER:PASSWORD@HOST/DATABASE, or leave it out for SQLite",
        )
    return found.set(drivername="postgresql+psycopg")


def _transaction(engine: Engine) -> Iterator[Connection]:
    try:
        with engine.begin() as connection:
            yield connection
    except (exc.InterfaceError, exc.OperationalError, exc.TimeoutError) as error:
        # Not the driver's words: they hold hosts, users and parameters.
        raise LedgerUnavailable(
            f"the ledger's database does not answer: {type(error).__name__}",
            fix="see that it runs and that ledger.url is right",
            retry_after_s=5,
        ) from error


def _postgres(url: URL) -> Engine:
    return create_engine(url, connect_args=_POSTGRES, pool_pre_ping=False)


def _sqlite(url: URL) -> Engine:
    assert url.database is not None
    folder = Path(url.database).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSettings(
            f"the folder {str(folder)!r} of the ledger cannot be created: {error.strerror}",
            field="state",
            fix="give --state a folder, not a file, that this user may write",
        ) from error
    engine = create_engine(url, connect_args={"timeout": _SQLITE_BUSY_MS / 1000})

    @event.listens_for(engine, "connect")
    def _configure(connection: object, _: object) -> None:
        # Transactions are begun below, and not by the driver at the first write.
        connection.isolation_level = None  # type: ignore[attr-defined]
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred transaction that reads before it writes fails at once where another has
        # written in between, whatever the busy time-out is.
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine
