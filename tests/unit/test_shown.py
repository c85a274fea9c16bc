"""Answers that pages show are a stack's own, and the capturing script writes what it receives."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ..integration.shown import README, TASKS, captured, laid_out, shown

ANSWER = {
    "task": "topic",
    "value": 'A "Wörld", they say',
    "label_probabilities": {f"label {number}": 0.125 for number in range(8)},
    "notes": [],
    "cost_usd": "0.000002",
}
PAGE = """Before.

```sh
curl -s http://127.0.0.1:8000/v1/tasks/topic \\
  -d '{"input": "x"}'
```

```json
{"task": "topic", "value": "old"}
```

```sh
make serve
```
"""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it
        """Write nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_page_gets_the_stacks_answer_and_nothing_else_changes(url: str) -> None:
    page = captured(PAGE, url)
    answer = page.partition("```json\n")[2].partition("\n```")[0]
    assert json.loads(answer) == ANSWER
    assert max(map(len, answer.splitlines())) <= 110
    assert page.replace(answer, '{"task": "topic", "value": "old"}') == PAGE
    assert captured(page, url) == page


def test_an_answer_is_laid_out_in_lines_that_are_its_json() -> None:
    lines = laid_out(ANSWER)
    assert json.loads(lines) == ANSWER
    assert json.loads(laid_out({"a": [0.12345], "b": 7})) == {"a": [0.123], "b": 7}
    assert len(lines.splitlines()) == 3


@pytest.mark.parametrize("field", ["cost_usd", "request_id"])
def test_no_shown_answer_is_a_copy_of_another(field: str) -> None:
    answers = [json.loads(answer) for page in (README, TASKS) for _, answer in shown(page)]
    found = [answer[field] for answer in answers if field in answer]
    assert len(found) >= 4
    assert len(set(found)) == len(found)


def test_every_curl_of_a_page_has_an_answer() -> None:
    for page in (README, TASKS):
        text = Path(page).read_text(encoding="utf-8")
        assert len(shown(page)) == text.count("```sh\ncurl ") > 1
