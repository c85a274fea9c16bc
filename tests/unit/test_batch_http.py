"""The unmodified OpenAI SDK uploads, creates, polls, lists, cancels and fetches."""

# ruff: noqa: ASYNC110  # it waits for what another thread or the database says

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import SecretStr

from serving.ledger.access.keys import create_key

from ..provider.script import Fault
from ..provider.server import ProviderServer
from .batch_gateway import KEY_VALUE, KEY_VARIABLE, Running, running
from .batch_kit import chat_line, jsonl, task_line
from .patience import GUARD_S


@pytest.fixture
async def gateway(
    provider: ProviderServer,
    state: Path,
    ledger_url: SecretStr | None,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Running]:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)
    provider.script.answer = lambda seen: f"answer to {seen.body['messages'][-1]['content']}"
    async with running(provider, state, ledger_url) as found:
        yield found


async def test_a_whole_round_trip(gateway: Running, provider: ProviderServer) -> None:
    data = jsonl(*(chat_line(f"c{n}", f"question {n}") for n in range(20)))
    batch = await gateway.submit(data, metadata={"job": "nightly"})
    assert batch.status in ("in_progress", "finalizing", "completed")
    assert batch.errors is None
    plan = batch.model_extra["narrowgate"]["plan"]  # type: ignore[index]
    assert [(one["route"], one["model"], one["lines"]) for one in plan] == [
        ("frontier", "openai/gpt-4.1", 20)
    ]
    batch = await gateway.ended(batch)
    assert batch.status == "completed"
    assert batch.error_file_id is None
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 20, "completed": 20, "failed": 0}
    assert batch.metadata == {"job": "nightly"}
    for moment in (batch.in_progress_at, batch.finalizing_at, batch.completed_at):
        assert moment is not None
        assert batch.created_at <= moment
    found = await gateway.results(batch)
    assert list(found) == [f"c{n}" for n in range(20)]
    for name, line in found.items():
        assert line["error"] is None
        response = line["response"]
        assert response["status_code"] == 200
        text = response["body"]["choices"][0]["message"]["content"]
        assert text == f"answer to question {name[1:]}"
    assert len(provider.script.seen) == 20


async def test_a_file_with_bad_lines_is_refused_before_anything_is_spent(
    gateway: Running, provider: ProviderServer
) -> None:
    data = jsonl(chat_line("a"), b"{", chat_line("a"), chat_line("b", model="nobody"))
    batch = await gateway.submit(data)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert [(one.line, one.code) for one in batch.errors.data or ()] == [
        (2, "invalid_json_line"), (3, "duplicate_custom_id"), (4, "model_not_found"),
    ]  # fmt: skip
    assert provider.script.seen == []
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


async def test_files_that_are_checked_at_once_share_the_tenants_lines(
    provider: ProviderServer,
    state: Path,
    ledger_url: SecretStr | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)
    may_answer = threading.Event()

    def answer(_: object) -> str:
        may_answer.wait(GUARD_S)
        return "yes"

    provider.script.answer = answer
    data = jsonl(chat_line("a"), chat_line("b"))
    async with running(provider, state, ledger_url, batch={"tenant_lines": 3}) as gateway:
        made = await asyncio.gather(*(gateway.submit(data) for _ in range(6)))
        while any(batch.status == "validating" for batch in made):
            made = [await gateway.acme.batches.retrieve(batch.id) for batch in made]
        failed = [batch for batch in made if batch.status == "failed"]
        may_answer.set()
        codes = {one.code for batch in failed for one in (batch.errors and batch.errors.data) or ()}
        assert (len(failed), codes) == (5, {"too_many_lines"})
        for batch in made:
            await gateway.ended(batch)


