"""The linter of recorded prompts: what changes in the static part is found and shown."""

import json
from pathlib import Path

import pytest

from serving.cli import main

RULES = "You answer questions about the returns policy of the shop, in short sentences. " * 4


def record(folder: Path, heads: list[str]) -> Path:
    file = folder / "prompts.jsonl"
    rows = [
        {"messages": [
            {"role": "system", "content": f"{head}{RULES}---CACHE_BREAK---"},
            {"role": "user", "content": f"Question {number}?"},
        ]}
        for number, head in enumerate(heads)
    ]  # fmt: skip
    lines = [json.dumps(rows[0]), *(json.dumps({"body": row, "reason": "x"}) for row in rows[1:])]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_a_clock_in_the_prefix_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = record(tmp_path, [f"It is 2026-11-23T10:0{n}:00. " for n in range(4)])
    assert main(["prompt-lint", str(file), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["marked_requests"] == 4
    (found,) = document["unstable"]
    assert (found["breakpoint"], found["kind"]) == (1, "timestamp")
    assert found["after"].startswith("2026-11-23T10:0")
    assert main(["prompt-lint", str(file)]) == 1
    assert "'2026-11-23T10:0" in capsys.readouterr().out


def test_a_stable_prefix_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prompt-lint", str(record(tmp_path, ["Hello. "] * 5))]) == 0
    assert "5 requests have a marker" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["{", "[]", '"x"', "{}", '{"messages": 5}', '{"messages": [1]}'])
def test_bodies_that_are_not_requests_are_refused_by_name(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text(line + "\n", encoding="utf-8")
    assert main(["prompt-lint", str(file)]) != 0
    assert "line 1" in capsys.readouterr().err
