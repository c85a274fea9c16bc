"""The request path: what stays local, what escalates and why; every exit is recorded once."""

import asyncio
import json
import threading
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from serving.contracts.answer import TaskRequest
from serving.contracts.engine import GenerateOutput, TokenCounts
from serving.contracts.errors import (
    FrontierStreamBroken,
    FrontierUnavailable,
    NarrowgateError,
)
from serving.contracts.routing import Decision
from serving.contracts.task_spec import TaskSpec
from serving.tasks import translation

from .chat_kit import CHAT, SENTIMENT, chat_body, hang_up, labelled, replying
from .scripted import MODEL, PAID, Server, assert_error


async def test_answers_within_their_bound_stay_local(server: Server) -> None:
    server.frontier.reply = labelled
    response = await server.post("/v1/tasks/topic", json={"input": "A text."})
    assert response.json()["route"] == "local"
    assert response.json()["reason"] == "narrow"
    assert server.frontier.calls == []


async def test_a_doubtful_answer_escalates_and_is_not_shown(server: Server) -> None:
    server.frontier.reply = labelled
    response = await server.post(SENTIMENT, json={"input": "Well."})
    answer = response.json()
    assert (answer["value"], answer["route"], answer["reason"]) == (
        "positive", "frontier", "below_threshold",
    )  # fmt: skip
    assert answer["model"] == "anthropic/claude-haiku-5-5"
    assert answer["confidence"] is None
    assert answer["label_probabilities"] is None
    assert response.headers["x-narrowgate-route"] == "frontier"
    assert response.headers["x-narrowgate-reason"] == "below_threshold"
    # The local model's attestation does not vouch for it.
    assert "x-narrowgate-attestation" not in response.headers
    (left,) = server.exits.exits
    assert left.usage == PAID
    (attempt,) = left.attempts
    assert (attempt.model, attempt.error) == (MODEL, "below_threshold")
    assert attempt.usage is not None
    assert attempt.usage.uncached_input_tokens == 7
    text = (await server.client.get("/metrics")).text
    assert 'set_aside_total{model="tiny",reason="below_threshold",task="sentiment"} 1.0' in text


async def test_without_a_key_a_doubtful_answer_is_flagged(server: Server) -> None:
    answer = (await server.post(SENTIMENT, json={"input": "Well."})).json()
    assert (answer["route"], answer["reason"]) == ("local", "below_threshold")
    assert answer["below_threshold"] is True


async def test_local_only_forbids_and_frontier_only_forces(server: Server) -> None:
    server.frontier.reply = labelled
    kept = await server.post(SENTIMENT, json={"input": "Well.", "route": "local_only"})
    assert kept.json()["route"] == "local"
    headers = {"x-narrowgate-route": "frontier_only"}
    forced = await server.post("/v1/tasks/topic", json={"input": "A text."}, headers=headers)
    assert (forced.json()["route"], forced.json()["reason"]) == ("frontier", "requested")
    assert len(server.frontier.calls) == 1
    assert server.exits.exits[-1].attempts == ()
    body = {"input": "A text.", "route": "frontier_only"}
    server.frontier.reply = None
    error = assert_error(await server.post("/v1/tasks/topic", json=body), 503,
                         "frontier_not_configured")  # fmt: skip
    assert error["fix"] == "set a key"


async def test_an_unattested_task_escalates_without_a_local_attempt(server: Server) -> None:
    server.frontier.reply = lambda call: json.dumps(
        {"entities": [{"text": "Oslo", "type": "location"}, {"text": "Rome", "type": "location"}]}
    )
    answer = (await server.post("/v1/tasks/ner", json={"input": "Ann, Oslo."})).json()
    assert answer["reason"] == "not_attested"
    assert answer["value"] == [{"text": "Oslo", "type": "location", "start": 5, "end": 9}]
    assert answer["notes"] == ["entities left out because they are not in the input: 1"]


