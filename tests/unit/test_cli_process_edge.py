"""Undecodable arguments, full disks and plain terminals end without a traceback."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from serving.cli import main, run_program
from serving.contracts.errors import EngineFailure
from serving.ledger.database import Database

PROGRAM = [sys.executable, "-m", "serving.cli"]


def program(
    *arguments: str | bytes, stdout: int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*PROGRAM, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        check=False,
    )


def assert_one_sentence(done: subprocess.CompletedProcess[bytes], status: int) -> str:
    shown = done.stderr.decode()
    assert "Traceback" not in shown
    assert "Exception ignored" not in shown
    assert shown.startswith("narrowgate: ")
    assert done.returncode == status
    return shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "--tenant", b"\xff"],
        ["key", "revoke", b"\xff"],
        ["key", "create", "--tenant", b"\xff"],
        ["tenant", "list", "--state", b"/tmp/\xff"],
    ],
    ids=["report", "revoke", "create", "state"],
)
def test_an_argument_that_is_not_utf8_is_a_usage_error(
    arguments: list[str | bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([os.fsdecode(word) for word in arguments]) == 2
    assert "is not UTF-8" in capsys.readouterr().err


def test_an_argument_that_is_not_utf8_ends_the_program_in_one_sentence() -> None:
    assert "is not UTF-8" in assert_one_sentence(program("report", "--tenant", b"\xff"), 2)


def test_an_argument_that_is_not_utf8_is_a_json_document_on_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["report", "--json", "--tenant", "\udcff"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["field"] is None


@pytest.mark.parametrize("zone", [":/dev/zero", "/dev/random", "Nowhere/Here"])
def test_a_report_reads_no_file_that_the_variable_tz_names(
    zone: str, database: Database, state: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    done = program("report", "--json", "--state", str(state), "--html", str(page), TZ=zone)
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["time_zone"] == "UTC"
    assert page.read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("arguments", [["config"], ["tasks", "--json"]])
def test_a_full_disk_is_one_sentence(arguments: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = program(*arguments, stdout=full.fileno())
    assert "No space left" in assert_one_sentence(done, 1)


def test_a_closed_output_ends_without_a_traceback() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m serving.cli tasks >&-"], capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr


def test_a_terminal_that_is_not_utf8_gets_plain_characters(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    assert main(["tenant", "list", "--state", state]) == 0
    done = program("report", "--state", state, PYTHONIOENCODING="ascii")
    assert done.stderr == b""
    assert done.returncode == 0
    assert b"all tenants" in done.stdout
    assert done.stdout.isascii()


def test_a_state_that_is_a_file_names_the_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    file = tmp_path / "state"
    file.write_text("a file", encoding="utf-8")
    assert main(["tenant", "list", "--state", str(file)]) == 2
    shown = capsys.readouterr().err
    assert "at:  state" in shown
    assert str(file) in shown


class Failing:
    HELP = "fails"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def configure(self, parser: object) -> None:
        """Take no arguments."""

    def run(self, args: object) -> int:
        raise self._error


@pytest.mark.parametrize(
    ("error", "status", "shown"),
    [
        (NotADirectoryError(20, "Not a directory", "/a/b"), 1, "'/a/b': Not a directory"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), 2, "not UTF-8"),
    ],
)
def test_any_command_reports_errors_of_the_system_in_a_sentence(
    error: Exception, status: int, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("narrowgate", "", {"fail": Failing(error)}, ["fail"]) == status
    assert shown in capsys.readouterr().err
    assert run_program("narrowgate", "", {"fail": Failing(error)}, ["fail", "--json"]) == status
    assert shown in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.parametrize("command", ["gate", "suite", "verify"])
def test_no_error_has_the_status_of_a_verdict(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for error in (OSError(28, "No space left on device"), BrokenPipeError(), EngineFailure("x")):
        status = run_program("narrowgate", "", {command: Failing(error)}, [command])
        assert status not in {0, 1, 3}, error
    assert "Traceback" not in capsys.readouterr().err


def test_a_defect_is_a_sentence_that_names_the_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_program("narrowgate", "", {"fail": Failing(KeyError("lost"))}, ["fail"]) == 70
    shown = capsys.readouterr().err
    assert "KeyError: 'lost'" in shown
    assert "Traceback" not in shown
    (kept,) = tmp_path.iterdir()
    assert str(kept) in shown
    assert "in run" in kept.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "words",
    [["prompt-lint", "\0"], ["keygen", "--out", "a\0b"], ["verify", "a\0"],
     ["tenant", "list", "--state", "\0"]],
)  # fmt: skip
def test_an_argument_with_a_nul_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert main(words) == 2
    assert "holds the character NUL" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("prompt-lint",), ("router", "train", "--logs"), ("router", "evaluate", "--data"),
        ("evidence", "label", "c1"), ("evidence", "replay", "--task", "topic"),
    ],
)  # fmt: skip
def test_a_file_that_is_nested_too_deeply_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    file = tmp_path / "deep.jsonl"
    file.write_bytes(b"[" * 5000)
    assert main([*words, str(file)]) == 2
    assert "deep.jsonl" in capsys.readouterr().err
