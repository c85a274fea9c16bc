"""The HTTP application with a scripted engine: shapes, limits, errors, and no 5xx for bad input."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contracts.attestation import Verdict
from serving.contracts.engine import EngineWork
from serving.contracts.errors import EngineFailure, TaskNotAttested
from serving.contracts.task_spec import TaskSpec
from serving.gateway.http import build_http
from serving.tasks.catalog import load_specs
from serving.tasks.grant import Grant

from ..built_in_tasks import BUILT_IN_TASKS
from .attested import result
from .memory_ledger import LOCAL_COST
from .patience import GUARD_S
from .scripted import MODEL, WINDOW, Server, assert_error


@pytest.fixture
async def server(specs: dict[str, TaskSpec]) -> Server:
    return await Server(specs).ready()


async def test_one_input(server: Server) -> None:
    response = await server.post("/v1/tasks/sentiment", json={"input": "Fine."})
    assert response.status_code == 200
    assert response.headers["x-narrowgate-route"] == "local"
    answer = response.json()
    assert answer["value"] == "negative"
    assert answer["route"] == "local"
    assert answer["model"] == MODEL
    assert sum(answer["label_probabilities"].values()) == pytest.approx(1.0)
    assert answer["confidence"] == answer["label_probabilities"]["negative"]
    assert answer["usage"] == {
        "uncached_input_tokens": 7, "cache_read_tokens": 3, "cache_write_5m_tokens": 0,
        "cache_write_1h_tokens": 0, "output_tokens": 0, "reasoning_tokens": 0,
    }  # fmt: skip
    assert answer["cost_usd"] == str(LOCAL_COST)
    assert answer["calibrated_confidence"] is None


async def test_bad_inputs_do_not_spoil_the_good_ones(server: Server) -> None:
    inputs = ["good", " ", 5, None, "also good", "x" * 5000, "☠"]
    response = await server.post("/v1/tasks/sentiment", json={"inputs": inputs})
    assert response.status_code == 200
    results = response.json()["results"]
    assert [item["index"] for item in results] == list(range(7))
    codes = [item["error"]["code"] if item["error"] else "answered" for item in results]
    assert codes == [
        "answered", "empty_input", "invalid_request", "invalid_request", "answered",
        "context_length_exceeded", "engine_failure",
    ]  # fmt: skip
    assert results[2]["error"]["param"] == "inputs.2"


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "param"),
    [
        ("/v1/tasks/nope", {"input": "x"}, 404, "unknown_task", "task"),
        ("/v1/tasks/sentiment", {}, 400, "invalid_request", "input"),
        ("/v1/tasks/sentiment", {"input": "a", "inputs": ["b"]}, 400, "invalid_request", "input"),
        ("/v1/tasks/sentiment", {"inputs": []}, 400, "invalid_request", "inputs"),
        ("/v1/tasks/sentiment", {"inputs": ["x"] * 257}, 413, "too_many_inputs", "inputs"),
        ("/v1/tasks/sentiment", {"input": 3}, 400, "invalid_request", "input"),
        ("/v1/tasks/sentiment", {"input": ""}, 400, "empty_input", "input"),
        ("/v1/tasks/sentiment", {"input": "x", "colour": 1}, 400, "invalid_request", "colour"),
        ("/v1/tasks/sentiment", [1], 400, "invalid_request", None),
        ("/v1/tasks/sentiment", {"input": "y" * 5000}, 400, "context_length_exceeded", "input"),
        ("/v1/tasks/translation", {"input": "Hi"}, 400, "unknown_language", "target_language"),
        ("/v1/tasks/translation", {"input": "Hi", "target_language": "xx"}, 400,
         "unknown_language", "target_language"),
        ("/v1/chat/completions", {"model": "gpt-9", "messages": [{"role": "user", "content": "x"}]},
         404, "model_not_found", "model"),
        ("/v1/chat/completions", {"model": MODEL, "messages": []}, 400, "invalid_request",
         "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, 400, "invalid_request", "model"),
        ("/v1/chat/completions",
         {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "chat_template": "{}"},
         400, "unsupported_parameter", "chat_template"),
        ("/v1/chat/completions",
         {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "n": 17}, 400,
         "invalid_request", "n"),
        ("/v1/chat/completions",
         {"model": MODEL, "messages": [{"role": "user", "content": [
             {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]}]},
         400, "invalid_request", "messages.0.content"),
        ("/v1/completions", {"model": MODEL}, 400, "invalid_request", "prompt"),
    ],
)  # fmt: skip
async def test_bad_requests_are_refused_with_their_field(
    server: Server, path: str, body: object, status: int, code: str, param: str | None
) -> None:
    error = assert_error(await server.post(path, json=body), status, code)
    assert error["param"] == param
    assert server.engine.bodies == []


async def test_an_unknown_task_lists_the_tasks(server: Server) -> None:
    error = assert_error(await server.post("/v1/tasks/nope", json={}), 404, "unknown_task")
    assert error["fix"] == "use one of: ner, sentiment, topic, translation"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"input": }', b"\xff\xfe", b'{"input": "\xff"}', b"[" * 100_000, b"null",
     b'{"input": "\\ud800"}', b'{"input": NaN}', b'"text"'],
)  # fmt: skip
async def test_a_body_that_is_not_json_is_a_400(server: Server, content: bytes) -> None:
    response = await server.post(
        "/v1/tasks/sentiment", content=content, headers={"content-type": "application/json"}
    )
    assert_error(response, 400, "invalid_request")


async def test_unknown_paths_and_methods_have_the_same_shape(server: Server) -> None:
    assert_error(await server.client.get("/nope"), 404, "not_found")
    assert_error(await server.client.get("/v1/tasks/sentiment"), 405, "method_not_allowed")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["input", "inputs", "target_language", "source_language", "model", "messages", "prompt",
     "stream", "stop", "n", "stream_options", "logprobs"]
)  # fmt: skip
PATHS = st.sampled_from(
    ["/v1/tasks/sentiment", "/v1/tasks/translation", "/v1/tasks/ner", "/v1/chat/completions",
     "/v1/completions"]
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(PATHS, st.dictionaries(FIELDS, JSON, max_size=4))
def test_no_body_gets_a_5xx(path: str, body: dict[str, Any]) -> None:
    async def scenario() -> None:
        server = await Server(dict(load_specs(None))).ready()
        content = json.dumps(body).encode("utf-8", "surrogatepass")
        response = await server.post(
            path, content=content, headers={"content-type": "application/json"}
        )
        assert response.status_code < 500, response.text

    asyncio.run(scenario())


async def test_a_body_over_the_limit_is_refused_declared_or_not(
    specs: dict[str, TaskSpec],
) -> None:
    server = await Server(specs, max_body_bytes=2000).ready()
    declared = await server.post("/v1/tasks/sentiment", json={"input": "x" * 3000})
    assert_error(declared, 413, "body_too_large")

    async def chunks() -> AsyncIterator[bytes]:
        yield b'{"input": "'
        for _ in range(30):
            yield b"x" * 100
        yield b'"}'

    headers = {"content-type": "application/json"}
    chunked = await server.post("/v1/tasks/sentiment", content=chunks(), headers=headers)
    assert_error(chunked, 413, "body_too_large")


async def test_a_full_queue_is_429_with_retry_after(specs: dict[str, TaskSpec]) -> None:
    server = await Server(specs, max_concurrent_inputs=1, max_queued_inputs=1, max_inputs=1).ready()
    server.engine.release.clear()
    taken = [
        asyncio.create_task(server.post("/v1/tasks/sentiment", json={"input": f"t{i}"}))
        for i in range(2)
    ]
    while server.context.local_admission.queued < 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    refused = await server.post("/v1/tasks/sentiment", json={"input": "late"})
    assert_error(refused, 429, "queue_full")
    assert int(refused.headers["retry-after"]) >= 1
    server.engine.release.set()
    assert [response.status_code for response in await asyncio.gather(*taken)] == [200, 200]


async def test_before_the_model_is_loaded(specs: dict[str, TaskSpec]) -> None:
    server = Server(specs)
    response = await server.post("/v1/tasks/sentiment", json={"input": "x"})
    assert_error(response, 503, "model_starting")
    assert response.headers["retry-after"] == "5"
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}
    assert_error(await server.post("/v1/chat/completions", json=body), 503, "model_starting")
    ready = await server.client.get("/readyz")
    assert ready.json()["ledger"] == "up"
    assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
    assert (await server.client.get("/healthz")).status_code == 200


async def test_a_request_has_a_deadline(specs: dict[str, TaskSpec]) -> None:
    server = await Server(
        specs, request_timeout_s=0.5, max_concurrent_inputs=1, max_inputs=1
    ).ready()
    server.engine.release.clear()
    first = asyncio.create_task(server.post("/v1/tasks/sentiment", json={"input": "a"}))
    await asyncio.sleep(0)
    while server.context.local_admission.active < 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    second = await server.post("/v1/tasks/sentiment", json={"input": "b"})
    assert_error(second, 504, "deadline_exceeded")
    server.engine.release.set()
    await first


async def test_a_draining_server_answers_503(server: Server) -> None:
    await server.context.local_admission.drain(0.01)
    refused = await server.post("/v1/tasks/sentiment", json={"input": "x"})
    assert_error(refused, 503, "shutting_down")
    assert (await server.client.get("/readyz")).json()["status"] == "draining"


async def test_a_bug_shows_nothing_to_the_client_and_is_counted_as_500(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    hidden = "-".join(("secret", "prompt"))

    async def broken(*_: object) -> list[object]:
        raise KeyError(hidden)

    monkeypatch.setattr(server.engine, "run", broken)
    response = await server.post("/v1/tasks/sentiment", json={"input": "x"})
    assert_error(response, 500, "internal_error")
    assert hidden not in response.text
    assert response.headers["x-narrowgate-route"] == "none"
    labels = {"endpoint": "/v1/tasks/{task}", "method": "POST", "status": "500"}
    registry = server.context.metrics.registry
    assert registry.get_sample_value("narrowgate_http_requests_total", labels) == 1.0
    (failed,) = (line for line in caplog.messages if line.startswith("request_failed"))
    assert "KeyError" in failed
    assert "in broken" in failed
    assert not any(hidden in line for line in caplog.messages)
    (finished,) = (line for line in caplog.messages if line.startswith("request_finished"))
    assert "status=500" in finished


async def test_models(server: Server) -> None:
    models = (await server.client.get("/v1/models")).json()
    assert [(model["kind"], model["id"]) for model in models["data"]] == [
        ("local", MODEL),
        ("router", "auto"),
        *(("task", f"task/{name}") for name in BUILT_IN_TASKS),
        ("frontier", "anthropic/claude-haiku-5-5"), ("frontier", "openai/gpt-6-luna"),
        ("frontier", "anthropic/claude-sonnet-5-5"), ("frontier", "openai/gpt-6.1-sol"),
        ("frontier", "anthropic/claude-opus-5-5"), ("frontier", "openai/gpt-6-astra"),
    ]  # fmt: skip
    assert {model["state"] for model in models["data"] if model["kind"] == "frontier"} == {"no_key"}
    far = (await server.client.get("/v1/models/openai/gpt-6-luna")).json()
    assert (far["owned_by"], far["tiers"]) == ("openai", ["economy"])
    one = (await server.client.get(f"/v1/models/{MODEL}")).json()
    assert one["max_model_len"] == WINDOW
    assert list(one["tasks"]) == list(BUILT_IN_TASKS)
    assert_error(await server.client.get("/v1/models/other"), 404, "model_not_found")


async def test_fields_without_effect_do_not_reach_the_engine(server: Server) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "user": "u", "top_p": 1}
    assert (await server.post("/v1/chat/completions", json=body)).status_code == 200
    assert set(server.engine.bodies[0]) == {"model", "messages", "top_p"}


CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}
USAGE = (
    'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, '
    '"prompt_tokens_details": {"cached_tokens": 6}}}\n\n'
)


async def test_a_streams_usage_is_counted_and_shown_only_on_request(server: Server) -> None:
    server.engine.events = [*server.engine.events, USAGE, "data: [DONE]\n\n"]
    hidden = await server.post("/v1/chat/completions", json=CHAT)
    assert "usage" not in hidden.text
    assert hidden.text.endswith("data: [DONE]\n\n")
    assert server.engine.bodies[0]["stream_options"] == {"include_usage": True}
    shown = await server.post(
        "/v1/chat/completions", json={**CHAT, "stream_options": {"include_usage": True}}
    )
    assert USAGE in shown.text
    text = (await server.client.get("/metrics")).text
    for name, count in (("uncached_input", 6.0), ("cache_read", 12.0), ("output", 8.0)):
        assert (
            f'narrowgate_tokens_total{{class="{name}",endpoint="chat",model="tiny"}} {count}'
            in text
        )


async def test_a_stream_that_breaks_ends_in_an_error_event(server: Server) -> None:
    server.engine.fail_after_events = EngineFailure("the engine failed: OSError")
    response = await server.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 200
    last = response.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failure"
    assert server.context.local_admission.active == 0


async def test_a_client_that_leaves_before_the_first_event_gives_its_room_back(
    server: Server,
) -> None:
    app = build_http(server.context)
    body = json.dumps(CHAT).encode()
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": [
        (b"content-type", b"application/json")], "query_string": b"", "http_version": "1.1",
        "scheme": "http", "asgi": {"spec_version": "2.4"}}  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        assert server.context.local_admission.active == 1
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await app(scope, receive, send)
    assert server.context.local_admission.active == 0


async def test_metrics_hold_the_gateways_and_the_engines(server: Server) -> None:
    await server.post("/v1/tasks/sentiment", json={"input": "x"})
    await server.post("/v1/tasks/sentiment", json={"input": ""})
    text = (await server.client.get("/metrics")).text
    left = [("answered", "narrow", "local"), ("empty_input", "none", "none")]
    for outcome, reason, route in left:
        assert (
            f'narrowgate_inputs_total{{endpoint="task",outcome="{outcome}",reason="{reason}",'
            f'route="{route}",task="sentiment"}} 1.0' in text
        )
    assert (
        'narrowgate_http_requests_total{endpoint="/v1/tasks/{task}",method="POST",status="200"} 1.0'
        in text
    )
    assert 'vllm:num_requests_running{engine="0",model="tiny"} 3.0' in text
    assert 'narrowgate_model_ready{model="tiny"} 1.0' in text
    assert "python_info" not in text


async def test_the_documentation_is_served(server: Server) -> None:
    paths = (await server.client.get("/openapi.json")).json()["paths"]
    assert {"/v1/tasks/{task}", "/v1/chat/completions", "/v1/models", "/metrics"} <= set(paths)
    assert (await server.client.get("/docs")).status_code == 200


async def test_tokenizing_a_long_input_does_not_hold_the_event_loop(
    specs: dict[str, TaskSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = await Server(specs).ready()
    task = server.context.tasks["sentiment"].task
    plan = task.plan
    started, goes_on = threading.Event(), threading.Event()

    def slow(request: Any) -> EngineWork:
        started.set()
        assert goes_on.wait(GUARD_S), "the event loop waited for the tokenizer"
        return plan(request)

    monkeypatch.setattr(task, "plan", slow)
    long = asyncio.create_task(server.post("/v1/tasks/sentiment", json={"input": "long " * 2000}))
    assert await asyncio.to_thread(started.wait, GUARD_S)
    # Answered while the long input is still being tokenized.
    assert (await server.client.get("/healthz")).status_code == 200
    assert not long.done()
    goes_on.set()
    assert_error(await long, 400, "context_length_exceeded")


@pytest.fixture
async def attested(specs: dict[str, TaskSpec]) -> "Server":
    refusal = TaskNotAttested("model 'tiny' does not serve task 'ner': a reason", fix="gate it")
    grants = {
        "topic": Grant(result(specs["topic"]), "sha256:abc", None),
        "ner": Grant(result(specs["ner"], Verdict.FAIL), "sha256:abc", refusal),
    }
    return await Server(specs, grants).ready()


async def test_an_unattested_task_answers_409_with_the_reason(attested: Server) -> None:
    response = await attested.post("/v1/tasks/ner", json={"input": "Ann lives in Oslo."})
    error = assert_error(response, 409, "task_not_attested")
    assert "a reason" in error["message"]
    several = await attested.post("/v1/tasks/ner", json={"inputs": ["x", 1]})
    assert_error(several, 409, "task_not_attested")
    assert attested.context.local_admission.active == 0


async def test_answers_carry_what_is_attested(attested: Server) -> None:
    response = await attested.post("/v1/tasks/topic", json={"input": "A text."})
    answer = response.json()
    # One of three letters leads on: e^0 / (e^0 + 2 e^-2), which the map takes to its last value.
    assert answer["confidence"] == pytest.approx(0.787, abs=0.001)
    assert answer["calibrated_confidence"] == 0.95
    assert answer["below_threshold"] is False
    assert response.headers["x-narrowgate-attestation"] == "sha256:abc"
    assert "x-narrowgate-development" not in response.headers


async def test_models_tasks_and_readiness_show_what_is_attested(attested: Server) -> None:
    ready = (await attested.client.get("/readyz")).json()
    assert ready["attestation"] == "enforced"
    model = (await attested.client.get(f"/v1/models/{MODEL}")).json()
    assert ready["models"][MODEL]["tasks"] == model["tasks"]
    topic, ner = model["tasks"]["topic"], model["tasks"]["ner"]
    assert topic == {
        "served": True, "verdict": "pass", "reason": None, "metric": "macro_f1", "value": 0.8,
        "threshold": 0.9, "bound": 0.08, "coverage": 0.5, "attestation": "sha256:abc",
    }  # fmt: skip
    assert (ner["served"], ner["verdict"]) == (False, "fail")
    tasks = (await attested.client.get("/v1/tasks")).json()["data"]
    assert {task["name"]: task["attested"]["served"] for task in tasks}["ner"] is False


async def test_a_development_server_marks_every_response(specs: dict[str, TaskSpec]) -> None:
    server = await Server(specs, development=True).ready()
    for path in ("/healthz", "/readyz", "/v1/tasks", "/metrics", "/nowhere"):
        response = await server.client.get(path)
        assert response.headers["x-narrowgate-development"] == "attestation not enforced"
    assert "not enforced" in (await server.client.get("/readyz")).json()["attestation"]
    answer = (await server.post("/v1/tasks/topic", json={"input": "A text."})).json()
    assert answer["calibrated_confidence"] is None
    assert answer["below_threshold"] is None