async def test_each_input_goes_its_own_way(server: Server) -> None:
    server.frontier.reply = labelled
    body = {"inputs": ["Well.", "", 5, "Hm."]}
    response = await server.post(SENTIMENT, json=body)
    results = response.json()["results"]
    found = [item["answer"]["route"] if item["answer"] else item["error"]["code"]
             for item in results]  # fmt: skip
    assert found == ["frontier", "empty_input", "invalid_request", "frontier"]
    assert len(server.exits.exits) == 3
    assert sorted(left.route for left in server.exits.exits) == ["frontier", "frontier", "none"]


async def test_a_local_failure_escalates_and_so_does_a_full_queue(
    specs: dict[str, TaskSpec],
) -> None:
    server = await Server(specs, max_concurrent_inputs=1, max_queued_inputs=0, max_inputs=1).ready()
    server.frontier.reply = labelled
    failed = await server.post("/v1/tasks/topic", json={"input": "☠"})
    assert failed.json()["reason"] == "local_failure"
    server.engine.release.clear()
    first = asyncio.create_task(server.post("/v1/tasks/topic", json={"input": "a"}))
    while server.context.local_admission.active < 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    second = await server.post("/v1/tasks/topic", json={"input": "b"})
    assert second.json()["reason"] == "overload"
    refused = await server.post("/v1/tasks/topic", json={"input": "c", "route": "local_only"})
    assert_error(refused, 429, "queue_full")
    server.engine.release.set()
    assert (await first).json()["route"] == "local"


async def test_a_slow_local_model_leaves_time_for_the_frontier(
    specs: dict[str, TaskSpec],
) -> None:
    server = await Server(specs, max_concurrent_inputs=1, max_inputs=1).ready()
    server.frontier.reply = labelled
    server.engine.release.clear()
    first = asyncio.create_task(
        server.post("/v1/tasks/topic", json={"input": "a", "route": "local_only"})
    )
    while server.context.local_admission.active < 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    late = await server.post("/v1/tasks/topic", json={"input": "b", "deadline_s": 1})
    assert late.json()["reason"] == "deadline_at_risk"
    server.engine.release.set()
    await first


async def test_an_unusable_provider_answer_is_an_error_with_its_cost(server: Server) -> None:
    server.frontier.reply = replying("no JSON at all")
    assert_error(
        await server.post(SENTIMENT, json={"input": "Well."}), 502, "frontier_invalid_response"
    )
    (left,) = server.exits.exits
    assert [attempt.error for attempt in left.attempts] == [
        "below_threshold", "frontier_invalid_response",
    ]  # fmt: skip
    assert left.attempts[1].usage == PAID


async def test_an_unavailable_provider_is_a_503_with_retry_after(server: Server) -> None:
    server.frontier.reply = lambda call: FrontierUnavailable("down", retry_after_s=3)
    response = await server.post(SENTIMENT, json={"input": "Well."})
    assert_error(response, 503, "frontier_unavailable")
    assert response.headers["retry-after"] == "3"


async def test_options_reach_the_call(server: Server) -> None:
    server.frontier.reply = labelled
    body = {"input": "Well.", "max_cost_usd": 0.001, "deadline_s": 60}
    await server.post(SENTIMENT, json=body)
    (call,) = server.frontier.calls
    assert call.max_cost_usd == Decimal("0.001")
    assert 2 < call.deadline.remaining_s() <= 60
    assert call.purpose == "sentiment"
    assert call.bounds.max_tokens < 1000


@pytest.mark.parametrize(
    ("fields", "headers", "param"),
    [
        ({"route": "sideways"}, {}, "route"),
        ({"deadline_s": 0}, {}, "deadline_s"),
        ({"max_cost_usd": -1}, {}, "max_cost_usd"),
        ({}, {"x-narrowgate-deadline-s": "soon"}, "x-narrowgate-deadline-s"),
    ],
)
async def test_options_that_do_not_hold_are_named(
    server: Server, fields: dict[str, Any], headers: dict[str, str], param: str
) -> None:
    for path, body in ((SENTIMENT, {"input": "x"}), (CHAT, chat_body("auto"))):
        response = await server.post(path, json={**body, **fields}, headers=headers)
        assert assert_error(response, 400, "invalid_request")["param"] == param


