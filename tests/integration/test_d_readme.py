"""What the README shows is run, against the stack that `make serve` started."""

import json
import re
import subprocess
import sys

import pytest

from .conftest import ROOT, Stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


CURLS = [block for block in blocks("sh") if block.startswith("curl")]
ANSWERS = blocks("json")


def test_there_is_a_curl_and_an_answer_for_each_task() -> None:
    assert len(README.splitlines()) < 200
    assert len(CURLS) == len(ANSWERS)
    for task in ("sentiment", "topic", "ner", "translation"):
        assert sum(f"/v1/tasks/{task}" in curl for curl in CURLS) == 1


def kinds(value: object) -> object:
    """Return a document's shape: keys and types, a list by its first item."""
    if isinstance(value, dict):
        return {key: kinds(item) for key, item in value.items()}
    if isinstance(value, list):
        return [kinds(item) for item in value[:1]]
    return "number" if isinstance(value, int | float) else type(value).__name__


@pytest.mark.parametrize(("curl", "shown"), list(zip(CURLS, ANSWERS, strict=True)))
def test_a_curl_gets_the_answer_that_is_shown(stack: Stack, curl: str, shown: str) -> None:
    command = curl.replace("http://127.0.0.1:8000", stack.url)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    answer, expected = json.loads(done.stdout), json.loads(shown)
    assert kinds(answer) == kinds(expected)
    if answer.get("confidence", 0.0) > 0.6:
        assert answer["value"] == expected["value"]


def test_the_python_example_runs(stack: Stack) -> None:
    (code,) = blocks("python")
    code = code.replace("http://127.0.0.1:8000", stack.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip()
