"""The whole stack before a provider on a real socket: what stays, what leaves, what goes wrong."""

import json
import time
from typing import Any

import httpx
import openai
import pytest

from evals.suite import built_in_suites
from serving.tasks.catalog import load_specs

from ...provider.script import Fault, Seen
from ..conftest import Stack
from .conftest import PROVIDER_KEY, chat

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

CHAT = "/v1/chat/completions"
OPEN_ENDED = "Write a short poem about a lighthouse keeper who has lost his dog."
# The README's example, of which the bundled model is sure.
SURE = "The striker signed a new contract before the cup final on Saturday."
NARROW = f'Which topic is this news about? "{SURE}"'


def topic_texts() -> list[str]:
    (suite,) = [suite for suite in built_in_suites(load_specs(None)) if suite.name == "topic"]
    return [example.request.text for example in suite.examples[:60]]


def test_the_sure_stay_and_the_doubtful_leave(client: httpx.Client, script: Any) -> None:
    texts = topic_texts()
    local = client.post("/v1/tasks/topic", json={"inputs": texts, "route": "local_only"}).json()[
        "results"
    ]
    doubtful = [item["answer"]["below_threshold"] for item in local]
    assert {True, False} == set(doubtful)
    assert script.seen == []

    script.answer = lambda seen: json.dumps({"label": "Business"})
    routed = client.post("/v1/tasks/topic", json={"inputs": texts})
    answers = [item["answer"] for item in routed.json()["results"]]
    assert [answer["route"] == "frontier" for answer in answers] == doubtful
    assert len(script.seen) == sum(doubtful)
    assert routed.headers["x-narrowgate-route"] == "frontier,local"
    for answer, before in zip(answers, local, strict=True):
        if answer["route"] == "frontier":
            assert (answer["value"], answer["reason"]) == ("Business", "below_threshold")
            assert answer["usage"]["uncached_input_tokens"] > 0
        else:
            assert answer["value"] == before["answer"]["value"]
    seen = script.seen[0]
    assert seen.api == "anthropic"
    assert seen.body["model"] == "claude-haiku-5-5"
    assert seen.body["max_tokens"] < 1000
    assert "Business" in json.dumps(seen.body["output_config"])
    assert seen.body["thinking"] == {"type": "disabled"}


def test_a_task_without_attestation_leaves(client: httpx.Client, script: Any) -> None:
    script.answer = lambda seen: json.dumps({"label": "positive"})
    answer = client.post("/v1/tasks/sentiment", json={"input": "What an evening!"}).json()
    assert (answer["value"], answer["route"], answer["reason"]) == (
        "positive", "frontier", "not_attested",
    )  # fmt: skip
    forbidden = client.post(
        "/v1/tasks/sentiment", json={"input": "What an evening!", "route": "local_only"}
    )
    assert forbidden.status_code == 409
    assert len(script.seen) == 1


def test_auto_tells_narrow_from_open_ended(client: httpx.Client, script: Any) -> None:
    narrow = client.post(CHAT, json=chat(NARROW))
    assert narrow.headers["x-narrowgate-route"] == "local", narrow.text
    assert narrow.json()["choices"][0]["message"]["content"] == "Sports"
    assert narrow.json()["narrowgate"]["task"] == "topic"
    assert script.seen == []
    script.answer = lambda seen: "He called and called."
    poem = client.post(CHAT, json=chat(OPEN_ENDED))
    assert poem.headers["x-narrowgate-reason"] == "out_of_scope"
    assert poem.json()["choices"][0]["message"]["content"] == "He called and called."
    assert poem.json()["model"] == poem.headers["x-narrowgate-model"]


def test_the_openai_sdk_streams_a_frontier_model(routed: Stack, key: str, script: Any) -> None:
    script.answer = lambda seen: "one two three four five six"
    sdk = openai.OpenAI(base_url=f"{routed.url}/v1", api_key=key)
    for model in ("anthropic/claude-sonnet-5-5", "openai/gpt-6.1-sol"):
        parts = list(
            sdk.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "Count.---CACHE_BREAK---Now."}],
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert text == "one two three four five six"
        assert parts[-1].usage is not None
        assert parts[-1].usage.completion_tokens > 0
    assert [seen.api for seen in script.seen] == ["anthropic", "openai"]
    assert all("CACHE_BREAK" not in seen.text for seen in script.seen)


