"""Commands and answers that pages show: compared with a running stack's, or captured from it.

python -m tests.integration.shown PAGE URL writes a stack's answers into a page.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from .conftest import ROOT

README = ROOT / "README.md"
TASKS = ROOT / "docs" / "tasks.md"

_WIDTH = 110
_EXAMPLE = re.compile(
    r"^```sh\n(?P<curl>curl (?:(?!^```).)*)```\n\n```json\n(?P<answer>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


def blocks(path: Path, language: str) -> list[str]:
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def shown(path: Path) -> list[tuple[str, str]]:
    """Return each curl with the answer that stands below it."""
    text = path.read_text(encoding="utf-8")
    return [(found["curl"], found["answer"]) for found in _EXAMPLE.finditer(text)]


def run(curl: str, url: str) -> Any:
    """Return a stack's answer to a command of a page."""
    command = curl.replace("http://127.0.0.1:8000", url)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def kinds(value: object) -> object:
    """Return a document's shape: keys and types, a list by its first item."""
    if isinstance(value, dict):
        return {key: kinds(item) for key, item in value.items()}
    if isinstance(value, list):
        return [kinds(item) for item in value[:1]]
    return "number" if isinstance(value, int | float) else type(value).__name__


def check(curl: str, answer: str, url: str) -> None:
    """Assert that a stack answers as a page shows, as far as that depends on no machine."""
    found, expected = run(curl, url), json.loads(answer)
    assert kinds(found) == kinds(expected)
    if "error" in expected:
        assert found["error"]["code"] == expected["error"]["code"]
        return
    assert _input_tokens(found) == _input_tokens(expected)
    if found["confidence"] > 0.6:
        assert found["value"] == expected["value"]


def captured(page: str, url: str) -> str:
    """Return a page with the answers that a stack gives now."""

    def replaced(example: re.Match[str]) -> str:
        whole, answer = example.group(0), example["answer"]
        start = example.start("answer") - example.start()
        new = laid_out(run(example["curl"], url))
        return f"{whole[:start]}{new}\n{whole[start + len(answer) :]}"

    return _EXAMPLE.sub(replaced, page)


def laid_out(document: dict[str, Any]) -> str:
    """Return an answer as JSON in lines of a page's width, numbers with three decimals."""
    text = json.dumps(_rounded(document), ensure_ascii=False)
    lines = [""]
    # Strings are taken whole, so that no line ends within one.
    for piece in re.findall(r'(?:"(?:[^"\\]|\\.)*"|[^",])+(?:, |$)', text):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > _WIDTH:
            lines.append(" ")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value


def _input_tokens(answer: dict[str, Any]) -> int:
    # How many of them were in the cache depends on what was answered before.
    return sum(count for name, count in answer["usage"].items() if "output" not in name)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(captured(target.read_text(encoding="utf-8"), sys.argv[2]), encoding="utf-8")
