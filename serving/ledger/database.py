"""The ledger's database: SQLite in the state folder, or PostgreSQL by URL."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from pydantic import SecretStr
from sqlalchemy import Connection, Engine, create_engine, event, exc
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import ConnectionPoolEntry

from serving.contracts.errors import InvalidSettings, LedgerUnavailable, LedgerUnusable
from serving.contracts.ledger_settings import LedgerSettings
from serving.contracts.plain_file import read_plain_text, unread_because
from serving.ledger.rights import MissingRights


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the ledger waits for its database, in seconds.

    busy_s: SQLite, for another writer. statement_s: PostgreSQL, for one statement or lock.
    silence_s: PostgreSQL, for any byte, before the connection is cut. beat_s: between two
    heartbeats of a gateway. probe_s: between two attempts to reach an unreachable database.
    watch_s: between two checks for a silent server.
    """

    busy_s: float = 1.0
    statement_s: float = 2.0
    silence_s: float = 5.0
    beat_s: float = 2.0
    probe_s: float = 1.0
    watch_s: float = 0.5


DEFAULT_TIMEOUTS = Timeouts()

# A server, database or role may have other defaults. Locks order the ledger's transactions: above
# "read committed" one that waited for a lock fails. The driver reads times of the style ISO only,
# and a difference of two local times is wrong by an hour when the clocks change.
_SESSION = {"DateStyle": "ISO", "TimeZone": "UTC"}
_ISOLATION = r"-c default_transaction_isolation=read\ committed"
_IS_POOLED = "narrowgate_is_pooled"


class Database:
    """One database, reached by blocking calls.

    url: as database_url returns it. is_synced: SQLite waits at each commit until the disk has it.
    Otherwise a power failure, but no kill, may lose the last commits; they hold the one write lock
    for less time, which a slow disk makes longer than busy_s.
    """

    def __init__(
        self, url: URL, timeouts: Timeouts = DEFAULT_TIMEOUTS, *, is_synced: bool = True
    ) -> None:
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self.engine = (
            _sqlite(url, timeouts, "FULL" if is_synced else "NORMAL")
            if self.is_sqlite
            else _postgres(url, timeouts)
        )
        self._reading = self.engine.execution_options(read_only=True)
        self._rights = MissingRights()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that may write. SQLite has one such transaction.

        Commits at the end of the block, rolls back on an error. Raises LedgerUnavailable after
        busy_s (SQLite) or statement_s (PostgreSQL), after silence_s where the server sends nothing,
        and where the role lacks a right.
        """
        yield from _transaction(self.engine, self._rights)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that only reads. Raises as `begin`."""
        yield from _transaction(self._reading, self._rights)

    def close(self) -> None:
        """Close the connections that are not in use, and each other one once it is returned."""
        # The pool keeps what a thread returns to it later, and nothing would close that.
        event.listen(self.engine, "checkin", _close_returned)
        self.engine.dispose()


def _close_returned(_connection: object, record: ConnectionPoolEntry) -> None:
    record.invalidate()


def ledger_url(settings: LedgerSettings) -> SecretStr | None:
    """Return the URL in the settings or in `url_file`; None for SQLite in the state folder.

    Blocking. Raises InvalidSettings for a file that cannot be read or is empty.
    """
    file = settings.url_file
    if file is None:
        return settings.url
    try:
        text = read_plain_text(file).strip()
    except (OSError, ValueError) as error:
        raise InvalidSettings(
            f"the file with the ledger's URL {str(file)!r} cannot be read: {unread_because(error)}",
            field="ledger.url_file",
            fix="mount the Secret that holds the URL there, or set ledger.url",
        ) from error
    if not text:
        raise InvalidSettings(
            f"the file with the ledger's URL {str(file)!r} is empty",
            field="ledger.url_file",
            fix="write postgresql://USER:PASSWORD@HOST/DATABASE into it",
        )
    return SecretStr(text)


def database_url(url: SecretStr | None, state: Path) -> URL:
    """Return the URL of the ledger's database.

    url: None for SQLite in the state folder. Raises InvalidSettings for a URL that is not a
    PostgreSQL URL.
    """
    if url is None:
        return URL.create("sqlite+pysqlite", database=str(state.resolve() / "ledger" / "ledger.db"))
    try:
        found = make_url(url.get_secret_value())
    except (exc.ArgumentError, ValueError):  # ValueError: a port that is not a number
        found = None
    if found is None or found.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise InvalidSettings(
            # The value itself may hold a password.
            f"ledger.url is not the URL of a PostgreSQL database: {_kind(found)}",
            field="ledger.url",
            fix="give postgresql://USER:PASSWORD@HOST/DATABASE, or leave it out for SQLite",
        )
    if found.port is not None and not 1 <= found.port <= 65_535:
        raise InvalidSettings(
            f"ledger.url has the port {found.port}", field="ledger.url", fix="give 1 to 65535"
        )
    return found.set(drivername="postgresql+psycopg")


def _kind(url: URL | None) -> str:
    return "it cannot be parsed" if url is None else f"it begins with {url.drivername!r}"


