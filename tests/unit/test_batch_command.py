"""`narrowgate batch` against a server with files and batches, over HTTP."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from serving.cli import run_program
from serving.commands import batch

from ..provider.script import BatchPlan, Fault
from ..provider.server import ProviderServer
from .frontier_kit import KEY


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWGATE_KEY", KEY)
    monkeypatch.setattr(batch, "_POLL_S", 0.01)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "lines.jsonl", *(line(n) for n in range(4)))


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def line(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What is {number}?"}]
    body = {"model": "gpt-4.1", "messages": messages, "max_tokens": 64}
    return {
        "custom_id": f"k{number}", "method": "POST", "url": "/v1/chat/completions", "body": body,
    }  # fmt: skip


def narrowgate(*words: object, url: str) -> int:
    argv = ["batch", *map(str, words), "--url", url]
    return run_program("narrowgate", "", {"batch": batch}, argv)


def told(
    capsys: pytest.CaptureFixture[str], provider: ProviderServer, *words: object
) -> tuple[int, Any]:
    """Run with --json; return the status and the document."""
    status = narrowgate(*words, "--json", url=provider.url)
    return status, json.loads(capsys.readouterr().out)


def test_a_file_is_submitted_followed_and_fetched(
    provider: ProviderServer, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, made = told(
        capsys, provider, "submit", file, "--deadline", "6h", "--max-cost-usd", "1.50",
        "--skip-bad", "--metadata", "run=nightly",
    )  # fmt: skip
    assert status == 0
    assert made["metadata"] == {
        "deadline": "6h", "max_cost_usd": "1.50", "on_error": "skip", "run": "nightly",
    }  # fmt: skip
    assert made["status"] == "in_progress"
    status, shown = told(capsys, provider, "show", made["id"])
    assert (status, shown["id"]) == (0, made["id"])
    status, ended = told(capsys, provider, "watch", made["id"])
    assert (status, ended["status"]) == (0, "completed")
    out = tmp_path / "out.jsonl"
    status, fetched = told(capsys, provider, "fetch", made["id"], "--out", out)
    assert (status, fetched["completed"], fetched["failed"]) == (0, 4, 0)
    assert fetched["output_bytes"] == out.stat().st_size
    ids = [json.loads(row)["custom_id"] for row in out.read_text().splitlines()]
    assert sorted(ids) == ["k0", "k1", "k2", "k3"]
    assert list(tmp_path.glob(".*.part")) == []
    assert narrowgate("fetch", made["id"], url=provider.url) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 4
    assert "4 answers" in captured.err
    status, page = told(capsys, provider, "list", "--limit", 1)
    assert [found["id"] for found in page["data"]] == [made["id"]]
    assert narrowgate("list", url=f"{provider.url}/v1/") == 0, "an address with /v1 is taken, too"
    assert "4/4 lines" in capsys.readouterr().out


def test_failed_lines_are_a_failure(
    provider: ProviderServer, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.script.line_fault = lambda seen: (
        Fault("status", 400, "", "no") if seen.custom_id == "k1" else None
    )
    status, ended = told(capsys, provider, "submit", file, "--watch")
    assert (status, ended["status"]) == (1, "completed")
    errors = tmp_path / "errors.jsonl"
    assert narrowgate("fetch", ended["id"], "--errors", errors, url=provider.url) == 1
    captured = capsys.readouterr()
    assert "3 answers; 1 lines without one" in captured.err
    assert json.loads(errors.read_text())["custom_id"] == "k1"


def test_a_refused_file_is_shown_and_deleted(
    provider: ProviderServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path / "bad.jsonl", line(1), line(1))
    assert narrowgate("submit", file, url=provider.url) == 1
    captured = capsys.readouterr()
    assert "failed" in captured.out
    assert "line 2: The custom_id was used before. (custom_id)" in captured.out
    assert [name for name, _ in provider.script.batch_requests].count("file") == 1


def test_waiting_ends_at_its_time_and_outlasts_an_outage(
    provider: ProviderServer, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    provider.script.next_batch(BatchPlan(polls=10**6))
    status, made = told(capsys, provider, "submit", file)
    assert status == 0
    status, found = told(capsys, provider, "watch", made["id"], "--timeout", "1s")
    assert (status, found["status"]) == (3, "in_progress")
    assert narrowgate("fetch", made["id"], url=provider.url) == 3
    assert "in_progress" in capsys.readouterr().err
    status, found = told(capsys, provider, "cancel", made["id"])
    assert (status, found["status"]) == (0, "cancelling")
    provider.script.on_batch("state", None, Fault("hang_up"), Fault("status", 503))
    status, found = told(capsys, provider, "watch", made["id"])
    assert (status, found["status"]) == (1, "cancelled")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["submit", "FILE", "--deadline", "soon"], "--deadline is 'soon'"),
        (["submit", "FILE", "--deadline", "0h"], "--deadline is '0h'"),
        (["submit", "FILE", "--max-cost-usd", "-1"], "--max-cost-usd is '-1'"),
        (["submit", "FILE", "--metadata", "run"], "--metadata is 'run'"),
        (["list", "--limit", "101"], "--limit"),
        (["show", "batch_unknown"], "No batch found"),
    ],
)
def test_wrong_arguments_say_what_to_send(
    provider: ProviderServer,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    text: str,
) -> None:
    given = [str(file) if word == "FILE" else word for word in words]
    assert narrowgate(*given, url=provider.url) == 2
    assert text in capsys.readouterr().err
    assert [name for name, _ in provider.script.batch_requests if name == "upload"] == []


def test_servers_that_are_none(
    provider: ProviderServer,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for url, text in (
        ("http://127.0.0.1:1", "gave no answer"),
        ("127.0.0.1:8000", "--url is"),
        ("http://", "--url is"),
    ):
        assert narrowgate("list", url=url) == 2
        assert text in capsys.readouterr().err
    provider.script.on_batch("list", Fault("html"))
    assert narrowgate("list", url=provider.url) == 2
    assert "not a gateway's" in capsys.readouterr().err
    monkeypatch.setenv("NARROWGATE_KEY", "sk-wrong")
    assert narrowgate("submit", file, url=provider.url) == 2
    captured = capsys.readouterr()
    assert "NARROWGATE_KEY" in captured.err
    assert "sk-wrong" not in captured.err


ODD = ["{}", "5", "[]", '{"data": 5}', '{"data": [5]}', '{"id": 5}', '{"id": ""}', "[" * 100_000,
       '{"id": "b", "status": 5}', '{"id": "b", "status": "x", "request_counts": 5}',
       '{"id": "b", "status": "completed", "narrowgate": [1]}', '{"error": 5}']  # fmt: skip


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("text", ODD)
def test_an_answer_of_another_server_is_named_as_one(
    file: Path, capsys: pytest.CaptureFixture[str], text: str, status: int
) -> None:
    class Odd(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        do_POST = do_GET  # noqa: N815  # the name that the class of the library asks for

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        for words in (["list"], ["show", "b"], ["watch", "b"], ["cancel", "b"], ["fetch", "b"],
                      ["status"], ["submit", file], ["submit", file, "--dry-run"]):  # fmt: skip
            assert narrowgate(*words, url=url) == 2, words
            assert "not a gateway's" in capsys.readouterr().err
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("action", ["show", "watch", "cancel", "fetch"])
@pytest.mark.parametrize("id_", ["", ".", ".."])
def test_what_is_no_id_is_not_asked_for(
    provider: ProviderServer, capsys: pytest.CaptureFixture[str], action: str, id_: str
) -> None:
    assert narrowgate(action, id_, url=provider.url) == 2
    assert "is no id" in capsys.readouterr().err
    assert provider.script.batch_requests == []


def test_answers_are_written_through_a_link(
    provider: ProviderServer, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, ended = told(capsys, provider, "submit", file, "--watch")
    out, link = tmp_path / "folder" / "out.jsonl", tmp_path / "link"
    out.parent.mkdir()
    link.symlink_to(out)
    assert narrowgate("fetch", ended["id"], "--out", link, url=provider.url) == 0
    assert link.is_symlink()
    assert len(out.read_text().splitlines()) == 4


def test_a_broken_download_leaves_no_file(
    provider: ProviderServer, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, ended = told(capsys, provider, "submit", file, "--watch")
    provider.script.on_batch("results", Fault("cut"))
    out = tmp_path / "out.jsonl"
    out.write_text("before")
    assert narrowgate("fetch", ended["id"], "--out", out, url=provider.url) == 2
    assert out.read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.jsonl", "out.jsonl"]
    assert narrowgate("fetch", ended["id"], "--json", url=provider.url) == 2
    assert "--out" in capsys.readouterr().out


def test_a_missing_file_is_named(
    provider: ProviderServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert narrowgate("submit", tmp_path / "none.jsonl", url=provider.url) == 1
    assert "none.jsonl" in capsys.readouterr().err
