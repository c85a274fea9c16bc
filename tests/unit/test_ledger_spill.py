"""Rows that the database did not take are kept whole, however the process ends."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.ledger.operations import Close, RecordExit, UnreadableLine, from_line, to_line
from serving.ledger.spill import Spill, SpillFile

MONEY = st.integers(-(10**15), 10**15).map(lambda n: Decimal(n) / 10**12)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
ROWS = st.fixed_dictionaries(
    {
        "id": TEXTS,
        "cost_usd": st.none() | MONEY,
        "held_usd": MONEY,
        "opened_at": st.datetimes(timezones=st.just(UTC)),
        "output_tokens": st.none() | st.integers(0, 2**62),
        "valid": st.booleans(),
    }
)
CLOSES = st.builds(Close, ROWS, st.lists(ROWS, max_size=2).map(tuple), st.booleans())
LEAVES = st.builds(
    RecordExit, ROWS, st.lists(ROWS, max_size=2).map(tuple), st.just(()), st.booleans()
)
APPENDER = """
import sys
from pathlib import Path
from serving.ledger.spill import Spill
spill = Spill(Path(sys.argv[1]))
n = 0
while True:
    spill.append([f"line {n}"])
    sys.stdout.write(f"{n}\\n")
    sys.stdout.flush()
    n += 1
"""


def lines_of(files: list[SpillFile]) -> list[str]:
    """Read what files hold, and close them."""
    lines = [line.rstrip("\n") for file in files for chunk in file.chunks(2) for line in chunk]
    for file in files:
        file.close()
    return lines


@pytest.fixture
def full() -> Iterator[Callable[[int], None]]:
    """Limit how large files may get; -1 lifts it."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size < 0 else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


@given(CLOSES | LEAVES)
def test_operations_come_back_as_they_went(operation: Close | RecordExit) -> None:
    line = to_line(operation)
    assert "\n" not in line
    assert from_line(line) == operation


@given(CLOSES, st.floats(0.0, 0.999))
def test_a_line_cut_anywhere_is_refused(operation: Close, share: float) -> None:
    line = to_line(operation)
    with pytest.raises(UnreadableLine):
        from_line(line[: int(len(line) * share)])


@pytest.mark.parametrize("line", ["", "[]", "{}", "null", "7", '{"do": "close"}', "\x00" * 20])
def test_other_lines_are_refused(line: str) -> None:
    with pytest.raises(UnreadableLine):
        from_line(line)


def test_lines_are_taken_in_their_order_and_only_once(tmp_path: Path) -> None:
    spill = Spill(tmp_path)
    spill.append(["a", "b"])
    spill.append(["c"])
    taken = spill.take()
    assert [chunk for file in taken for chunk in file.chunks(2)] == [["a\n", "b\n"], ["c\n"]]
    assert spill.take() == []
    spill.append(["d"])
    for file in taken:
        file.remove()
    assert lines_of(spill.take()) == ["d"]


def test_a_file_in_use_is_not_given_to_another_writer(tmp_path: Path) -> None:
    first, second = Spill(tmp_path), Spill(tmp_path)
    first.append(["a"])
    assert second.take() == []
    first.close()
    assert lines_of(second.take()) == ["a"]


def test_of_two_only_one_takes_a_dead_processes_file(tmp_path: Path) -> None:
    dead = Spill(tmp_path)
    dead.append(["a"])
    dead.close()
    taken = [Spill(tmp_path).take(), Spill(tmp_path).take()]
    assert [len(files) for files in taken] == [1, 0]
    taken[0][0].remove()
    assert list(tmp_path.iterdir()) == []


def test_a_torn_last_line_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dead.jsonl").write_bytes(b'whole\n{"torn')
    assert lines_of(Spill(tmp_path).take()) == ["whole"]
    assert "ledger.line_truncated" in caplog.text


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path, full: Callable[[int], None]) -> None:
    spill = Spill(tmp_path)
    spill.append(["first"])
    full(10)
    with pytest.raises(OSError, match="large"):
        spill.append(["x" * 100])
    full(-1)
    spill.append(["second"])
    assert lines_of(spill.take()) == ["first", "second"]


def test_a_killed_process_leaves_every_line_that_it_had_written(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDER, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    acknowledged = [int(process.stdout.readline()) for _ in range(50)]
    assert Spill(tmp_path).take() == []
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += map(int, process.stdout.read().split(b"\n")[:-1])
    process.wait()
    process.stdout.close()
    found = lines_of(Spill(tmp_path).take())
    assert found[: len(acknowledged)] == [f"line {n}" for n in acknowledged]
    assert len(found) <= len(acknowledged) + 1


def test_files_are_readable_only_by_their_owner(tmp_path: Path) -> None:
    spill = Spill(tmp_path / "spill")
    spill.append(["a"])
    (path,) = (tmp_path / "spill").iterdir()
    assert path.stat().st_mode & 0o077 == 0