async def test_checks_of_one_tenant_hold_up_nobody_else(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()

    def slow(*_: object) -> Iterator[None]:
        may_end.wait(GUARD_S)
        yield None

    order = await _order(gateway)
    monkeypatch.setattr("serving.batch.check.FileCheck.found", slow)
    async with _plain(gateway) as client:
        path = "/v1/batches/check"
        checks = [asyncio.create_task(client.post(path, json=order)) for _ in range(8)]
        for _ in range(4):
            assert (await gateway.clients["globex"].files.list()).data == []
            assert len((await gateway.acme.files.list()).data) == 1
        assert not any(check.done() for check in checks)
        may_end.set()
        for check in checks:
            assert (await check).status_code == 200


async def test_a_check_ends_soon_after_its_client_hung_up(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = 0

    def endless(*_: object) -> Iterator[None]:
        nonlocal lines
        while True:
            lines += 1
            time.sleep(0.001)
            yield None

    order = await _order(gateway)
    monkeypatch.setattr("serving.batch.check.FileCheck.found", endless)
    async with _plain(gateway, timeout=0.5) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v1/batches/check", json=order)
    # The turn that it has may take 0.1 s.
    await asyncio.sleep(1)
    before = lines
    await asyncio.sleep(0.5)
    assert lines == before > 0


async def test_of_a_tenant_one_file_at_a_time_has_turns(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end, begun = threading.Event(), 0

    def slow(*_: object) -> Iterator[None]:
        nonlocal begun
        begun += 1
        while not may_end.is_set():
            time.sleep(0.001)
            yield None

    order = await _order(gateway)
    monkeypatch.setattr("serving.batch.check.FileCheck.found", slow)
    async with _plain(gateway) as client:
        path = "/v1/batches/check"
        checks = [asyncio.create_task(client.post(path, json=order)) for _ in range(4)]
        while not begun:
            await asyncio.sleep(0.05)
        # Time for several turns: others of this tenant would take those of other tenants.
        await asyncio.sleep(1)
        assert begun == 1
        may_end.set()
        for check in checks:
            assert (await check).status_code == 200
    assert begun == 4


async def test_a_short_file_is_checked_while_a_long_one_of_another_tenant_is(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    import serving.batch.check as check

    may_end = threading.Event()
    whole = check.FileCheck.found

    def found(self: check.FileCheck, pieces: Iterable[bytes]) -> Iterator[object]:
        if self.caller.tenant == "acme":
            while not may_end.is_set():
                time.sleep(0.001)
                yield None
        yield from whole(self, pieces)

    orders = [await _order(gateway, tenant) for tenant in ("acme", "globex")]
    monkeypatch.setattr(check.FileCheck, "found", found)
    async with _plain(gateway) as acme, _plain(gateway, "globex") as globex:
        long = asyncio.create_task(acme.post("/v1/batches/check", json=orders[0]))
        await asyncio.sleep(0.3)
        assert (await globex.post("/v1/batches/check", json=orders[1])).json()["lines"] == 1
        # Batches are checked in turns, too.
        mine = await gateway.submit(jsonl(chat_line("a")))
        other = await gateway.submit(jsonl(chat_line("b")), "globex")
        assert (await gateway.ended(other, "globex")).status == "completed"
        assert (await gateway.acme.batches.retrieve(mine.id)).status == "validating"
        assert not long.done()
        # One that is cancelled is checked no further.
        await gateway.acme.batches.cancel(mine.id)
        may_end.set()
        assert (await long).json()["lines"] == 1
    ended = await gateway.ended(mine)
    assert (ended.status, ended.request_counts and ended.request_counts.total) == ("cancelled", 0)


async def _order(gateway: Running, tenant: str = "acme") -> dict[str, str]:
    """Upload a file of one line and return the order of its check."""
    data = jsonl(chat_line("a"))
    file = await gateway.clients[tenant].files.create(file=("in.jsonl", data), purpose="batch")
    return {
        "input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h",
    }  # fmt: skip


def _plain(gateway: Running, tenant: str = "acme", timeout: float = 60) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {gateway.clients[tenant].api_key}"}
    return httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=timeout)


async def test_an_operator_ends_a_tenants_batches(
    gateway: Running, provider: ProviderServer
) -> None:
    may_answer = threading.Event()

    def answer(_: object) -> str:
        may_answer.wait(GUARD_S)
        return "yes"

    provider.script.answer = answer
    data = jsonl(*(chat_line(f"c{number}") for number in range(200)))
    mine, other = await gateway.submit(data), await gateway.submit(data, "globex")
    admin = await asyncio.to_thread(create_key, gateway.database, None)
    headers = {"authorization": f"Bearer {admin.text.get_secret_value()}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=GUARD_S) as client:
        path = "/v1/admin/batches/cancel"
        while (found := await client.post(f"{path}?tenant=acme")).status_code == 401:
            # A new key is known once the directory was read again.
            await asyncio.sleep(0.05)
        assert found.json() == {"tenant": "acme", "cancelled": 1}
        for query, status in (("?tenant=acme", 200), ("?tenant=nobody", 404), ("?tenant=", 400),
                              ("", 400), ("?tenant=acme&all=1", 400)):  # fmt: skip
            assert (await client.post(f"{path}{query}")).status_code == status
    assert (await gateway.acme.batches.retrieve(mine.id)).status in ("cancelling", "cancelled")
    may_answer.set()
    assert (await gateway.ended(mine)).status == "cancelled"
    assert (await gateway.ended(other, "globex")).status == "completed"
    # The tenant itself may not.
    async with httpx.AsyncClient(base_url=gateway.url, timeout=GUARD_S) as client:
        key = {"authorization": f"Bearer {gateway.acme.api_key}"}
        assert (await client.post(f"{path}?tenant=globex", headers=key)).status_code == 403


async def test_skip_runs_the_good_lines(gateway: Running) -> None:
    data = jsonl(chat_line("a"), b"{", chat_line("b"))
    batch = await gateway.ended(await gateway.submit(data, metadata={"on_error": "skip"}))
    assert batch.status == "completed"
    assert batch.errors is not None
    assert [one.line for one in batch.errors.data or ()] == [2]
    assert set(await gateway.results(batch)) == {"a", "b"}


async def test_lines_of_a_task(gateway: Running, provider: ProviderServer) -> None:
    provider.script.answer = lambda _: '{"label": "positive"}'
    data = jsonl(task_line("a", "sentiment", "Great."), task_line("b", "sentiment", "Fine."))
    batch = await gateway.ended(await gateway.submit(data, endpoint="/v1/tasks/sentiment"))
    found = await gateway.results(batch)
    assert [line["response"]["body"]["value"] for line in found.values()] == ["positive"] * 2


async def test_an_answer_that_is_an_error_is_in_the_error_file(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.next(Fault("status", 400, "invalid_value", "no such thing"))
    batch = await gateway.ended(await gateway.submit(jsonl(chat_line("a"))))
    assert batch.status == "completed"
    assert batch.output_file_id is None
    assert batch.request_counts is not None
    assert batch.request_counts.failed == 1
    (line,) = (await gateway.results(batch)).values()
    assert line["response"]["status_code"] == 400
    assert line["response"]["body"]["error"]["code"] == "frontier_rejected_request"


async def test_files_are_shown_listed_read_and_deleted(gateway: Running) -> None:
    client, data = gateway.acme, jsonl(chat_line("a"))
    made = [
        await client.files.create(
            file=(f"{n}.jsonl", data), purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        for n in range(3)
    ]  # fmt: skip
    shown = await client.files.retrieve(made[0].id)
    assert (shown.filename, shown.bytes, shown.purpose) == ("0.jsonl", len(data), "batch")
    assert shown.expires_at == shown.created_at + 3600
    listed = [file.id async for file in client.files.list(limit=2, order="asc")]
    assert sorted(listed) == sorted(file.id for file in made)
    assert (await client.files.content(made[1].id)).content == data
    assert (await client.files.delete(made[1].id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(made[1].id)
    assert len([file async for file in client.files.list(purpose="batch")]) == 2


async def test_batches_are_listed_in_pages(gateway: Running) -> None:
    made = [(await gateway.submit(jsonl(chat_line("a")))).id for _ in range(5)]
    listed = [batch.id async for batch in gateway.acme.batches.list(limit=2)]
    assert listed == made[::-1]


async def test_a_tenant_sees_only_its_own(gateway: Running) -> None:
    batch = await gateway.ended(await gateway.submit(jsonl(chat_line("a"))))
    assert batch.output_file_id is not None
    other = gateway.clients["globex"]
    for file in (batch.input_file_id, batch.output_file_id):
        for ask in (other.files.retrieve, other.files.content, other.files.delete):
            with pytest.raises(openai.NotFoundError):
                await ask(file)
        with pytest.raises(openai.NotFoundError):
            await other.files.list(after=file)
    for act in (other.batches.retrieve, other.batches.cancel):
        with pytest.raises(openai.NotFoundError):
            await act(batch.id)
    with pytest.raises(openai.NotFoundError):
        await other.batches.list(after=batch.id)
    with pytest.raises(openai.NotFoundError):
        await other.batches.create(
            input_file_id=batch.input_file_id, endpoint="/v1/chat/completions",
            completion_window="24h",
        )  # fmt: skip
    assert [one async for one in other.files.list()] == []
    assert [one async for one in other.batches.list()] == []
    assert (await gateway.acme.files.retrieve(batch.output_file_id)).purpose == "batch_output"


async def test_a_cancelled_batch_keeps_what_was_answered(
    gateway: Running, provider: ProviderServer
) -> None:
    # The lane starts 64 lines at once; the others wait for slow answers.
    provider.script.on("gpt-4.1", Fault("slow", delay_s=0.3))
    batch = await gateway.submit(jsonl(*(chat_line(f"c{n}") for n in range(200))))
    while not provider.script.seen:
        await asyncio.sleep(0.02)
    batch = await gateway.acme.batches.cancel(batch.id)
    assert batch.status == "cancelling"
    batch = await gateway.ended(batch)
    assert batch.status == "cancelled"
    found = await gateway.results(batch)
    assert len(found) == 200
    answered = [line for line in found.values() if line["response"] is not None]
    assert len(answered) == len(provider.script.seen)
    assert {line["error"]["code"] for line in found.values() if line["error"]} == {
        "batch_cancelled"
    }
    with pytest.raises(openai.ConflictError):
        await gateway.acme.batches.cancel(batch.id)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"endpoint": "/v1/embeddings"}, "endpoint"),
    ({"completion_window": "soon"}, "completion_window"),
    ({"metadata": {"deadline": "yesterday"}}, "metadata.deadline"),
    ({"metadata": {"max_cost_usd": "-1"}}, "metadata.max_cost_usd"),
    ({"metadata": {"on_error": "stop"}}, "metadata.on_error"),
    ({"metadata": {"purpose": "Nightly labels"}}, "metadata.purpose"),
    ({"metadata": {"purpose": "audit"}}, "metadata.purpose"),
    ({"metadata": {"k": "v" * 513}}, "metadata"),
    ({"metadata": {"max_cost_usd": "1_0"}}, "metadata.max_cost_usd"),
    ({"metadata": {"max_cost_usd": "\u0663"}}, "metadata.max_cost_usd"),
]


async def test_a_wrong_order_is_refused_with_its_field(gateway: Running) -> None:
    client = gateway.acme
    file = await client.files.create(file=("a.jsonl", jsonl(chat_line("a"))), purpose="batch")
    for fields, param in BAD:
        order = {
            "input_file_id": file.id, "endpoint": "/v1/chat/completions",
            "completion_window": "24h", **fields,
        }  # fmt: skip
        with pytest.raises(openai.BadRequestError) as refused:
            await client.batches.create(**order)
        assert refused.value.param == param
    with pytest.raises(openai.BadRequestError):
        await client.files.create(file=("a.jsonl", b"{}"), purpose="fine-tune")


async def test_a_check_runs_nothing(gateway: Running, provider: ProviderServer) -> None:
    client = gateway.acme
    data = jsonl(chat_line("a"), b"{")
    file = await client.files.create(file=("a.jsonl", data), purpose="batch")
    body = {
        "input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h",
    }  # fmt: skip
    found = await client.post("/batches/check", body=body, cast_to=httpx.Response)
    document = json.loads(found.text)
    assert document["lines"] == 1
    assert [one["line"] for one in document["errors"]["data"]] == [2]
    assert [one async for one in client.batches.list()] == []
    assert provider.script.seen == []


@pytest.mark.parametrize(
    "metadata", ['{"a": "\\ud800"}', '{"\\ud800": "a"}', '{"a\\u0000": "a"}', '{"a": "\\u0000"}']
)
async def test_metadata_that_is_not_text_makes_no_batch(gateway: Running, metadata: str) -> None:
    client = gateway.acme
    file = await client.files.create(file=("a.jsonl", jsonl(chat_line("a"))), purpose="batch")
    body = (
        f'{{"input_file_id": "{file.id}", "endpoint": "/v1/chat/completions", '
        f'"completion_window": "24h", "metadata": {metadata}}}'
    )
    headers = {"authorization": f"Bearer {client.api_key}", "content-type": "application/json"}
    async with httpx.AsyncClient(headers=headers, timeout=GUARD_S) as plain:
        response = await plain.post(f"{gateway.url}/v1/batches", content=body)
    assert response.status_code == 400, response.text
    assert (response.json()["error"]["param"] or "").startswith("metadata")
    assert [one async for one in client.batches.list()] == []


FORMS: list[tuple[str, bytes]] = [
    ("application/json", b"{}"),
    ("multipart/form-data", b"x"),
    ("multipart/form-data; boundary=b", b"nothing of the kind"),
    ("multipart/form-data; boundary=" + "z" * 300, b"--b"),
    ("multipart/form-data; boundary=b", b'--b\r\ncontent-disposition: form-data; name="file"; '
     b'filename="x"\r\n\r\nhalf of it'),
    ("multipart/form-data; boundary=b", b'--b\r\ncontent-disposition: form-data; name="purpose"'
     b"\r\n\r\nbatch\r\n--b--\r\n"),
]  # fmt: skip


async def test_a_malformed_upload_is_refused_and_leaves_nothing(
    gateway: Running, state: Path
) -> None:
    headers = {"authorization": f"Bearer {gateway.acme.api_key}"}
    async with httpx.AsyncClient(headers=headers, timeout=GUARD_S) as plain:
        for kind, body in FORMS:
            response = await plain.post(
                f"{gateway.url}/v1/files", content=body, headers={"content-type": kind}
            )
            assert response.status_code in (400, 415), response.text
            assert response.json()["error"]["message"]
    folder = state / "files"
    assert not folder.exists() or [p for p in folder.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("path", "longest", "cursor"),
    [
        ("/v1/files", 10_000, "after"),
        ("/v1/batches", 100, "after"),
        ("/v1/messages/batches", 1000, "after_id"),
    ],
)
async def test_the_query_of_every_list_is_read_whole(
    gateway: Running, path: str, longest: int, cursor: str
) -> None:
    least, most = "a whole number of at least 1", f"a whole number of at most {longest}"
    digits = "a whole number in the digits 0 to 9"
    refused = {
        "limit=0": least, "limit=-1": digits, f"limit={longest + 1}": most, "limit=1.0": digits,
        f"limit={'9' * 18}": most, f"limit={'9' * 5000}": digits, "limit=": digits,
        "limit=%2B5": digits, "limit=1_0": digits, "limit=%D9%A3": digits, "limit=true": digits,
        "limit=5&limit=6": "more than once", "Limit=5": "takes no query parameter 'Limit'",
        "lim%00it=5": "", f"{cursor}=a&{cursor}=b": "more than once", "tenant=globex": cursor,
    }  # fmt: skip
    headers = {"authorization": f"Bearer {gateway.acme.api_key}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=GUARD_S) as client:
        for query, says in refused.items():
            answer = await client.get(f"{path}?{query}")
            assert (answer.status_code, query) == (400, query)
            assert says in answer.text, answer.text
            # Short, without the library's words.
            assert "nput should" not in answer.text
            assert len(answer.text) < 600
            error = answer.json()["error"]
            assert error["type"] == "invalid_request_error"
        for value in ("x", "%C3%A9", "%F0%9F%98%80", "a" * 5000, "file-1;drop", ""):
            answer = await client.get(f"{path}?{cursor}={value}")
            assert (answer.status_code, value) == (404, value)
            assert len(answer.text) < 600
        known = await client.get(f"{path}?limit={longest}&beta=true&api-version=2026-10-01")
        assert (known.status_code, known.json()["data"]) == (200, [])


async def test_the_order_of_files_is_one_of_two(gateway: Running) -> None:
    headers = {"authorization": f"Bearer {gateway.acme.api_key}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=GUARD_S) as client:
        answer = await client.get("/v1/files?order=down")
    assert answer.json()["error"] == {
        "message": "order is 'down'; it must be 'asc' or 'desc'",
        "type": "invalid_request_error",
        "param": "order",
        "code": "invalid_request",
        "fix": "send 'asc' or 'desc'",
    }


async def test_the_character_nul_in_an_address_is_a_400_on_both_databases(gateway: Running) -> None:
    headers = {"authorization": f"Bearer {gateway.acme.api_key}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, timeout=GUARD_S) as client:
        for method, path in (
            ("GET", "/v1/files/%00"),
            ("GET", "/v1/files/a%00b/content"),
            ("DELETE", "/v1/files/a%00b"),
            ("GET", "/v1/files?after=%00"),
            ("GET", "/v1/files?purpose=a%00"),
            ("GET", "/v1/batches/%00"),
            ("POST", "/v1/batches/%00/cancel"),
            ("GET", "/v1/batches?after=%00"),
            ("GET", "/v1/messages/batches/msgbatch_%00"),
            ("GET", "/v1/messages/batches?after_id=%00"),
        ):
            answer = await client.request(method, path)
            assert (answer.status_code, path) == (400, path)
            assert "NUL" in answer.text
        sent = await client.post(
            "/v1/files", files={"file": ("a\0b.jsonl", b"{}\n")}, data={"purpose": "batch"}
        )
        assert sent.status_code in (200, 400)
        assert "\0" not in sent.json().get("filename", "")
