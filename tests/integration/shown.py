"""Commands and answers that pages show, and how a real answer is compared with them."""

import json
import re
import subprocess
from pathlib import Path

from .conftest import ROOT, Stack

README = ROOT / "README.md"
TASKS = ROOT / "docs" / "tasks.md"


def blocks(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shown(path: Path) -> list[tuple[str, str]]:
    """Return each curl with the answer that stands below it."""
    curls = [block for block in blocks(path, "sh") if block.startswith("curl")]
    return list(zip(curls, blocks(path, "json"), strict=True))


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
