"""The table of goals: each line of it, and how a figure is judged."""

import argparse
import json
import os
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.gateway import BY_NAME, Goal, document_of, targets_of
from benchmarks.goals import (
    _absent_gateway,
    _absent_local,
    _in_a_process,
    document,
    lines,
    local_goals,
    verdict,
)
from benchmarks.load import LoadResult
from benchmarks.stack_report import Cell, Rounds

LINES = 17 + 17 + 12
"""4 kinds of requests with 4 goals each and the memory, on 2 databases; 2 tasks, 3 numbers of
clients, 2 goals each."""


def test_a_local_task_is_judged_beside_bare_vllm_within_a_round() -> None:
    alone = Rounds(Cell("topic", 1, 2))
    for more in (0.004, 0.006, 0.007):
        alone.stack.append(LoadResult((0.080 + more, 0.080 + more), 0.2))
        alone.bare_s.append([0.080, 0.080])
    added, tail = local_goals(alone)
    assert added.figure == pytest.approx(6.0)
    assert not added.is_met
    assert added.as_json()["low"] == pytest.approx(4.0)
    assert tail.figure == pytest.approx(1.0)
    many = Rounds(Cell("topic", 16, 10))
    for stack_s, bare_s in ((1.0, 0.96), (2.0, 1.96), (1.0, 0.90)):
        many.stack.append(LoadResult((0.1,) * 8 + (0.5, 0.5), stack_s))
        many.bare_s.append([bare_s])
    ratio, tail = local_goals(many)
    assert ratio.figure == pytest.approx(0.96)
    assert ratio.is_met
    assert verdict(ratio.as_json()) == "met, within the interval"
    assert tail.figure == pytest.approx(5.0)
    assert not tail.is_met


@pytest.mark.parametrize(
    ("goal", "words"),
    [
        (Goal("g", 3.0, 4.0, "ms", True, (2.9, 3.0, 3.1)), "met"),
        (Goal("g", 3.9, 4.0, "ms", True, (3.0, 3.9, 4.8)), "met, within the interval"),
        (Goal("g", 5.0, 4.0, "ms", True, (4.9, 5.0, 5.1)), "MISSED"),
        (Goal("g", 500.0, 600.0, "requests/s", False, (450.0, 500.0, 700.0)),
         "MISSED, within the interval"),
        (Goal("g", 500.0, 400.0, "MB"), "MISSED"),
        # One round has no interval.
        (Goal("g", 5.0, 4.0, "ms", True, (5.0,)), "MISSED"),
    ],
)  # fmt: skip
def test_a_verdict_says_where_the_interval_leaves_it_open(goal: Goal, words: str) -> None:
    assert verdict(goal.as_json()) == words


def measured_part(seconds: float) -> dict[str, Any]:
    targets = targets_of("http://stack", "http://provider")
    for target in targets:
        for clients in (1, 16):
            target.rounds[clients] = [LoadResult((seconds,) * 100, 100 / 500)] * 3
            target.cpu_s[clients] = [0.002] * 3
    args = argparse.Namespace(clients=(1, 16), rounds=3)
    return document_of(targets, args, 350.0, None)


def test_a_missed_rate_is_explained_by_the_processor_time_of_a_request() -> None:
    parts = {"SQLite": measured_part(0.002), "PostgreSQL": None, "local": _absent_local()}
    found = document(parts, argparse.Namespace(quick=False, rounds=3), 0.5)
    assert len(found["goals"]) == LINES
    (by_name,) = (
        one for one in found["goals"]
        if one["what"] == f"{BY_NAME}, at 16 clients" and one["ledger"] == "SQLite"
    )  # fmt: skip
    assert by_name["reason"].endswith("takes 2.00 ms of the gateway process's time, so at most "
                                      "500/s on one core")  # fmt: skip
    assert found["not_measured"] == 17 + 12
    printed = list(lines(found))
    assert sum(line.startswith("|") for line in printed) == LINES + 2
    assert any("not measured" in line for line in printed)


def test_a_part_that_was_not_measured_has_the_lines_of_one_that_was() -> None:
    names = [one["what"] for one in measured_part(0.002)["goals"]]
    assert sorted(names) == sorted(one["what"] for one in _absent_gateway())


def process_of(args: argparse.Namespace) -> tuple[int, int]:
    return os.getpid(), args.rounds


def test_each_part_has_a_process_of_its_own() -> None:
    args = argparse.Namespace(rounds=3)
    found = [_in_a_process(process_of, args) for _ in range(2)]
    assert [rounds for _, rounds in found] == [3, 3]
    assert len({os.getpid(), *(process for process, _ in found)}) == 3


@pytest.mark.parametrize("rounds", ["0", "51", "-1", "1.5", "x"])
def test_wrong_rounds_are_refused_before_anything_starts(
    rounds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["goals", "--quick", "--rounds", rounds, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert "rounds" in json.dumps(found)


@pytest.mark.slow
def test_the_quick_table_is_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["goals", "--quick", "--rounds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["goals"]) == LINES
    assert found["met"] + found["missed"] + found["not_measured"] == LINES
    measured = [one for one in found["goals"] if one["met"] is not None]
    assert len(measured) in (17, 34)
    assert all(one["figure"] > 0 for one in measured if "added" not in one["what"])
