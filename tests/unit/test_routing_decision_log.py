"""The log of escalated requests: whole rows, bounded, never in the way."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from serving.contracts.errors import InvalidRequest
from serving.contracts.routing_settings import RoutingSettings
from serving.routing.corpus import shipped_corpus
from serving.routing.decision_log import FileLog, NoLog, build_decision_log


class Counted:
    def __init__(self) -> None:
        self.dropped = 0

    def decision_dropped(self) -> None:
        self.dropped += 1


def row(text: str = "Translate this.") -> dict[str, Any]:
    return {
        "reason": "below_threshold",
        "body": {"messages": [{"role": "user", "content": text}]},
        "task": "translation",
        "complexity": 0.25,
    }


def test_rows_are_appended_and_the_routers_decision_is_not_a_label(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "decisions.jsonl"
    for _ in range(2):
        log = FileLog(path, Counted())
        log.record(row("\ud800 ü"))
        log.close()
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 2
    assert lines[0]["detected"] == "translation"
    assert lines[0]["scored"] == 0.25
    assert not {"task", "complexity"} & set(lines[0])
    assert path.stat().st_mode & 0o077 == 0


def test_rows_that_cannot_be_kept_are_counted(tmp_path: Path) -> None:
    counted = Counted()
    log = FileLog(tmp_path / "decisions.jsonl", counted)
    log.record(row("x" * 300_000))
    log.record({"body": object()})
    log.close()
    assert counted.dropped == 2
    blocked = FileLog(tmp_path / "decisions.jsonl" / "under-a-file", counted)
    (tmp_path / "decisions.jsonl").touch()
    blocked.record(row())
    blocked.close()
    assert counted.dropped == 3


def test_a_full_queue_drops_and_never_waits(tmp_path: Path) -> None:
    # A FIFO without a reader holds the writing thread, as a slow disk does.
    fifo, counted = tmp_path / "decisions.jsonl", Counted()
    os.mkfifo(fifo)
    log = FileLog(fifo, counted, max_queued=3)
    for _ in range(20):
        log.record(row())
    assert counted.dropped >= 16
    with fifo.open("rb") as reader:
        closing = threading.Thread(target=log.close)
        closing.start()
        written = reader.readlines()
        # Each row opens the file anew: read until the last one is written.
        while closing.is_alive():
            written += reader.readlines()
        closing.join()
        written += reader.readlines()
    assert len(written) == 20 - counted.dropped


def test_without_a_file_no_decision_is_kept() -> None:
    log = build_decision_log(RoutingSettings(), Counted())
    assert isinstance(log, NoLog)
    log.record(row())


def test_a_labelled_log_joins_the_training_texts(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    labelled = [
        {**row(), "task": "urgency", "complexity": None},
        {"text": "How do I fold a map?", "task": None, "complexity": 0.1},
        {"detected": "topic", "body": row()["body"]},
    ]
    path.write_text("\n".join(map(json.dumps, labelled)), encoding="utf-8")
    before, after = shipped_corpus(), shipped_corpus([path])
    added = after.prompts[len(before.prompts) :]
    assert [(one.task, one.complexity) for one in added] == [("urgency", None), (None, 0.1)]
    assert not any(one.held_out for one in added)
    assert before.digest != after.digest


def test_a_log_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    packed = tmp_path / "log.jsonl.gz"
    packed.write_bytes(b"\x1f\x8b\x08\x00")
    with pytest.raises(InvalidRequest, match=r"jsonl\.gz is not .*: it is not UTF-8 at byte 2"):
        shipped_corpus([packed])
    with pytest.raises(InvalidRequest, match=r"absent' cannot be read: No such file"):
        shipped_corpus([tmp_path / "absent"])


@pytest.mark.parametrize(
    "line",
    [
        "no json",
        "[]",
        "{}",
        '{"text": "x", "task": 3}',
        '{"text": "x", "complexity": 7}',
        '{"body": {}}',
        '{"body": {"messages": [3]}}',
        '{"body": {"messages": "no list"}}',
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(InvalidRequest, match=r"log\.jsonl:1"):
        shipped_corpus([path])
