"""`narrowgate batch` against a whole gateway, over HTTP."""

# ruff: noqa: ASYNC110  # it waits for what another process says

import asyncio
import contextlib
import io
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import SecretStr

from serving.cli import run_program
from serving.commands import batch, key
from serving.ledger.access.keys import create_key

from ..provider.server import ProviderServer
from .batch_gateway import KEY_VALUE, KEY_VARIABLE, MODEL, Running, running


@pytest.fixture
async def gateway(
    provider: ProviderServer,
    state: Path,
    ledger_url: SecretStr | None,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Running]:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)
    monkeypatch.setattr(batch, "_POLL_S", 0.05)
    async with running(provider, state, ledger_url) as found:
        monkeypatch.setenv("NARROWGATE_KEY", found.acme.api_key)
        yield found


async def narrowgate(gateway: Running, *words: object) -> tuple[int, str]:
    """Run the command beside the gateway; return the status and the output."""
    argv = ["batch", *map(str, words), "--url", gateway.url]
    out = io.StringIO()

    def run() -> int:
        with contextlib.redirect_stdout(out):
            return run_program("narrowgate", "", {"batch": batch}, argv)

    status = await asyncio.to_thread(run)
    return status, out.getvalue()


def written(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return path


def line(name: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"question {name}"}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 64, **more}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


async def test_a_revoked_keys_batches_are_named_and_an_operator_ends_them(
    gateway: Running,
    provider: ProviderServer,
    tmp_path: Path,
    state: Path,
    ledger_url: SecretStr | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_answer = threading.Event()

    def answer(_: object) -> str:
        may_answer.wait(60)
        return "yes"

    provider.script.answer = answer
    file = written(tmp_path / "in.jsonl", *(line(f"k{n}") for n in range(200)))
    old_id = gateway.acme.api_key.split("-")[1]

    async def submitted() -> str:
        status, text = await narrowgate(gateway, "submit", file, "--json")
        assert status == 0
        return str(json.loads(text)["id"])

    def keys(*words: str) -> dict[str, Any]:
        out = io.StringIO()
        argv = ["key", *words, "--config", str(config), "--json"]
        with contextlib.redirect_stdout(out):
            assert run_program("narrowgate", "", {"key": key}, argv) == 0
        return dict(json.loads(out.getvalue()))

    config = tmp_path / "narrowgate.yaml"
    ledger = {} if ledger_url is None else {"url": ledger_url.get_secret_value()}
    config.write_text(json.dumps({"models": [], "state": str(state), "ledger": ledger}))
    made = [await submitted(), await submitted()]
    new = await asyncio.to_thread(create_key, gateway.database, "acme")
    monkeypatch.setenv("NARROWGATE_KEY", new.text.get_secret_value())
    while (await narrowgate(gateway, "list"))[0] != 0:
        await asyncio.sleep(0.05)
    others = await submitted()
    # The old key's batches are named, and go on.
    found = await asyncio.to_thread(keys, "revoke", old_id)
    assert found["batches"] == {"cancelled": [], "going_on": made}
    # A gateway that has not heard of it takes no further one.
    with pytest.raises(openai.AuthenticationError):
        await gateway.submit(file.read_bytes())
    found = await asyncio.to_thread(keys, "revoke", old_id, "--cancel-batches")
    assert found["batches"] == {"cancelled": made, "going_on": []}
    for name in (*made, others):
        status, text = await narrowgate(gateway, "show", name, "--json")
        is_old = json.loads(text)["status"] in ("cancelling", "cancelled")
        assert (status, is_old) == (0, name in made)
    # The rest of the tenant's, with an admin key alone.
    assert (await narrowgate(gateway, "cancel", "--tenant", "acme"))[0] == 2
    admin = await asyncio.to_thread(create_key, gateway.database, None)
    monkeypatch.setenv("NARROWGATE_KEY", admin.text.get_secret_value())
    while (await narrowgate(gateway, "status"))[0] != 0:
        await asyncio.sleep(0.05)
    status, text = await narrowgate(gateway, "cancel", "--tenant", "acme", "--json")
    assert (status, json.loads(text)) == (0, {"tenant": "acme", "cancelled": 1})
    for words in (
        ("cancel",),
        ("cancel", others, "--tenant", "acme"),
        ("cancel", "--tenant", "no"),
    ):
        assert (await narrowgate(gateway, *words))[0] == 2
    may_answer.set()


async def test_a_file_goes_through(gateway: Running, tmp_path: Path) -> None:
    file = written(tmp_path / "in.jsonl", *(line(f"k{n}") for n in range(8)))
    status, text = await narrowgate(
        gateway, "submit", file, "--deadline", "6h", "--watch", "--json"
    )
    ended = json.loads(text)
    assert (status, ended["status"]) == (0, "completed")
    assert ended["metadata"] == {"deadline": "6h"}
    assert 0 < ended["expires_at"] - ended["created_at"] <= 6 * 3600
    out = tmp_path / "out.jsonl"
    status, _ = await narrowgate(gateway, "fetch", ended["id"], "--out", out, "--json")
    assert status == 0
    found = [json.loads(row)["custom_id"] for row in out.read_text().splitlines()]
    assert sorted(found) == [f"k{n}" for n in range(8)]
    status, text = await narrowgate(gateway, "list")
    assert (status, ended["id"] in text, "8/8 lines" in text) == (0, True, True)
    status, text = await narrowgate(gateway, "show", ended["id"])
    assert status == 0
    assert "8 of 8 lines answered" in text
    assert "cost:" in text


async def test_a_dry_run_names_every_bad_line_and_what_the_others_may_cost(
    gateway: Running, provider: ProviderServer, tmp_path: Path
) -> None:
    file = written(
        tmp_path / "in.jsonl",
        line("a"), "{oops", line("a"), line("b", model="nobody/none"),
        line("c", model="task/sentiment"), line("d"),
    )  # fmt: skip
    status, text = await narrowgate(gateway, "submit", file, "--dry-run", "--json")
    found = json.loads(text)
    assert status == 1
    assert [problem["line"] for problem in found["errors"]["data"]] == [2, 3, 4]
    assert found["lines"] == 3
    for row in found["plan"]:
        assert float(row["max_usd"]) > 0
        assert float(row["reference_usd"]) > 0
        assert row["batch_usd"] is None, "this provider has no batch API"
    status, text = await narrowgate(gateway, "submit", file, "--dry-run")
    assert status == 1
    assert "3 lines can run" in text
    for number in (2, 3, 4):
        assert f"line {number}: " in text
    [row] = [row for row in text.splitlines() if row.startswith("all") or MODEL in row][:1]
    assert "$" in row
    good = written(tmp_path / "good.jsonl", line("a"))
    assert (await narrowgate(gateway, "submit", good, "--dry-run"))[0] == 0
    assert provider.script.seen == []
    assert [file async for file in gateway.acme.files.list()] == [], "no file is left"
    assert [batch async for batch in gateway.acme.batches.list()] == []


async def test_a_file_with_bad_lines_is_refused_or_its_good_lines_run(
    gateway: Running, provider: ProviderServer, tmp_path: Path
) -> None:
    file = written(tmp_path / "in.jsonl", line("a"), "{oops")
    status, text = await narrowgate(gateway, "submit", file)
    assert (status, "line 2: " in text) == (1, True)
    assert provider.script.seen == []
    status, text = await narrowgate(gateway, "submit", file, "--skip-bad", "--watch", "--json")
    ended = json.loads(text)
    assert (status, ended["status"]) == (0, "completed")
    assert len(provider.script.seen) == 1