def _transaction(engine: Engine, rights: MissingRights) -> Iterator[Connection]:
    try:
        with engine.begin() as connection:
            yield connection
    except (exc.InterfaceError, exc.OperationalError, exc.TimeoutError) as error:
        if engine.url.get_backend_name() == "sqlite":
            # SQLite's own words: "database or disk is full", "unable to open database file".
            raise LedgerUnavailable(
                f"the ledger's database {engine.url.database!r} cannot be used: "
                f"{getattr(error, 'orig', None) or type(error).__name__}",
                fix="check the free space of its disk, and the owner and permissions of its folder",
                retry_after_s=5,
            ) from error
        if "unsupported startup parameter" in str(error):
            raise LedgerUnusable(
                "the pooler in front of the ledger's database refuses the parameter 'options'",
                field="ledger.url",
                fix="write ignore_startup_parameters = options into PgBouncer's settings",
            ) from error
        # The driver's message is left out: it holds hosts, users and parameters.
        raise LedgerUnavailable(
            f"the ledger's database is unreachable: {type(error).__name__}",
            fix="check that the database runs and that ledger.url is right",
            retry_after_s=5,
        ) from error
    except exc.ProgrammingError as error:
        missing = rights.error_for(engine, error)
        if missing is None:
            raise
        raise missing from error


def _postgres(url: URL, timeouts: Timeouts) -> Engine:
    limit_ms = str(round(timeouts.statement_s * 1000))
    session = {"statement_timeout": limit_ms, "lock_timeout": limit_ms, **_SESSION}
    named = url.query.get("options", ())
    arguments = {
        "connect_timeout": 2,
        "client_encoding": "utf8",
        # Those of the URL (a search path) first: of a setting named twice the last one counts.
        "options": " ".join(
            [
                *([named] if isinstance(named, str) else named),
                *(f"-c {name}={value}" for name, value in session.items()),
                _ISOLATION,
            ]
        ),
        # The kernel gives up a silent server after about 5 s: 2 s idle and 3 probes.
        "keepalives_idle": 2,
        "keepalives_interval": 1,
        "keepalives_count": 3,
        "tcp_user_timeout": round(timeouts.statement_s * 1000),
    }
    engine = create_engine(url, connect_args=arguments, pool_pre_ping=False, hide_parameters=True)
    _allow_pooler(engine, "; ".join(f"SET LOCAL {name} = '{session[name]}'" for name in session))
    return engine


def _allow_pooler(engine: Engine, settings: str) -> None:
    """Let each transaction of a connection through a pooler have a server's session of its own.

    PgBouncer may run one client's transactions in several sessions, which other clients share: a
    statement that was prepared is unknown there, or another client's. It ignores `options`.
    settings: statements that set for a transaction what `options` set for a session.
    """

    @event.listens_for(engine, "connect")
    def _look(connection: psycopg.Connection[Any], record: ConnectionPoolEntry) -> None:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        connection.rollback()
        # A pooler gives its clients process ids of its own.
        record.info[_IS_POOLED] = row != (connection.info.backend_pid,)
        if record.info[_IS_POOLED]:
            connection.prepare_threshold = None
            connection.isolation_level = psycopg.IsolationLevel.READ_COMMITTED

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if connection.info.get(_IS_POOLED):
            raw = connection.connection.driver_connection
            assert isinstance(raw, psycopg.Connection)
            raw.execute(settings)


def refuse_other_encoding(connection: Connection) -> None:
    """Raise LedgerUnusable for a PostgreSQL database that cannot hold every text.

    A client chooses request ids, end users' ids and names of files: a row with one of them would
    not be written.
    """
    encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
    if encoding != "UTF8":
        raise LedgerUnusable(
            f"the ledger's database has the encoding {encoding}, which cannot hold every text",
            field="ledger.url",
            fix="make it with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0",
        )


def _sqlite(url: URL, timeouts: Timeouts, synchronous: str) -> Engine:
    assert url.database is not None
    folder = Path(url.database).parent
    try:
        # It holds cached answers and end users' ids: nobody else reads it.
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidSettings(
            f"the folder {str(folder)!r} of the ledger cannot be created: {error.strerror}",
            field="state",
            fix="give --state a folder, not a file, that this user may write",
        ) from error
    engine = create_engine(url, connect_args={"timeout": timeouts.busy_s}, hide_parameters=True)
    # Many rows in one statement. The driver gives up the interpreter at each row otherwise, and
    # waits for it while the event loop works: 6 of the 11 ms of a transaction of 23 operations.
    engine.dialect.use_insertmanyvalues_wo_returning = True

    @event.listens_for(engine, "connect")
    def _configure(connection: object, _: object) -> None:
        # The listener below begins transactions; the driver would begin one at the first write.
        connection.isolation_level = None  # type: ignore[attr-defined]
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")  # type: ignore[attr-defined]

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred transaction that reads before it writes fails at once if another connection
        # wrote in between, whatever the busy time-out is.
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def blames_row(error: exc.SQLAlchemyError) -> bool:
    """Return whether an error is a row's, not the database's (rights, missing table, read-only).

    Writing the same row again fails again.
    """
    if isinstance(error, exc.DataError | exc.IntegrityError):
        return True
    if not isinstance(error, exc.DBAPIError):
        # A value that the driver never got.
        return isinstance(error, exc.StatementError)
    # The driver's own errors have no state: it cannot send a value.
    return getattr(error.orig, "sqlstate", None) is None
