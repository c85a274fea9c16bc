"""An absent, locked or silent database delays no request, lets no call pass and loses no row."""

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import psutil
import pytest
from pydantic import SecretStr
from sqlalchemy import text, update

from serving.contracts.errors import LedgerUnavailable
from serving.ledger.connection_watchdog import ConnectionWatchdog
from serving.ledger.database import Database, database_url
from serving.ledger.instances import Instance
from serving.ledger.ledger import DatabaseEntry, DatabaseLedger
from serving.ledger.migrate import migrate
from serving.ledger.operations import Close, RecordExit, Row, to_line
from serving.ledger.reports.reconcile import reconcile
from serving.ledger.schema import calls, exits, instances
from serving.ledger.spill import Spill
from serving.ledger.store import Store
from serving.ledger.worker import LedgerWorker, WorkerDeps

from .database import (
    MEMORY,
    POSTGRES_PROGRAMS,
    fresh_postgres,
    get_server,
    remove_server,
)
from .ledger_kit import (
    COST,
    MODEL,
    PROBING,
    QUICK,
    WORST,
    Noted,
    Reader,
    ended,
    entry_of,
    in_time,
    left,
    left_locally,
    new_ledger,
    running,
)
from .ledger_operations import closed, departed, header, opened
from .patience import until


