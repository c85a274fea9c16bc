"""What README.md and docs/tasks.md show is run, against stacks that `make serve` started."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, Stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

README = ROOT / "README.md"
TASKS = ROOT / "docs" / "tasks.md"


def blocks(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shown(path: Path) -> list[tuple[str, str]]:
    """Return each curl with the answer that stands below it."""
    curls = [block for block in blocks(path, "sh") if block.startswith("curl")]
    return list(zip(curls, blocks(path, "json"), strict=True))


def test_there_is_a_curl_and_an_answer_for_each_task() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) < 200
    asked = [curl for path in (README, TASKS) for curl, _ in shown(path)]
    for task in ("sentiment", "topic", "ner", "translation"):
        assert any(f"/v1/tasks/{task}" in curl for curl in asked)


def kinds(value: object) -> object:
    """Return a document's shape: keys and types, a list by its first item."""
    if isinstance(value, dict):
        return {key: kinds(item) for key, item in value.items()}
    if isinstance(value, list):
        return [kinds(item) for item in value[:1]]
    return "number" if isinstance(value, int | float) else type(value).__name__


def check(curl: str, answer: str, stack: Stack) -> None:
    command = curl.replace("http://127.0.0.1:8000", stack.url)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    found, expected = json.loads(done.stdout), json.loads(answer)
    assert kinds(found) == kinds(expected)
    if "error" in expected:
        assert found["error"]["code"] == expected["error"]["code"]
    elif found["confidence"] > 0.6:
        assert found["value"] == expected["value"]


@pytest.mark.parametrize(("curl", "answer"), shown(README))
def test_a_curl_of_the_readme_gets_what_is_shown(
    attested_stack: Stack, curl: str, answer: str
) -> None:
    check(curl, answer, attested_stack)


@pytest.mark.parametrize(("curl", "answer"), shown(TASKS))
def test_a_curl_of_the_tasks_page_gets_what_is_shown(stack: Stack, curl: str, answer: str) -> None:
    check(curl, answer, stack)


def test_the_python_example_runs(attested_stack: Stack) -> None:
    (code,) = blocks(README, "python")
    code = code.replace("http://127.0.0.1:8000", attested_stack.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