async def test_a_chat_out_of_scope_goes_to_the_routers_tier(server: Server) -> None:
    server.frontier.reply = replying()
    response = await server.post(CHAT, json=chat_body("auto", "Write a poem.", temperature=0.5))
    assert response.json()["choices"][0]["message"]["content"] == "A long answer."
    assert response.headers["x-narrowgate-reason"] == "out_of_scope"
    assert response.headers["x-narrowgate-model"] == "anthropic/claude-sonnet-5-5"
    (call,) = server.frontier.calls
    assert call.targets == ("anthropic/claude-sonnet-5-5", "openai/gpt-6.1-sol")
    assert set(call.body) == {"messages", "temperature"}
    assert call.bounds.max_tokens == 1024
    assert call.bounds.directive == "Answer briefly: at most 512 words unless asked for more."
    (row,) = server.decisions.rows
    assert (row["reason"], row["tier"]) == ("out_of_scope", "standard")
    (left,) = server.exits.exits
    assert (left.endpoint, left.route, left.usage) == ("chat", "frontier", PAID)


async def test_without_a_key_a_chat_out_of_scope_is_503_with_the_fix(server: Server) -> None:
    response = await server.post(CHAT, json=chat_body("auto"))
    assert_error(response, 503, "frontier_not_configured")
    assert response.headers["x-should-retry"] == "false"
    (left,) = server.exits.exits
    assert (left.error, left.reason) == ("frontier_not_configured", "out_of_scope")


NARROW = Decision(TaskRequest("topic", "A text."), 0.99, None, "standard", "scripted")


async def test_a_narrow_chat_is_answered_locally(server: Server) -> None:
    server.router.decision = NARROW
    response = await server.post(CHAT, json=chat_body("auto", "What is this about? 'A text.'"))
    body = response.json()
    assert body["choices"][0]["message"]["content"] == "World"
    assert body["narrowgate"]["task"] == "topic"
    assert body["narrowgate"]["below_threshold"] is False
    assert body["usage"]["prompt_tokens"] == 10
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
    assert response.headers["x-narrowgate-route"] == "local"
    assert response.headers["x-narrowgate-attestation"] == "sha256:abc"
    (left,) = server.exits.exits
    assert (left.endpoint, left.task, left.reason) == ("chat", "topic", "narrow")


async def test_a_narrow_chat_below_its_threshold_escalates_with_the_clients_messages(
    server: Server,
) -> None:
    server.frontier.reply = replying("It is neutral.")
    server.router.decision = replace(NARROW, task=TaskRequest("sentiment", "Well."))
    response = await server.post(CHAT, json=chat_body("auto", "Sentiment of: Well."))
    assert response.json()["choices"][0]["message"]["content"] == "It is neutral."
    (call,) = server.frontier.calls
    assert call.body["messages"] == [{"role": "user", "content": "Sentiment of: Well."}]
    assert call.targets[0] == "anthropic/claude-haiku-5-5"
    (left,) = server.exits.exits
    assert (left.task, left.reason) == ("sentiment", "below_threshold")
    assert [attempt.model for attempt in left.attempts] == [MODEL]
    (row,) = server.decisions.rows
    assert (row["task"], row["reason"]) == ("sentiment", "below_threshold")


async def test_a_client_that_names_labels_gets_one_of_those(server: Server) -> None:
    named = {"World": "WORLD NEWS", "Sports": "sport"}
    server.router.decision = replace(NARROW, labels=named)
    kept = await server.post(CHAT, json=chat_body("auto"))
    assert kept.json()["choices"][0]["message"]["content"] == "WORLD NEWS"
    server.frontier.reply = replying("sport")
    server.router.decision = replace(NARROW, labels={"Sports": "sport", "Business": "money"})
    left = await server.post(CHAT, json=chat_body("auto"))
    assert left.json()["choices"][0]["message"]["content"] == "sport"
    assert left.headers["x-narrowgate-reason"] == "invalid_output"