class Server:
    """A PostgreSQL server that tests stop, freeze and start again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server = get_server(folder, cleanup_mode="delete")
        self.url = SecretStr("")
        self._program = POSTGRES_PROGRAMS / "pg_ctl"

    def renew(self) -> None:
        """Give the next test an empty database."""
        self.url = fresh_postgres(self._server.get_uri(), "ledger")

    def stop(self) -> None:
        self._control("stop", "-m", "immediate")

    def start(self) -> None:
        log = self.folder / "again.log"
        self._control("start", "-l", str(log), "-o", f'-h "" -k {self.folder}')

    @contextmanager
    def frozen(self) -> Iterator[None]:
        frozen = self._processes()
        for process in frozen:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in frozen:
                process.send_signal(signal.SIGCONT)

    def _control(self, *arguments: str) -> None:
        command = [str(self._program), "-D", str(self.folder), "-w", *arguments]
        owner = self.folder.owner()
        subprocess.run(
            command, check=True, capture_output=True, user=None if owner == "root" else owner
        )

    def _processes(self) -> list[psutil.Process]:
        first = (self.folder / "postmaster.pid").read_text(encoding="ascii").split()[0]
        parent = psutil.Process(int(first))
        return [*parent.children(recursive=True), parent]

    def cleanup(self) -> None:
        remove_server(self.folder, self._server)


@pytest.fixture(scope="module")
def running_server() -> Iterator[Server]:
    """One server for this file: starting one takes longer than most of the tests."""
    found = Server(MEMORY / f"pg-{uuid4().hex[:12]}")
    yield found
    found.cleanup()


@pytest.fixture
def server(running_server: Server) -> Server:
    running_server.renew()
    return running_server


@pytest.fixture
def noted() -> Noted:
    return Noted()


def spilled(state: Path) -> int:
    """Return how many lines wait in files."""
    found = (state / "ledger" / "spill").glob("*.jsonl")
    return sum(path.read_bytes().count(b"\n") for path in found)


async def refused(entry: DatabaseEntry) -> None:
    with pytest.raises(LedgerUnavailable):
        await entry.open_call(MODEL, WORST, in_time())


async def close_while_unreachable(ledger: DatabaseLedger, number: int = 20) -> None:
    """Close inputs and wait until each is on disk."""
    for _ in range(number):
        entry = entry_of(ledger)
        entry.close(left_locally())
        await entry.written()


def closed_rows(reader: Reader) -> int:
    return sum(row["state"] == "closed" for row in reader.rows(exits))


def verified(reader: Reader) -> None:
    reader.check()
    assert reconcile(reader.database) == []
    reader.close()


async def test_an_absent_server_refuses_calls_and_takes_exits(
    server: Server, state: Path, noted: Noted
) -> None:
    server.stop()
    ledger = new_ledger(server.url, state, noted, PROBING)
    await ledger.start()
    await refused(entry_of(ledger))
    await close_while_unreachable(ledger)
    assert spilled(state) == noted.counts["spilled"] == 20
    server.start()
    await until(lambda: noted.counts["written"] == 20)
    await until(lambda: spilled(state) == 0)
    call = await entry_of(ledger).open_call(MODEL, WORST, in_time())
    call.close(ended())
    await ledger.aclose()
    reader = Reader(server.url, state)
    assert closed_rows(reader) == 20
    assert noted.states == ["down", "up"]
    verified(reader)


async def test_no_row_is_lost_when_the_server_stops(
    server: Server, state: Path, noted: Noted
) -> None:
    async with running(server.url, state, noted, PROBING) as ledger:
        entry = entry_of(ledger)
        call = await entry.open_call(MODEL, WORST, in_time())
        server.stop()
        call.close(ended())
        assert entry.close(left()) == COST
        await entry.written()
        await refused(entry_of(ledger))
        await close_while_unreachable(ledger, 5)
        assert spilled(state) == 7
        server.start()
        await until(lambda: noted.states == ["down", "up", "down", "up"])
        await until(lambda: spilled(state) == 0)
    reader = Reader(server.url, state)
    assert closed_rows(reader) == 6
    assert [row["cost_usd"] for row in reader.rows(calls) if row["kind"] == "frontier"] == [COST]
    verified(reader)


def cut_connections(url: SecretStr, state: Path) -> int:
    """End every other connection to a database; return how many there were."""
    database = Database(database_url(url, state))
    ended = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with database.begin() as connection:
        count: int = connection.execute(text(ended)).scalar_one()
    database.close()
    return count


async def test_a_cut_connection_refuses_no_call(server: Server, state: Path, noted: Noted) -> None:
    async with running(server.url, state, noted, QUICK) as ledger:
        for _ in range(5):
            assert await asyncio.to_thread(cut_connections, server.url, state) == 1
            entry = entry_of(ledger)
            call = await entry.open_call(MODEL, WORST, in_time())
            call.close(ended())
            assert entry.close(left()) == COST
            await entry.written()
        assert await asyncio.to_thread(cut_connections, server.url, state) == 1
        # The next heartbeat finds it.
        reader = Reader(server.url, state)
        last = reader.rows(instances)[0]["seen_at"]
        await until(lambda: reader.rows(instances)[0]["seen_at"] > last)
        assert noted.states == ["down", "up"]
    assert closed_rows(reader) == 5
    verified(reader)


async def test_a_connection_that_is_cut_at_the_commit_is_replaced_at_once(
    server: Server, state: Path, noted: Noted
) -> None:
    # Neither a probe nor a heartbeat is due.
    slow = replace(QUICK, probe_s=1_000.0, beat_s=1_000.0)
    async with running(server.url, state, noted, slow) as ledger:
        with cut_at_commit(server.url, state):
            await refused(entry_of(ledger))
        await until(lambda: noted.states == ["down", "up", "down", "up"])
        entry = entry_of(ledger)
        call = await entry.open_call(MODEL, WORST, in_time())
        call.close(ended())
        assert entry.close(left()) == COST
        await entry.written()
        await until(lambda: spilled(state) == 0)
    reader = Reader(server.url, state)
    # The commit was sent: nobody knows that it was not executed.
    assert {row["outcome"] for row in reader.rows(calls)} <= {"ok", "not_made"}
    assert all(sums == (COST, 0) for sums in reader.sums().values())
    verified(reader)


@contextmanager
def cut_at_commit(url: SecretStr, state: Path) -> Iterator[None]:
    """Cut the connection when a transaction's rows are written and only the commit is left."""
    original = Store.apply
    with pytest.MonkeyPatch.context() as patch:

        def apply(self: Store, connection: Any, operations: Any) -> Any:
            answers = original(self, connection, operations)
            cut_connections(url, state)
            patch.undo()
            return answers

        patch.setattr(Store, "apply", apply)
        yield


async def test_a_silent_server_is_cut_off(server: Server, state: Path, noted: Noted) -> None:
    async with running(
        server.url, state, noted, QUICK, call_wait_s=0.3, commit_wait_s=0.05
    ) as ledger:
        with server.frozen():
            await refused(entry_of(ledger))
            quick = entry_of(ledger)
            quick.close(left_locally())
            await quick.written()
            await until(lambda: noted.states[-1] == "down")
            await close_while_unreachable(ledger, 5)
            await until(lambda: spilled(state) >= 6)
            await refused(entry_of(ledger))
        await until(lambda: noted.states[-1] == "up")
        await until(lambda: spilled(state) == 0)
    reader = Reader(server.url, state)
    assert closed_rows(reader) == 6
    assert all(held == 0 for _, held in reader.sums().values())
    verified(reader)


