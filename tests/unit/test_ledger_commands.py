"""The ledger's subcommands: how numbers are written, and what `config` refuses as `serve` does."""

import json
import resource
import signal
from pathlib import Path

import pytest

from serving.cli import main
from serving.commands.json_lines import read_lines
from serving.context.pairs import read_pairs
from serving.contracts.errors import InvalidArgument

NUMBERS = ["1_000", "\u0661\u0662", "+5", "-5", "1e3", "0x10", " 5", "", "5,0", "nan", "Infinity"]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("flag", ["--day-usd", "--month-usd", "--requests-per-minute"])
def test_a_limit_in_another_notation_is_a_usage_error(
    state: Path, capsys: pytest.CaptureFixture[str], flag: str, number: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["tenant", "create", "acme", "--state", str(state), f"{flag}={number}"])
    assert caught.value.code == 2
    assert repr(number) in capsys.readouterr().err


@pytest.mark.parametrize("port", ["8_000", "\u0661", "+80"])
def test_a_port_in_another_notation_is_a_usage_error(port: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["config", f"--port={port}"])
    assert caught.value.code == 2


def test_plain_limits_are_taken_as_written(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--day-usd", "12.50", "--requests-per-minute", "60"]
    assert main(["tenant", "create", "acme", "--state", str(state), *limits, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["day_usd"], made["requests_per_minute"]) == ("12.50", 60)
    assert main(["tenant", "set", "acme", "--state", str(state), "--day-usd", "none"]) == 0


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("cache: {encryption_key_file: /nowhere}", "cache.encryption_key_file"),
        ("cache: {encryption_key_file: FOLDER/open}", "cache.encryption_key_file"),
        ("cache: {encryption_key_file: FOLDER/empty}", "cache.encryption_key_file"),
        ("evidence: {vector_key_file: /nowhere}", "evidence.vector_key_file"),
        ("evidence: {signing_key: FOLDER/empty}", "evidence.signing_key"),
        ("context: {model: /nowhere}", "context.model"),
        ("state: FOLDER/empty", "state"),
        ("tasks_dir: /nowhere", "tasks_dir"),
        ("routing: {model: /nowhere}", "routing.model"),
    ],
)
def test_config_refuses_a_file_that_serve_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, field: str
) -> None:
    for name, mode in (("open", 0o644), ("empty", 0o600)):
        (tmp_path / name).touch(mode)
    (tmp_path / "open").write_text("A" * 43 + "=", encoding="utf-8")
    file = tmp_path / "settings.yaml"
    file.write_text(text.replace("FOLDER", str(tmp_path)), encoding="utf-8")
    assert main(["config", "--config", str(file), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["field"] == field


@pytest.mark.parametrize(
    ("ledger", "field"),
    [
        ("url: 'mysql://user:hunter2@host/d'", "ledger.url"),
        ("url: 'postgresql://user:hunter2@host:port/d'", "ledger.url"),
        ("url: 'hunter2'", "ledger.url"),
        ("prices_file: /nowhere/prices.yaml", "ledger.prices_file"),
        ("reference_model: nobody/knows", "ledger.reference_model"),
    ],
)
def test_config_refuses_a_ledger_that_serve_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ledger: str, field: str
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"ledger: {{{ledger}}}", encoding="utf-8")
    assert main(["config", "--config", str(file), "--json"]) == 2
    shown = capsys.readouterr().out
    assert json.loads(shown)["error"]["field"] == field
    assert "hunter2" not in shown


def test_a_full_disk_is_not_blamed_on_the_database(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tenant", "create", "acme", "--state", str(state)]) == 0
    path = state / "ledger" / "ledger.db"
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        status = main(["tenant", "create", "other", "--state", str(state)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert status != 0
    shown = capsys.readouterr().err
    assert str(path) in shown
    assert "disk" in shown
    assert "ledger.url" not in shown


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff{}", "byte 0 is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"{\n", "at character"),
        (None, "is a directory"),
    ],
)
def test_a_file_that_cannot_be_read_is_explained(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "lines.jsonl"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    for read in (lambda: read_lines(file, ("text",)), lambda: read_pairs(file)):
        with pytest.raises(InvalidArgument, match=reason) as caught:
            read()
        assert "Error" not in caught.value.message
        assert str(file) in caught.value.message