async def test_a_task_by_name_is_a_chat_of_its_input(server: Server) -> None:
    response = await server.post(CHAT, json=chat_body("task/topic", "A text."))
    assert response.json()["choices"][0]["message"]["content"] == "World"
    server.frontier.reply = labelled
    doubtful = await server.post(CHAT, json=chat_body("task/sentiment", "Well."))
    # The task was named: the answer keeps the task's form.
    assert doubtful.json()["choices"][0]["message"]["content"] == "positive"
    assert doubtful.json()["narrowgate"]["reason"] == "below_threshold"
    german = chat_body("task/translation", "Good day.", source_language="en", target_language="de")
    assert (await server.post(CHAT, json={**german, "route": "local_only"})).status_code == 200


@pytest.mark.parametrize("route", ["local_only", "frontier_only"])
async def test_the_models_of_language_detection_are_loaded_at_need_and_not_on_the_event_loop(
    server: Server, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    loading: list[threading.Thread] = []
    load = translation._preloaded

    def watched(codes: Iterable[str]) -> Any:
        loading.append(threading.current_thread())
        return load(codes)

    monkeypatch.setattr(translation, "_preloaded", watched)
    server.frontier.reply = replying("Guten Tag.")
    body = chat_body("task/translation", "Good day.", target_language="de", route=route)
    named = await server.post(CHAT, json={**body, "source_language": "en"})
    assert (named.status_code, loading) == (200, [])
    for _ in range(2):
        assert (await server.post(CHAT, json=body)).status_code == 200
    (thread,) = loading
    assert thread is not threading.current_thread()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (chat_body("task/nope"), 404, "unknown_task"),
        (chat_body("task/topic", tools=[{"type": "function", "function": {"name": "f"}}]), 400,
         "unsupported_parameter"),
        (chat_body("task/topic", n=2), 400, "unsupported_parameter"),
        ({"model": "task/topic", "messages": [{"role": "system", "content": "x"}]}, 400,
         "invalid_request"),
        (chat_body("task/topic", ""), 400, "empty_input"),
        (chat_body("task/topic", "x", target_language="de"), 400, "unsupported_parameter"),
        (chat_body("gpt-9"), 404, "model_not_found"),
        (chat_body("somebody/gpt-9"), 404, "model_not_found"),
        (chat_body(MODEL, route="frontier_only"), 400, "invalid_request"),
        (chat_body("openai/gpt-6-luna", route="local_only"), 400, "invalid_request"),
        (chat_body("openai/gpt-6-luna"), 503, "frontier_not_configured"),
    ],
)  # fmt: skip
async def test_chats_without_a_possible_plan_are_refused_by_name(
    server: Server, body: dict[str, Any], status: int, code: str
) -> None:
    assert_error(await server.post(CHAT, json=body), status, code)
    assert [left.error for left in server.exits.exits] == [code]


async def test_an_unreadable_chat_writes_no_exit(server: Server) -> None:
    body = chat_body("task/translation", "x", target_language=5)
    assert_error(await server.post(CHAT, json=body), 400, "invalid_request")
    assert server.exits.exits == []


async def test_a_frontier_model_by_name_is_bounded_by_its_tier(server: Server) -> None:
    server.frontier.reply = replying()
    response = await server.post(CHAT, json=chat_body("openai/gpt-6-luna"))
    assert response.headers["x-narrowgate-reason"] == "requested"
    (call,) = server.frontier.calls
    assert (call.targets, call.bounds.max_tokens) == (("openai/gpt-6-luna",), 512)
    await server.post(CHAT, json=chat_body("openai/some-new-model"))
    assert server.frontier.calls[1].bounds.max_tokens == 4096


