"""What the soak of the whole stack counts as a failure, and the processes that it finds."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, insert

from benchmarks.served_stack import ServedStack, descendants, linked, replicas, runs
from benchmarks.soak_samples import Slope
from benchmarks.soak_stack import ENGINE, Kill, LedgerRows, StackTraffic, failures, ledger_rows
from serving.contracts.errors import InvalidArgument
from serving.ledger.schema import calls, exits, metadata

from .ledger_rows import LedgerRows as Rows
from .ledger_rows import local, unpaid
from .patience import GUARD_S

FLAT = Slope(0.0, -1.0, 1.0)
BACK_S = 100.0
KILL = Kill(60.0, 40.0)
LEDGER = LedgerRows(["a", "b"], calls=2, open_rows=0)


def traffic() -> StackTraffic:
    found = StackTraffic()
    for number, name in enumerate("ab"):
        found.note(200, None, "")
        found.answered.append((float(number), number + 0.5))
        found.ids.append(name)
    return found


def test_answers_and_refusals_with_a_time_to_retry_are_no_failure() -> None:
    seen = traffic()
    seen.note(503, "10", "model_unavailable")
    assert seen.statuses == {"200": 2, "503 model_unavailable": 1}
    assert failures(seen, [KILL], LEDGER, (FLAT, FLAT), BACK_S) == []


@pytest.mark.parametrize(
    ("status", "retry_after", "words"),
    [
        (503, None, "1 x HTTP 503 code with Retry-After None"),
        (503, "0", "1 x HTTP 503 code with Retry-After '0'"),
        (503, "soon", "1 x HTTP 503 code with Retry-After 'soon'"),
        (500, "10", "1 x HTTP 500 code"),
        (504, None, "1 x HTTP 504 code"),
        (429, "1", "1 x HTTP 429 code"),
    ],
)
def test_every_other_response_is_a_failure(
    status: int, retry_after: str | None, words: str
) -> None:
    seen = traffic()
    seen.note(status, retry_after, "code")
    assert failures(seen, [KILL], LEDGER, (FLAT, FLAT), BACK_S) == [words]


@pytest.mark.parametrize(
    ("kills", "words"),
    [
        ([], "no engine was killed"),
        ([Kill(60.0, None)], "no answer after the kill at 60 s"),
        ([KILL, Kill(600.0, 100.5)], "came back 100 s after the kill at 600 s, and 100 s"),
        ([Kill(60.0, 40.0, ("VLLM::EngineCore",))], "still ran after 60 s: VLLM::EngineCore"),
    ],
)
def test_a_kill_after_which_nothing_comes_back_is_a_failure(kills: list[Kill], words: str) -> None:
    (found,) = failures(traffic(), kills, LEDGER, (FLAT, FLAT), BACK_S)
    assert words in found


def test_only_answers_to_requests_after_a_kill_count_as_back() -> None:
    seen = StackTraffic(answered=[(0.0, 1.0), (9.0, 31.0), (12.0, 45.0), (40.0, 41.0)])
    assert seen.back_after(10.0) == pytest.approx(31.0)
    assert seen.back_after(40.0) is None


@pytest.mark.parametrize(
    ("ledger", "words"),
    [
        (replace(LEDGER, answered=["a"], calls=1), "1 answers have no row"),
        (replace(LEDGER, answered=["a", "b", "b"], calls=3), "1 rows of local answers"),
        (replace(LEDGER, calls=1), "2 local answers have 1 calls"),
        (replace(LEDGER, open_rows=1), "1 rows are still open"),
    ],
)
def test_a_ledger_that_differs_by_one_request_is_a_failure(ledger: LedgerRows, words: str) -> None:
    (found,) = failures(traffic(), [KILL], ledger, (FLAT, FLAT), BACK_S)
    assert words in found


def test_growth_and_a_run_without_answers_are_failures() -> None:
    growing = Slope(100.0, 90.0, 110.0)
    assert failures(traffic(), [KILL], LEDGER, (growing, growing), BACK_S) == [
        "memory grows by 100.0 MiB an hour",
        "open files grow by 100.0 an hour",
    ]
    empty = failures(StackTraffic(), [KILL], LedgerRows([], 0, 0), (FLAT, FLAT), BACK_S)
    assert empty == ["no request was answered"]


def test_the_ledgers_local_answers_are_read(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    engine = create_engine(f"sqlite:///{tmp_path / 'ledger' / 'ledger.db'}")
    metadata.create_all(engine)
    rows = Rows()
    rows.exit(calls=[local()], request_id="a")
    rows.exit(calls=[local(outcome="model_unavailable")], request_id="b", outcome="unavailable")
    # A call that was repeated on another replica.
    rows.exit(calls=[local(outcome="model_unavailable"), local()], request_id="c")
    rows.exit(calls=[unpaid("open", Decimal(0))], request_id="d", state="open", outcome=None)
    with engine.begin() as connection:
        connection.execute(insert(exits), rows.exits)
        connection.execute(insert(calls), rows.calls)
    engine.dispose()
    assert ledger_rows(tmp_path) == LedgerRows(["a", "c"], calls=2, open_rows=2)


@pytest.fixture
def replica() -> Iterator["subprocess.Popen[bytes]"]:
    """A process with a replica's name, and a child of its own."""
    code = "import subprocess, sys; subprocess.run(['sleep', '60'])"
    name = f"{ENGINE}:some-model"
    with subprocess.Popen([name, "-c", code], executable=sys.executable) as process:
        deadline = time.monotonic() + GUARD_S
        while not psutil.Process(process.pid).children():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.kill()
        process.kill()


def test_a_replica_is_found_by_its_name_and_what_outlives_it_is_seen(
    replica: "subprocess.Popen[bytes]",
) -> None:
    (found,) = replicas(os.getpid(), ENGINE)
    assert found.pid == replica.pid
    assert replicas(os.getpid(), "ray::ServeReplica:narrowgate") == []
    (child,) = descendants(replica.pid)
    stack = ServedStack("", [], replica, found)
    stack.look()
    assert stack.left() == ["sleep 60", "narrowgate serve"]
    found.kill()
    replica.wait()
    assert not runs(found)
    assert stack.left() == ["sleep 60"]
    child.kill()
    psutil.wait_procs([child], timeout=GUARD_S)
    assert stack.left() == []


def test_models_are_linked_and_the_ledger_is_not(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="holds no attested model"), linked(tmp_path):
        pass
    artifact = tmp_path / "artifacts" / "model"
    artifact.mkdir(parents=True)
    (artifact / "attestation.json").touch()
    (tmp_path / "ledger").mkdir()
    with linked(tmp_path) as state:
        assert [item.name for item in state.iterdir()] == ["artifacts"]
        assert (state / "artifacts" / "model" / "attestation.json").is_file()
    assert (artifact / "attestation.json").is_file()