@pytest.mark.parametrize("kind", ["hang_up", "truncated"])
def test_the_sdk_does_not_repeat_a_call_that_may_have_been_billed(
    routed: Stack, key: str, script: Any, kind: Any
) -> None:
    # With its own retries, as most clients have it.
    sdk = openai.OpenAI(base_url=f"{routed.url}/v1", api_key=key)
    script.on("*", Fault(kind))
    with pytest.raises(openai.APIStatusError) as failed:
        sdk.chat.completions.create(
            model="openai/gpt-6.1-sol", messages=[{"role": "user", "content": f"Count {kind}."}]
        )
    assert failed.value.response.json()["error"]["code"] == "frontier_invalid_response"
    assert failed.value.response.headers["x-should-retry"] == "false"
    assert len(script.seen) == 1


def test_a_hang_up_cancels_upstream(client: httpx.Client, script: Any) -> None:
    script.next(Fault("slow", delay_s=0.5))
    script.answer = lambda seen: "word " * 200
    with client.stream("POST", CHAT, json=chat(OPEN_ENDED, stream=True)) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + 60
    while not script.seen[0].disconnected:
        assert time.monotonic() < deadline, "the provider still answers"
        time.sleep(0.05)
    assert not script.seen[0].completed


def test_a_failing_provider_is_followed_by_the_next(client: httpx.Client, script: Any) -> None:
    script.answer = lambda seen: "From the second."
    for model in ("claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"):
        script.on(model, Fault("status", 500))
    answered = client.post(CHAT, json=chat(OPEN_ENDED))
    assert answered.json()["choices"][0]["message"]["content"] == "From the second."
    assert answered.headers["x-narrowgate-model"].startswith("openai/")
    assert [seen.api for seen in script.seen] == ["anthropic", "anthropic", "openai"]
    assert script.completed == 1


def test_when_every_provider_fails_it_is_said(client: httpx.Client, script: Any) -> None:
    script.on("*", Fault("status", 503))
    failed = client.post(CHAT, json=chat(OPEN_ENDED))
    assert failed.status_code == 503
    assert failed.json()["error"]["code"] == "frontier_unavailable"
    # A narrow request above its threshold needs no provider.
    assert client.post(CHAT, json=chat(NARROW)).status_code == 200


def test_a_cut_stream_is_an_error_and_no_second_answer(client: httpx.Client, script: Any) -> None:
    script.next(Fault("cut", after_events=5))
    script.answer = lambda seen: "one two three four five six seven eight nine ten"
    response = client.post(CHAT, json=chat(OPEN_ENDED, stream=True))
    last = [line for line in response.text.split("\n\n") if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "frontier_stream_broken"
    assert len(script.seen) == 1


def test_the_provider_rejects_the_key(client: httpx.Client, script: Any, routed: Stack) -> None:
    script.on("*", Fault("status", 401, "invalid_api_key", "Incorrect API key provided: {key}."))
    failed = client.post(CHAT, json=chat(OPEN_ENDED))
    assert failed.status_code == 502
    assert failed.json()["error"]["code"] == "frontier_auth_failed"
    assert PROVIDER_KEY not in failed.text
    assert PROVIDER_KEY not in routed.log.read_text(encoding="utf-8", errors="replace")


def test_the_ways_are_counted(client: httpx.Client, routed: Stack, script: Any) -> None:
    client.post(CHAT, json=chat(OPEN_ENDED))
    for name in (
        'narrowgate_inputs_total{endpoint="task",outcome="answered",reason="below_threshold",'
        'route="frontier",task="topic"}',
        'narrowgate_attempts_set_aside_total{model="smollm2-135m-instruct",'
        'reason="below_threshold",task="topic"}',
        'narrowgate_frontier_calls_total{model="claude-haiku-5-5",outcome="ok",'
        'provider="anthropic"}',
    ):
        assert routed.metric(name) > 0


def test_a_lost_replica_escalates(client: httpx.Client, routed: Stack, script: Any) -> None:
    """Last: the model takes minutes to come back."""

    def label(seen: Seen) -> str:
        return json.dumps({"label": "Sports"})

    script.answer = label
    (victim,) = routed.engine_replicas()
    victim.kill()
    reasons = set()
    deadline = time.monotonic() + 60
    while "local_failure" not in reasons:
        assert time.monotonic() < deadline, reasons
        response = client.post("/v1/tasks/topic", json={"input": SURE})
        assert response.status_code == 200, response.text
        reasons.add(response.json()["reason"])
        time.sleep(0.2)