def chunks(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


async def test_a_frontier_stream_is_passed_on_and_told_at_its_end(server: Server) -> None:
    server.frontier.reply = replying("two words")
    response = await server.post(CHAT, json=chat_body("auto", stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, done = chunks(response.text)
    assert [part["choices"][0]["delta"]["content"] for part in parts] == ["two", "words"]
    assert done == "[DONE]"
    assert server.exits.exits[0].usage == PAID
    shown = await server.post(
        CHAT, json=chat_body("auto", stream=True, stream_options={"include_usage": True})
    )
    assert chunks(shown.text)[-2]["usage"]["completion_tokens"] == 5
    assert server.context.frontier_admission.active == 0
    assert server.frontier.closed == 2


async def test_a_frontier_stream_that_breaks_is_an_error_and_no_second_answer(
    server: Server,
) -> None:
    server.frontier.reply = replying("half an")
    server.frontier.breaks = FrontierStreamBroken("the provider broke off")
    response = await server.post(CHAT, json=chat_body("auto", stream=True))
    *_, last = chunks(response.text)
    assert last["error"]["code"] == "frontier_stream_broken"
    assert len(server.frontier.calls) == 1
    (left,) = server.exits.exits
    assert (left.error, left.model) == ("frontier_stream_broken", "anthropic/claude-sonnet-5-5")


async def test_a_cut_output_has_its_finish_reason(server: Server, monkeypatch: Any) -> None:
    def cut(work: Any) -> GenerateOutput:
        return GenerateOutput("Guten", (-0.1,), "length", TokenCounts(7, 3, 1))

    monkeypatch.setattr(server.engine, "_output", cut)
    body = chat_body("task/translation", "Good day.", source_language="en", target_language="de",
                 route="local_only")  # fmt: skip
    whole = (await server.post(CHAT, json=body)).json()
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["narrowgate"]["valid"] is False
    parts = chunks((await server.post(CHAT, json={**body, "stream": True})).text)
    assert parts[1]["choices"][0]["finish_reason"] == "length"


async def test_a_task_as_a_stream_is_one_event(server: Server) -> None:
    body = chat_body("task/topic", "A text.", stream=True, stream_options={"include_usage": True})
    first, last, usage, done = chunks((await server.post(CHAT, json=body)).text)
    assert first["choices"][0]["delta"]["content"] == "World"
    assert last["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["total_tokens"] == 10
    assert done == "[DONE]"


@pytest.mark.parametrize("after_bodies", [0, 1])
async def test_a_client_that_leaves_is_told_once_and_closes_upstream(
    server: Server, after_bodies: int
) -> None:
    server.frontier.reply = replying("one two three")
    await hang_up(server, chat_body("auto", stream=True), after_bodies)
    assert [left.error for left in server.exits.exits] == ["client_closed"]
    assert server.context.frontier_admission.active == 0
    if after_bodies:
        assert server.frontier.closed == 1
        assert server.exits.exits[0].model == "anthropic/claude-sonnet-5-5"


async def test_a_bug_is_told_as_one(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> list[object]:
        raise KeyError("x")

    monkeypatch.setattr(server.engine, "run", broken)
    await server.post("/v1/tasks/topic", json={"input": "x"})
    await server.post(CHAT, json=chat_body("task/topic"))
    assert [left.error for left in server.exits.exits] == [NarrowgateError.code] * 2


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"model": "auto"}, 404, "model_not_found"),
        ({"model": "openai/gpt-6-luna"}, 404, "model_not_found"),
        ({"model": MODEL, "route": "frontier_only"}, 400, "invalid_request"),
    ],
)
async def test_prompts_are_continued_only_by_local_models(
    server: Server, fields: dict[str, Any], status: int, code: str
) -> None:
    assert_error(await server.post("/v1/completions", json={"prompt": "x", **fields}), status, code)
    kept = await server.post("/v1/completions", json={"prompt": "x", "model": MODEL})
    assert kept.headers["x-narrowgate-route"] == "local"
    assert [(left.endpoint, left.error) for left in server.exits.exits] == [
        ("completions", code), ("completions", None),
    ]  # fmt: skip


async def test_a_local_stream_that_is_left_is_told_with_its_model(server: Server) -> None:
    await hang_up(server, chat_body(MODEL, stream=True), 1)
    (left,) = server.exits.exits
    assert (left.error, left.model) == ("client_closed", MODEL)
