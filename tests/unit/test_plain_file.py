"""Every file that a command reads is a plain file of a bounded size: no read without an end."""

import json
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.artifacts.signing_key import generate_key
from serving.cli import main
from serving.contracts.plain_file import opened_plain, read_plain

_MEMORY_BYTES = 6 * 2**30


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """End a read that has no end, by memory or by time."""

    def end(*_: object) -> None:
        raise TimeoutError("a command waits for a file that has no end")

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, before[1]))
    handler = signal.signal(signal.SIGALRM, end)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


# Recipes and samples are told from others by their names.
ENDINGS = {
    "tasks": "tasks/a.yaml",
    "quantize --recipe": "recipe.yaml", "router train --evidence": "mmlu_routing.jsonl",
    "router evaluate": "mmlu_routing.jsonl",
}  # fmt: skip


# FILE stands for the file that is no plain one, OK for a whole log, STATE for the state folder.
COMMANDS = {
    "config": "config --config FILE",
    "savings --prices": "savings --requests OK --prices FILE --state STATE",
    "savings --requests": "savings --requests FILE --state STATE",
    "router train --logs": "router train --logs FILE --out OUT --state STATE",
    "router train --evidence": "router train --evidence FILE --out OUT --state STATE",
    "router evaluate": "router evaluate --data FILE --state STATE",
    "cache evaluate": "cache evaluate FILE --state STATE",
    "context fit": "context fit FILE --out OUT --state STATE",
    "tiers fit": "tiers fit FILE --out OUT --state STATE",
    "prompt-lint": "prompt-lint FILE --state STATE",
    "k8s lint": "k8s lint FILE",
    "k8s render": f"k8s render --settings FILE --artifact sha256-{'0' * 64}",
    "plan": "plan --rps 1 --frontier-model openai/gpt-4o --prices-file FILE",
    "verify --trust": "verify OK --trust FILE",
    "verify --attestation": "verify FOLDER --attestation FILE --trust KEY",
    "evidence replay": "evidence replay FILE --task topic --state STATE",
    "context evaluate --model": "context evaluate --model FILE --state STATE",
    "gate --key": "gate --baseline FOLDER --candidate FOLDER --suite builtin --key FILE",
    "tasks": "tasks --tasks-dir TASKS",
    "quantize --calibration": "quantize bundled:smollm2-135m-instruct --recipe int8-w8a8 --target "
    "a10g --calibration FILE --out OUT --state STATE",
    "quantize --recipe": "quantize FOLDER --recipe FILE --out OUT --state STATE",
}


@pytest.mark.parametrize("kind", ["device", "pipe"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_refuses_a_file_without_an_end(
    name: str, kind: str, pipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / ENDINGS.get(name, "file")
    file.parent.mkdir(exist_ok=True)
    file.symlink_to("/dev/zero" if kind == "device" else pipe)
    log, folder, key = tmp_path / "log.jsonl", tmp_path / "model", tmp_path / "k.pub"
    log.write_text(json.dumps({"body": {"messages": [{"role": "user", "content": "Hi"}]}}) + "\n")
    folder.mkdir()
    generate_key(tmp_path / "k")
    named = {"FILE": file, "OK": log, "STATE": tmp_path / "state", "OUT": tmp_path / "out",
             "FOLDER": folder, "KEY": key, "TASKS": tmp_path / "tasks"}  # fmt: skip
    words = [str(named.get(word, word)) for word in COMMANDS[name].split()]
    # What cannot be verified is not verified.
    assert main([*words, "--json"]) == (1 if name == "verify --attestation" else 2)
    document = json.loads(capsys.readouterr().out)
    message = document["error"]["message"] if "error" in document else document["reason"]
    assert file.name in message
    assert f"is a {kind}, not a plain file" in message


def test_a_file_of_the_largest_size_is_read_and_one_byte_more_is_not(tmp_path: Path) -> None:
    file = tmp_path / "text"
    file.write_bytes(b"x" * 1000)
    assert read_plain(file, 1000) == b"x" * 1000
    assert read_plain(Path("/proc/self/status")).startswith(b"Name:")
    with pytest.raises(OSError, match="It has more than 999 bytes"):
        read_plain(file, 999)


def test_a_folder_and_a_missing_file_are_refused_as_the_system_does(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        read_plain(tmp_path)
    with pytest.raises(FileNotFoundError), opened_plain(tmp_path / "none"):
        pass


def test_a_large_file_is_named_with_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = tmp_path / "prices.yaml"
    with prices.open("wb") as file:
        # Sparse: it takes no room.
        file.truncate(5 * 2**30)
    words = ["plan", "--rps", "1", "--frontier-model", "openai/gpt-4o", "--prices-file"]
    assert main([*words, str(prices), "--json"]) == 2
    assert "It has more than 4 MiB" in json.loads(capsys.readouterr().out)["error"]["message"]
