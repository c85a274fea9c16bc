"""The edge of HTTP: media types, JSON, methods, paths, origins, request ids, headers."""

import asyncio
import gzip
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from serving.contracts.errors import InvalidSettings
from serving.contracts.settings_sources import load_settings
from serving.contracts.task_spec import TaskSpec

from .chat_kit import CHAT, chat_body, replying
from .scripted import MODEL, Server, assert_error

TASK = "/v1/tasks/topic"


@pytest.fixture
async def server(specs: dict[str, TaskSpec]) -> Server:
    return await Server(specs).ready()


def _nested(depth: int, inner: str) -> str:
    return "[" * depth + inner + "]" * depth


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (_nested(65, "1"), "metadata"),
        (_nested(900, ",".join(['""'] * 400_000)), "metadata"),
        ("[" + "1," * 50_000 + "1]", "tools"),
        ("{" + ",".join(f'"{n}": 1' for n in range(200_000)) + "}", "logit_bias"),
        (json.dumps([{"role": "user", "content": [{"type": "text", "text": ""}] * 60_000}]),
         "messages"),
        (json.dumps({"type": "json_schema", "json_schema": {
            "name": "a", "schema": {"anyOf": [{}] * 60_000}}}), "response_format"),
        (_nested(63, ",".join(["1"] * 60_000)), "anything_new"),
    ],
    ids=["deep", "deep texts", "many", "keys", "parts", "schema", "unknown"],
)  # fmt: skip
@pytest.mark.parametrize("model", [MODEL, "openai/gpt-6-luna", "task/topic"])
async def test_a_body_of_too_many_values_or_levels_is_refused_before_it_is_read(
    server: Server, value: str, name: str, model: str
) -> None:
    messages = {"messages": [{"role": "user", "content": "x"}]}
    body = json.dumps({"model": model, **({} if name == "messages" else messages)})
    content = f'{body[:-1]}, "{name}": {value}}}'
    headers = {"content-type": "application/json"}
    error = assert_error(
        await server.post(CHAT, content=content, headers=headers), 400, "invalid_request"
    )
    assert error["param"] == name
    assert "50000 values" in error["message"]


async def test_a_key_of_any_length_is_read_and_shown_in_part(server: Server) -> None:
    inner = {f"{n}": "\ud83d" if n == 4999 else "" for n in range(5000)}
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "k" * 10**6: inner}
    headers = {"content-type": "application/json"}
    response = await server.post(CHAT, content=json.dumps(body), headers=headers)
    assert len(assert_error(response, 400, "invalid_request")["message"]) < 300


async def test_half_a_surrogate_pair_in_a_key_is_told_without_a_field(server: Server) -> None:
    headers = {"content-type": "application/json"}
    response = await server.post(TASK, content=b'{"\\ud83d": 1}', headers=headers)
    error = assert_error(response, 400, "invalid_request")
    assert error["message"].startswith("a key holds an unpaired surrogate")
    assert error["param"] is None


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", ""])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", TASK])
async def test_another_media_type_is_a_415_that_names_the_header(
    server: Server, kind: str | None, path: str
) -> None:
    headers = {} if kind is None else {"content-type": kind}
    response = await server.post(path, content=b"{}", headers=headers)
    error = assert_error(response, 415, "unsupported_media_type")
    assert error["param"] == "content-type"
    assert "application/json" in error["fix"]


