"""Stopping: drained, within 20 s, nothing left behind; last, since it ends the session's stack."""

import contextlib
import json
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import psutil
import pytest

from .conftest import MODEL, STOP_DEADLINE_S, Stack, start, stop_hard, wait_ready

# More than a second of work, and done within the time to drain: a busy processor without AVX-512
# gives 5 tokens a second.
TOKENS = 40

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]


def left_over(processes: list[psutil.Process]) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=1)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def log_files(stack: Stack) -> set[Path]:
    """Return every file of text that a process of the stack has open for writing, or has written.

    Ray's processes write under the session's folder, of which each has a file open.
    """
    opened = {stack.log}
    for process in stack.descendants():
        with contextlib.suppress(psutil.Error):
            opened |= {Path(file.path) for file in process.open_files()}
    folders = {path.parent for path in opened if path.parent.name == "logs"}
    assert folders, "no process has a log of Ray open"
    return {stack.log} | {
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".log", ".out", ".err", ".txt")
    }


def test_no_log_of_any_process_holds_what_clients_sent(stack: Stack) -> None:
    wait_ready(stack)
    marker = f"zq{uuid4().hex}"
    chat = {"model": MODEL, "messages": [{"role": "user", "content": marker}], "max_tokens": 1}
    prompt = {"model": MODEL, "prompt": marker, "max_tokens": 1}
    sent: list[tuple[str, dict[str, Any], dict[str, str]]] = [
        ("/v1/chat/completions", chat, {}),
        ("/v1/chat/completions", {**chat, "model": marker}, {}),
        ("/v1/chat/completions", {**chat, "response_format": marker}, {}),
        ("/v1/chat/completions", {**chat, "user": marker}, {"x-narrowgate-route": marker}),
        ("/v1/completions", prompt, {}),
        ("/v1/completions", {**prompt, "logprobs": marker}, {}),
        ("/v1/completions", {**prompt, "stream_options": marker}, {}),
        ("/v1/completions", {**prompt, "stop": [marker]}, {"authorization": f"Bearer {marker}"}),
        ("/v1/tasks/sentiment", {"input": marker}, {}),
        (f"/v1/tasks/{marker}", {"input": marker}, {}),
        ("/v1/tasks/sentiment", {"input": marker * 5_000}, {}),
    ]
    answers = [
        httpx.post(f"{stack.url}{path}", json=body, headers=headers, timeout=120)
        for path, body, headers in sent
    ]
    assert {answer.status_code for answer in answers} >= {200, 400, 404}
    files = log_files(stack)
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in files}
    # The right files: the gateway's summary lines name the requests.
    written = "".join(texts.values())
    assert sum(answer.headers["x-request-id"] in written for answer in answers) > len(answers) / 2
    assert [str(path) for path, text in texts.items() if marker in text] == []


def test_sigterm_drains_and_leaves_nothing(stack: Stack) -> None:
    # A test before may have killed the replica. Run alone, the stack may still be in the moment
    # between the first ready answer and the end of its start: it drains then, too.
    wait_ready(stack)
    began = threading.Event()
    events: list[str] = []

    def chat() -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Tell me something."}],
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with httpx.stream(
            "POST", f"{stack.url}/v1/chat/completions", json=body, timeout=60
        ) as answer:
            for line in answer.iter_lines():
                events.append(line)
                began.set()

    # Before the chat: looking at every process takes a good part of its seconds.
    processes = stack.descendants()
    assert len(processes) > 5
    request = threading.Thread(target=chat)
    request.start()
    assert began.wait(timeout=60)
    stack.process.send_signal(signal.SIGTERM)
    signalled_at = time.monotonic()
    time.sleep(0.3)
    refused = None
    with contextlib.suppress(httpx.TransportError):
        refused = httpx.post(f"{stack.url}/v1/tasks/sentiment", json={"input": "late"}, timeout=10)
    request.join(timeout=0.5)
    # On a fast machine the chat may be over by now, and with it the stack.
    if request.is_alive():
        assert refused is not None
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "shutting_down"
        assert refused.headers["retry-after"]
    stack.process.wait(timeout=STOP_DEADLINE_S)
    print(f"\nstopped after {time.monotonic() - signalled_at:.1f} s")
    request.join(timeout=5)
    *_, usage, done = [line for line in events if line]
    assert done == "data: [DONE]"
    assert json.loads(usage.removeprefix("data: "))["usage"]["completion_tokens"] == TOKENS
    assert left_over(processes) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{stack.url}/healthz", timeout=2)


def test_ctrl_c_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    starting = start(tmp_path / "serve.log")
    try:
        deadline = time.monotonic() + 120
        while not any("raylet" in p.name() for p in starting.descendants()):
            assert time.monotonic() < deadline, starting.log.read_text()
            time.sleep(0.2)
        # The signal must arrive during Ray's start, after its first process.
        time.sleep(2)
        processes = starting.descendants()
        # As a terminal does it: to every process of the foreground group.
        subprocess.run(["kill", "-INT", "--", f"-{starting.process.pid}"], check=True)
        starting.process.wait(timeout=STOP_DEADLINE_S)
        assert left_over(processes) == []
    finally:
        if starting.process.poll() is None:
            stop_hard(starting)


def test_a_taken_port_is_named_at_once(tmp_path: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            ["make", "--no-print-directory", "serve", f"PORT={port}"],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert done.returncode != 0
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "PORT=8001" in done.stderr