async def test_an_opening_whose_commit_is_not_confirmed_holds_nothing(
    server: Server, state: Path, noted: Noted
) -> None:
    async with running(server.url, state, noted, QUICK) as ledger:
        written = await entry_of(ledger).open_call(MODEL, WORST, in_time())
        written.close(ended())
        await until(lambda: noted.counts["written"] == 2)
        with frozen_at_commit(server):
            await refused(entry_of(ledger))
            assert noted.counts["spilled"] == spilled(state) == 1
        await until(lambda: noted.states[-1] == "up")
        await until(lambda: spilled(state) == 0)
    reader = Reader(server.url, state)
    # The server had received the commit, and executed it when it ran again.
    assert {row["outcome"] for row in reader.rows(calls)} == {"ok", "not_made"}
    assert all(sums == (COST, 0) for sums in reader.sums().values())
    reader.close()


@contextmanager
def frozen_at_commit(server: Server) -> Iterator[None]:
    """Freeze the server when a transaction's rows are written and only the commit is left."""
    original = Store.apply
    with contextlib.ExitStack() as frozen, pytest.MonkeyPatch.context() as patch:

        def apply(self: Store, connection: Any, operations: Any) -> Any:
            answers = original(self, connection, operations)
            frozen.enter_context(server.frozen())
            patch.undo()
            return answers

        patch.setattr(Store, "apply", apply)
        yield