async def test_a_compressed_body_is_a_415_that_names_the_header(server: Server) -> None:
    body = gzip.compress(json.dumps(chat_body(MODEL)).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    error = assert_error(
        await server.post(CHAT, content=body, headers=headers), 415, "unsupported_media_type"
    )
    assert error["param"] == "content-encoding"
    plain = {"content-type": "application/json; charset=utf-8", "content-encoding": "identity"}
    for headers in (plain, {**plain, "content-encoding": ""}):
        kept = await server.post(CHAT, content=json.dumps(chat_body(MODEL)), headers=headers)
        assert kept.status_code == 200


@pytest.mark.parametrize(
    ("content", "inside"),
    [
        (b'{"input": "a", "input": "b"}', "'input' twice"),
        (b'{"inputs": [{"a": 1, "a": 2}]}', "'a' twice"),
        (b'{"input": NaN}', "NaN"),
        (b'{"input": -Infinity}', "Infinity"),
        (b'{"input": 1e999}', "1e999"),
        (b'{"input": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"input": -' + b"9" * 300 + b"}", "digits"),
        (b"[" * 100_000, "nested"),
        (b'{"input": "\xe9"}', "UTF-8"),
        (b"", "not JSON"),
    ],
)
async def test_a_body_that_is_not_plain_json_is_refused_with_the_reason(
    server: Server, content: bytes, inside: str
) -> None:
    headers = {"content-type": "application/json"}
    response = await server.post(TASK, content=content, headers=headers)
    assert inside in assert_error(response, 400, "invalid_request")["message"]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/v1/models", "/v1/tasks"])
async def test_head_is_get_without_a_body(server: Server, path: str) -> None:
    head = await server.client.head(path)
    assert head.status_code == (await server.client.get(path)).status_code
    assert head.content == b""
    text = (await server.client.get("/metrics")).text
    assert f'narrowgate_http_requests_total{{endpoint="{path}",method="HEAD"' in text
    assert (await server.client.head(TASK)).status_code == 405


async def test_a_slash_at_the_end_changes_nothing(server: Server) -> None:
    assert (await server.post(f"{TASK}/", json={"input": "x"})).status_code == 200
    assert (await server.post(f"{CHAT}/", json=chat_body(MODEL))).status_code == 200
    assert (await server.client.get("/v1/models/")).json()["object"] == "list"
    assert (await server.client.get(f"/v1/models/{MODEL}/")).json()["id"] == MODEL


@pytest.mark.parametrize("given", [b"\xe9", b"a b", b"x" * 129, b"", b"\x01"])
async def test_a_request_id_that_logs_cannot_hold_is_replaced(server: Server, given: bytes) -> None:
    response = await server.client.post(
        TASK, json={"inputs": ["x"]}, headers=[(b"x-request-id", given)]
    )
    assert response.status_code == 200
    assert len(response.json()["request_id"]) == 32
    kept = await server.post(TASK, json={"inputs": ["x"]}, headers={"x-request-id": "mine-1"})
    assert kept.json()["request_id"] == "mine-1"


ORIGIN = "https://app.example.com"
PREFLIGHT = {
    "origin": ORIGIN,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


async def test_pages_of_other_origins_are_refused_by_default(server: Server) -> None:
    assert (await server.client.options(CHAT, headers=PREFLIGHT)).status_code == 403
    answer = await server.post(CHAT, json=chat_body(MODEL), headers={"origin": ORIGIN})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        # A page whose name its owner points at 127.0.0.1, a form of another site, a sandboxed one.
        {"host": "evil.example:8000", "origin": "http://evil.example:8000"},
        {"host": "evil.example."},
        {"host": "127.0.0.1:8000", "origin": "https://evil.example"},
        {"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"},
        {"host": "localhost:8000", "origin": "null"},
        {"host": "localhost:8000", "origin": "http://[::1"},
    ],
)
async def test_without_keys_pages_of_other_sites_call_nothing(
    server: Server, headers: dict[str, str]
) -> None:
    for path in ("/v1/models", "/v1/admin/report"):
        error = assert_error(await server.client.get(path, headers=headers), 403, "forbidden")
        assert "gateway.cors_origins" in error["fix"]
    answer = await server.post(CHAT, json=chat_body(MODEL), headers=headers)
    assert_error(answer, 403, "forbidden")
    assert server.engine.bodies == []


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "127.0.0.1:8000"},
        {"host": "[::1]:8000", "origin": "http://[::1]:8000"},
        {"host": "localhost:8000", "origin": "http://localhost:8000"},
        {"host": "app.localhost"},
        {"host": "gateway"},
        {"host": "10.1.2.3:8000"},
    ],
)
async def test_without_keys_programs_and_own_pages_may_call(
    server: Server, headers: dict[str, str]
) -> None:
    assert (await server.client.get("/v1/models", headers=headers)).status_code == 200


async def test_without_keys_a_configured_origins_host_may_be_called(
    specs: dict[str, TaskSpec],
) -> None:
    server = await Server(specs, cors_origins=(ORIGIN,)).ready()
    for headers in ({"host": "app.example.com"}, {"host": "127.0.0.1", "origin": ORIGIN}):
        assert (await server.client.get("/v1/models", headers=headers)).status_code == 200


async def test_pages_of_a_configured_origin_may_call_the_api(specs: dict[str, TaskSpec]) -> None:
    server = await Server(specs, cors_origins=(ORIGIN,)).ready()
    preflight = await server.client.options(CHAT, headers=PREFLIGHT)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers
    answer = await server.post(CHAT, json=chat_body(MODEL), headers={"origin": ORIGIN})
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    other = {**PREFLIGHT, "origin": "https://evil.example.com"}
    refused = await server.client.options(CHAT, headers=other)
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize("origin", ["app.example.com", "https://a/b", "ftp://a", ""])
def test_an_origin_that_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(InvalidSettings, match=r"gateway\.cors_origins\.0"):
        load_settings(None, {"gateway": {"cors_origins": [origin]}})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_name_that_headers_cannot_hold_is_escaped(
    server: Server, stream: bool
) -> None:
    server.frontier.reply = replying("An answer.")
    response = await server.post(CHAT, json=chat_body("openai/模型 é", stream=stream))
    assert response.status_code == 200, response.text
    assert response.headers["x-narrowgate-model"] == "openai/%E6%A8%A1%E5%9E%8B %C3%A9"
    assert server.context.frontier_admission.active == 0
    assert [call.end is not None for call in server.ledger.calls] == [True]


