"""What can be refused is refused before work begins: no model is written, loaded or fitted."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from serving.artifacts import checkpoint
from serving.cli import main
from serving.embedding import embedder

BUNDLED = "quantize bundled:smollm2-135m-instruct --state STATE --device cpu"

GATE = "gate --baseline MODEL --suite builtin --key NONE"


class WorkBegan(BaseException):
    """No command catches it."""


@pytest.fixture(autouse=True)
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a command begins to work: it writes the bundled model, or starts an encoder."""

    def began(*_: Any, **__: Any) -> None:
        raise WorkBegan

    monkeypatch.setattr(checkpoint, "_dequantize", began)
    monkeypatch.setattr(embedder, "build_embedder", began)


# The field of the error, and what its message says. NONE is a file that is missing, FOLDER a
# folder, LOG a log of requests, TEXT a file that is no JSON, PAIRS pairs for the context.
CASES = {
    f"{BUNDLED} --recipe nope --out OUT": ("recipe", "no recipe 'nope'"),
    f"{BUNDLED} --recipe NONE.yaml --out OUT": ("recipe", "cannot be read"),
    f"{BUNDLED} --recipe bnb-int8 --samples 5 --out OUT": ("samples", "needs no calibration"),
    f"{BUNDLED} --recipe int8-w8a8 --target v9 --out OUT": ("target", "v9"),
    f"{BUNDLED} --recipe int8-w8a8 --calibration NONE --out OUT": ("calibration", "cannot be read"),
    f"{BUNDLED} --recipe int8-w8a8 --held-out NONE --out OUT": ("held_out", "NONE"),
    f"{BUNDLED} --recipe bnb-int8 --python NONE --out OUT": ("python", "not an executable"),
    f"{BUNDLED} --recipe bnb-int8 --out LOG/a": ("out", "is not a folder"),
    f"{BUNDLED} --compare FOLDER": ("compare", "no config.json"),
    f"{BUNDLED} --compare MODEL --text TEXT": ("text", "cannot be read"),
    f"{BUNDLED} --compare MODEL --inputs NONE": ("calibration", "cannot be read"),
    f"{GATE} --candidate FOLDER --attest-baseline FOLDER": ("attest_baseline", "name one folder"),
    "savings --requests LOG --html NONE/a.html --state STATE": ("--html", "cannot be written"),
    "savings --requests LOG --html FOLDER --state STATE": ("--html", "Is a directory"),
    "report --html NONE/a.html --state STATE": ("--html", "cannot be written"),
    "report --html PIPE --state STATE": ("--html", "It is a pipe"),
    "savings --requests LOG --html PIPE --state STATE": ("--html", "It is a pipe"),
    "evidence show c1 --html PIPE --state STATE": ("--html", "It is a pipe"),
    "evidence export c1 --out PIPE --state STATE": ("--out", "It is a pipe"),
    "evidence export-head c1 --out PIPE --state STATE": ("--out", "It is a pipe"),
    "context fit --out NONE/a.json --encoder sentences --state STATE": ("--out", "cannot be wr"),
    "context fit NONE --encoder sentences --state STATE": ("FILE", "cannot be read"),
    "tiers fit LOG --out NONE/a.json --state STATE": ("--out", "cannot be written"),
    "tiers fit LOG --out FOLDER --state STATE": ("--out", "Is a directory"),
    "context fit --out PIPE --encoder sentences --state STATE": ("--out", "It is a pipe"),
    "tiers fit LOG --out PIPE --state STATE": ("--out", "It is a pipe"),
    "batch fetch batch_1 --out PIPE --url http://127.0.0.1:9": ("--out", "It is a pipe"),
    "batch fetch batch_1 --errors PIPE --url http://127.0.0.1:9": ("--errors", "It is a pipe"),
    "router train --out LOG/a --state STATE": ("out", "is not a folder"),
    "router train --logs NONE --out OUT --state STATE": ("--logs", "cannot be read"),
    "router train --tasks-dir NONE --out OUT --state STATE": ("tasks_dir", "NONE"),
    "router train --evidence NONE --out OUT --state STATE": ("--data", "no samples"),
    "router evaluate --data NONE --state STATE": ("--data", "no samples"),
    "cache evaluate NONE --state STATE": ("FILE", "cannot be read"),
    "cache evaluate TEXT --pairs --state STATE": ("FILE", "JSON"),
}  # fmt: skip


@pytest.mark.parametrize("command", CASES)
def test_a_command_refuses_before_it_works(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, model = tmp_path / "folder", tmp_path / "model"
    folder.mkdir()
    model.mkdir()
    (model / "config.json").write_text("{}")
    log, text = tmp_path / "log.jsonl", tmp_path / "text"
    row = {"body": {"model": "openai/gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}}
    log.write_text(json.dumps(row) + "\n")
    text.write_text("no JSON\n")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    named = {
        "PIPE": pipe,
        "STATE": tmp_path / "state", "OUT": tmp_path / "out", "NONE": tmp_path / "NONE",
        "FOLDER": folder, "MODEL": model, "LOG": log, "TEXT": text,
    }  # fmt: skip
    words = []
    for word in command.split():
        begin = next((name for name in named if word.startswith(name)), None)
        words.append(word if begin is None else str(named[begin]) + word.removeprefix(begin))
    field, message = CASES[command]
    assert main([*words, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["field"], message in error["message"]) == (field, True), error
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "state" / "models").exists()
    assert pipe.is_fifo()


def test_an_output_that_may_be_replaced_is_not_refused(tmp_path: Path) -> None:
    from serving.host.safe_write import refuse_unwritable_file

    file = tmp_path / "page.html"
    refuse_unwritable_file(file, "--html")
    assert list(tmp_path.iterdir()) == []
    file.write_text("old")
    refuse_unwritable_file(file, "--html")
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_private_file_is_a_plain_one_and_a_pipe_or_device_stays_as_it_is(tmp_path: Path) -> None:
    from serving.commands.json_lines import private_file
    from serving.contracts.errors import InvalidArgument

    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe, 0o644)
    link.symlink_to(pipe)
    before = pipe.stat().st_mode
    for path in (pipe, link):
        with pytest.raises(InvalidArgument, match="cannot be written"), private_file(path):
            pass
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(InvalidArgument, match="It is a pipe"), private_file(path):
            pass
        os.close(reader)
        assert pipe.stat().st_mode == before
    file.write_text("an old and longer text")
    file.chmod(0o644)
    with private_file(file) as opened:
        opened.write("new")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("new", 0o600)


def test_a_link_is_written_through_and_not_replaced(tmp_path: Path) -> None:
    from serving.host.safe_write import replace_file, replaceable_file

    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("old")
    link.symlink_to(file)
    replace_file(replaceable_file(link, "--out"), b"new")
    assert link.is_symlink()
    assert file.read_text() == "new"
