"""The batch benchmark: its file, its ratios, its report."""

from typing import Any

from benchmarks.batch import lines, ratio, rows_of
from benchmarks.batch_load import Interactive, chat_lines
from benchmarks.gateway_processes import MODEL
from serving.batch.check import FileCheck
from serving.contracts.task_spec import TaskSpec

from .batch_kit import ACME, CHAT, line_rules


def test_every_line_of_the_file_is_good_and_has_the_size(specs: dict[str, TaskSpec]) -> None:
    check = FileCheck(line_rules(specs), CHAT, ACME)
    found = list(check.good_lines(chat_lines(50, 2000)))
    assert check.result().problems == ()
    assert {line.target for line in found} == {MODEL}
    assert all(1900 < line.length <= 2000 for line in found)


def test_a_ratio_has_an_interval_over_rounds() -> None:
    alone = [[1.0] * 50, [1.0] * 50, [2.0] * 50]
    some = [[2.0] * 50, [2.0] * 50, [4.0] * 50]
    middle, low, high = ratio(some, alone, 0.5)
    assert (middle, low, high) == (2.0, 2.0, 2.0)
    slower = [[2.0] * 50, [1.0] * 50, [2.0] * 50]
    middle, low, high = ratio(slower, alone, 0.5)
    assert low < high
    assert low <= middle <= high


def test_a_ratio_is_named_met_or_missed() -> None:
    found = Interactive(20.0, {
        "alone": [[0.010] * 20] * 3, "lines": [[0.011] * 20] * 3, "checking": [[0.05] * 20] * 3,
    }, {"lines": 35.0})  # fmt: skip
    about = {"cpu": "a processor", "cores": 2, "memory_gib": 24}
    phases = [{"name": "upload", "seconds": 1.0, "most_mib": 650.0}]
    memory = {"lines": 5, "file_mb": 1.0, "before_mib": 500.0, "phases": phases}
    document: dict[str, Any] = {
        "machine": about, "provider_ms": 50.0, "interactive": rows_of(found),
        "lines_per_s_alone": 300.0, "memory": memory,
    }  # fmt: skip
    shown = [*lines(document)]
    assert "1.10x" in shown[2]
    assert "met" in shown[2]
    assert "35.0 lines/s" in shown[2]
    assert "MISSED" in shown[3]
    assert shown[-1].startswith("  added in all: 150 MiB")
    assert shown[-1].endswith("MISSED")