async def test_a_model_name_that_no_settings_could_hold_is_refused(server: Server) -> None:
    server.frontier.reply = replying("An answer.")
    for name, status in (("openai/" + "m" * 258, 200), ("openai/" + "m" * 259, 400)):
        response = await server.post(CHAT, json=chat_body(name))
        assert response.status_code == status, response.text
    assert assert_error(response, 400, "invalid_request")["param"] == "model"
    assert len(server.ledger.calls) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_whatever_fails_before_the_first_byte_closes_the_call(
    server: Server, stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(value: str) -> str:
        raise UnicodeError("no header")

    server.frontier.reply = replying("one two three")
    monkeypatch.setattr("serving.gateway.openai_api._header_text", broken)
    assert_error(
        await server.post(CHAT, json=chat_body("auto", stream=stream)), 500, "internal_error"
    )
    assert server.context.frontier_admission.active == 0
    (page,) = server.ledger.pages
    assert page.exit is not None
    assert page.exit.error == ("internal_error" if stream else None)
    assert all(call.end is not None for call in page.calls)


NAN_AND_HALF_PAIR: dict[str, Any] = {
    "role": "assistant",
    "content": "smile \ud83d",
    "logprob": float("nan"),
}


async def test_a_providers_nan_and_half_pairs_are_repaired(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.frontier.reply = replying("An answer.")
    original = server.frontier.complete

    async def odd(call: Any) -> Any:
        completion = await original(call)
        completion.body["choices"][0]["message"] = NAN_AND_HALF_PAIR
        return completion

    monkeypatch.setattr(server.frontier, "complete", odd)
    response = await server.post(CHAT, json=chat_body("auto"))
    assert response.status_code == 200
    message = response.json()["choices"][0]["message"]
    assert (message["content"], message["logprob"]) == ("smile \ufffd", None)
    assert server.context.frontier_admission.active == 0


async def test_a_local_answer_has_only_the_fields_of_the_api(server: Server) -> None:
    answer = {
        "id": "x", "object": "chat.completion", "created": 1, "model": MODEL,
        "prompt_token_ids": [1], "prompt_text": "secret", "kv_transfer_params": None,
        "choices": [{"index": 0, "finish_reason": "stop", "stop_reason": None, "token_ids": [5],
                     "logprobs": None, "routed_experts": None,
                     "message": {"role": "assistant", "content": "hi", "reasoning": None,
                                 "tool_calls": []}}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
    }  # fmt: skip
    server.engine.document = answer
    found = (await server.post(CHAT, json=chat_body(MODEL))).json()
    assert set(found) == {"id", "object", "created", "model", "choices", "usage"}
    (choice,) = found["choices"]
    assert set(choice) == {"index", "finish_reason", "logprobs", "message"}
    assert choice["message"] == {"role": "assistant", "content": "hi", "tool_calls": []}
    delta = {"content": "hi", "reasoning": None}
    chunk = {"id": "x", "prompt_token_ids": None,
             "choices": [{"index": 0, "delta": delta, "token_ids": None}]}  # fmt: skip
    server.engine.events = [f"data: {json.dumps(chunk)}\n\n"]
    text = (await server.post(CHAT, json=chat_body(MODEL, stream=True))).text
    assert json.loads(text.split("\n\n")[0].removeprefix("data: ")) == {
        "id": "x", "choices": [{"index": 0, "delta": {"content": "hi"}}],
    }  # fmt: skip


async def test_an_entry_is_dated_from_the_requests_arrival(server: Server) -> None:
    server.engine.release.clear()
    before = datetime.now(UTC)
    sent = asyncio.create_task(server.post(TASK, json={"input": "x"}))
    while server.context.local_admission.active < 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    waited = datetime.now(UTC)
    server.engine.release.set()
    await sent
    (page,) = server.ledger.pages
    assert page.opened_at is not None
    assert before <= page.opened_at <= waited


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("x-narrowgate-audit", ("auto", "never")),
        ("x-narrowgate-route", ("auto", "local_only")),
        ("x-narrowgate-max-cost-usd", ("100", "0.01")),
        ("x-narrowgate-deadline-s", ("60", "1")),
        ("x-narrowgate-deterministic", ("false", "true")),
        ("x-narrowgate-user", ("a", "b")),
    ],
)
@pytest.mark.parametrize("path", [TASK, CHAT])
async def test_an_option_header_that_is_sent_twice_is_refused(
    server: Server, name: str, values: tuple[str, str], path: str
) -> None:
    body = {"input": "A goal."} if path == TASK else chat_body(model="task/topic")
    for first, second in (values, values[::-1]):
        headers = [(name, first), (name.upper(), second)]
        error = assert_error(
            await server.post(path, json=body, headers=headers), 400, "invalid_request"
        )
        assert error["param"] == name