async def test_a_locked_file_refuses_calls_and_takes_exits(state: Path, noted: Noted) -> None:
    async with running(None, state, noted, QUICK) as ledger:
        other = sqlite3.connect(state / "ledger" / "ledger.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        await refused(entry_of(ledger))
        await close_while_unreachable(ledger)
        assert spilled(state) == 20
        other.execute("ROLLBACK")
        other.close()
        await until(lambda: noted.states[-1] == "up")
        await until(lambda: spilled(state) == 0)
    reader = Reader(None, state)
    assert closed_rows(reader) == 20
    assert reader.sums() == {}
    verified(reader)


async def test_an_answer_waits_for_its_row_no_longer_than_it_may(state: Path) -> None:
    async with running(None, state, commit_wait_s=0.05) as ledger:
        other = sqlite3.connect(state / "ledger" / "ledger.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        entry = entry_of(ledger)
        entry.close(left_locally())
        await entry.written()
        assert entry._left is not None
        assert not entry._left.done()
        other.execute("ROLLBACK")
        other.close()
    reader = Reader(None, state)
    assert closed_rows(reader) == 1
    verified(reader)


async def test_files_of_dead_processes_are_written_at_the_start(
    ledger_url: SecretStr | None, state: Path, noted: Noted
) -> None:
    dead = Spill(state / "ledger" / "spill")
    dead.append([to_line(departed(header(n), paid=False)) for n in range(600)])
    dead.append(["no operation"])
    dead.close()
    (path,) = (state / "ledger" / "spill").glob("*.jsonl")
    with path.open("ab") as file:
        file.write(b'{"do": "leave", "ex')
    async with running(ledger_url, state, noted):
        await until(lambda: spilled(state) == 0)
    reader = Reader(ledger_url, state)
    assert closed_rows(reader) == 600
    assert noted.counts == {"written": 600, "rejected": 1}
    (aside,) = (state / "ledger" / "spill" / "rejected").iterdir()
    assert aside.read_text(encoding="utf-8") == "no operation\n"
    verified(reader)


@pytest.fixture
def worker(ledger_url: SecretStr | None, state: Path, noted: Noted) -> Iterator[LedgerWorker]:
    database = Database(database_url(ledger_url, state))
    deps = WorkerDeps(
        database,
        ConnectionWatchdog(database),
        Spill(state / "ledger" / "spill"),
        Instance.of_this_process(Decimal(0)),
    )
    found = LedgerWorker(deps, noted)
    found.tend()
    assert found.up
    yield found
    found.finish()


def test_a_bad_row_does_not_touch_the_others(
    worker: LedgerWorker, ledger_url: SecretStr | None, state: Path, noted: Noted
) -> None:
    broken: dict[str, Any] = {
        **departed(header(2), paid=False).exit,
        "outcome": None,
        "tenant": None,
    }
    huge = opened(header(3), Decimal(10) ** 9)
    answers = worker.write(
        [
            departed(header(1), paid=False),
            RecordExit(cast(Row, broken)),
            huge,
            opened(header(4), WORST),
        ]
    )
    assert [isinstance(answer, LedgerUnavailable) for answer in answers] == [
        False, False, True, False,
    ]  # fmt: skip
    assert worker.up
    assert noted.counts["rejected"] == 1
    reader = Reader(ledger_url, state)
    assert {row["id"] for row in reader.rows(exits)} == {"e0001", "e0004"}
    (aside,) = (state / "ledger" / "spill" / "rejected").iterdir()
    assert '"e0002"' in aside.read_text(encoding="utf-8")
    verified(reader)


def test_a_call_and_an_exit_whose_values_do_not_fit_are_still_closed(
    worker: LedgerWorker, ledger_url: SecretStr | None, state: Path, noted: Noted
) -> None:
    opening = opened(header(1), WORST)
    worker.write([opening])
    end = closed(opening)
    worker.write([Close({**end.call, "output_tokens": 10**25, "service_tier": "a\x00"})])
    left_ = departed(header(1), paid=True)
    worker.write([RecordExit({**left_.exit, "output_tokens": 10**25}, paid=True)])
    reader = Reader(ledger_url, state)
    (call,), (row,) = reader.rows(calls), reader.rows(exits)
    assert (call["state"], call["held_usd"], call["cost_usd"]) == ("unknown", WORST, None)
    assert (row["state"], row["held_usd"], row["cost_usd"]) == ("closed", WORST, 0)
    assert noted.counts["rejected"] == 2
    assert worker.up
    verified(reader)


def test_a_missing_table_counts_as_an_unreachable_database(
    worker: LedgerWorker, ledger_url: SecretStr | None, state: Path, noted: Noted
) -> None:
    reader = Reader(ledger_url, state)
    with reader.database.begin() as connection:
        connection.execute(text("ALTER TABLE exits RENAME TO hidden"))
    worker.write([departed(header(1), paid=False)])
    assert not worker.up
    assert (noted.counts["spilled"], noted.counts["rejected"]) == (1, 0)
    with reader.database.begin() as connection:
        connection.execute(text("ALTER TABLE hidden RENAME TO exits"))
    worker._next_s = 0.0
    while spilled(state):
        worker.tend()
    assert closed_rows(reader) == 1
    verified(reader)


def test_rows_that_neither_database_nor_disk_takes_are_written_later(
    state: Path, noted: Noted
) -> None:
    state.mkdir(parents=True)
    (state / "ledger").write_bytes(b"in the way of the folder")
    database = Database(database_url(SecretStr(f"postgresql:///x?host={state}"), state))
    spill = Spill(state / "ledger" / "spill")
    instance = Instance.of_this_process(Decimal(0))
    worker = LedgerWorker(
        WorkerDeps(database, ConnectionWatchdog(database), spill, instance), noted
    )
    worker.tend()
    worker.write([departed(header(1), paid=False)])
    assert noted.counts["spilled"] == 0
    (state / "ledger").unlink()
    worker.write([departed(header(2), paid=False)])
    assert noted.counts["spilled"] == spilled(state) == 2
    worker.finish()


async def test_a_stopped_process_is_taken_for_dead_and_its_late_ends_are_taken(
    ledger_url: SecretStr | None, state: Path
) -> None:
    reader = Reader(ledger_url, state)
    async with running(ledger_url, state) as ledger:
        entry = entry_of(ledger)
        call = await entry.open_call(MODEL, WORST, in_time())
        with reader.database.begin() as connection:
            connection.execute(update(instances).values(pid=2**22 + 1))
        async with running(ledger_url, state):
            assert [row["state"] for row in reader.rows(calls)] == ["unknown"]
            assert [row["outcome"] for row in reader.rows(exits)] == ["gateway_lost"]
        call.close(ended())
        assert entry.close(left()) == COST
        await entry.written()
        await until(lambda: len(reader.living()) == 1)
    assert closed_rows(reader) == 1
    verified(reader)


async def test_the_loop_is_never_held(state: Path, turns: Callable[[], int]) -> None:
    async with running(None, state, None, QUICK, commit_wait_s=0.0) as ledger:
        other = sqlite3.connect(state / "ledger" / "ledger.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        before = turns()
        opening = asyncio.create_task(entry_of(ledger).open_call(MODEL, WORST, in_time()))
        for _ in range(50):
            entry_of(ledger).close(left_locally())
        await asyncio.wait([opening])
        assert isinstance(opening.exception(), LedgerUnavailable)
        assert turns() > before + 50
        other.execute("ROLLBACK")
        other.close()
    reader = Reader(None, state)
    files = spilled(state)
    assert closed_rows(reader) + files == 50
    reader.close()


@pytest.fixture
async def turns() -> AsyncIterator[Callable[[], int]]:
    """Count the event loop's turns."""
    count = 0

    async def turn() -> None:
        nonlocal count
        while True:
            count += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(turn())
    yield lambda: count
    task.cancel()


def test_no_thread_is_left_behind(state: Path) -> None:
    async def use() -> None:
        async with running(None, state):
            pass

    before = set(threading.enumerate())
    asyncio.run(use())
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()
    migrated = Database(database_url(None, state))
    migrate(migrated)
    migrated.close()
