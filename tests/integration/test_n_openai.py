"""The unmodified openai SDK against the stack."""

import asyncio
import json
import math

import httpx
import openai
import pytest
from pydantic import BaseModel

from .conftest import MODEL, Stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture
def sdk(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0)


def test_models(sdk: openai.OpenAI) -> None:
    names = [model.id for model in sdk.models.list()]
    assert names[0] == MODEL
    assert {"auto", "task/sentiment", "openai/gpt-6-luna"} <= set(names)
    assert sdk.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("gpt-9")


def test_chat(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=12, temperature=0, logprobs=True, top_logprobs=3
    )
    choice = answer.choices[0]
    assert choice.message.content
    assert choice.finish_reason in {"stop", "length"}
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 12
    for token in choice.logprobs.content:
        assert token.logprob <= 0.0
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(top.logprob for top in token.top_logprobs)


def test_a_chat_reads_its_special_tokens_as_the_model_does(sdk: openai.OpenAI) -> None:
    """As vLLM does, and unlike a task: docs/api.md tells applications so."""

    def prompt_tokens(text: str) -> int:
        messages = [{"role": "user", "content": text}]
        answer = sdk.chat.completions.create(model=MODEL, messages=messages, max_tokens=1)
        assert answer.usage is not None
        return int(answer.usage.prompt_tokens)

    assert prompt_tokens("Say hello." + "<|im_end|>" * 20) == prompt_tokens("Say hello.") + 20


def test_stop_and_max_tokens(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=30, temperature=0)
    text = whole.choices[0].message.content
    stop = text.split()[2]
    cut = sdk.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=30, temperature=0, stop=[stop]
    )
    assert cut.choices[0].message.content == text[: text.index(stop)]
    short = sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=2, temperature=0)
    assert short.choices[0].finish_reason == "length"


def test_a_stream_is_the_whole_answer_in_pieces(sdk: openai.OpenAI) -> None:
    arguments = {"model": MODEL, "messages": HELLO, "max_tokens": 20, "temperature": 0}
    whole = sdk.chat.completions.create(**arguments)
    with sdk.chat.completions.create(
        **arguments, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 3
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    without = list(sdk.chat.completions.create(**arguments, stream=True))
    assert all(chunk.choices and not chunk.usage for chunk in without)


class Person(BaseModel):
    """The fields that the model must fill in."""

    name: str
    age: int


def test_structured_outputs(sdk: openai.OpenAI) -> None:
    answer = sdk.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Anna is 31 years old. Reply as JSON."}],
        max_tokens=60,
        temperature=0,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": Person.model_json_schema()},
        },
    )
    content = answer.choices[0].message.content
    assert set(json.loads(content)) == {"name", "age"}
    Person.model_validate_json(content)


def test_completions(sdk: openai.OpenAI) -> None:
    answer = sdk.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=5, temperature=0
    )
    assert "Paris" in answer.choices[0].text
    pieces = sdk.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=5, temperature=0, stream=True
    )
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text


@pytest.mark.parametrize(
    ("arguments", "error", "code"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found"),
        ({"messages": []}, openai.BadRequestError, "invalid_request"),
        ({"temperature": -1}, openai.BadRequestError, "invalid_request"),
        ({"max_tokens": 10**6}, openai.BadRequestError, None),
        ({"top_logprobs": 2000, "logprobs": True}, openai.BadRequestError, "invalid_request"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, openai.BadRequestError,
         "context_length_exceeded"),
        ({"extra_body": {"chat_template": "{{ x }}"}}, openai.BadRequestError,
         "unsupported_parameter"),
        ({"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "schema": {"type": "nonsense"}}}}, openai.BadRequestError, None),
    ],
)  # fmt: skip
def test_errors_become_the_sdks_classes(
    sdk: openai.OpenAI, arguments: dict, error: type, code: str | None
) -> None:
    with pytest.raises(error) as caught:
        sdk.chat.completions.create(
            **{"model": MODEL, "messages": HELLO, "max_tokens": 4, **arguments}
        )
    body = caught.value.body
    assert set(body) == {"message", "type", "param", "code", "fix"}
    assert body["message"]
    if code is not None:
        assert body["code"] == code
    assert "Traceback" not in str(body)


def test_alternatives_are_right_while_labels_are_scored(stack: Stack) -> None:
    """Label scoring in the same engine step would replace them by padding."""
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 16, "temperature": 0,
            "logprobs": True, "top_logprobs": 4}  # fmt: skip

    async def scenario() -> tuple[dict, dict]:
        async with httpx.AsyncClient(base_url=stack.url, timeout=120) as session:
            alone = (await session.post("/v1/chat/completions", json=body)).json()
            busy = True

            async def score(number: int) -> None:
                while busy:
                    response = await session.post(
                        "/v1/tasks/sentiment", json={"input": f"It is fine, number {number}."}
                    )
                    assert response.status_code == 200

            scorers = [asyncio.create_task(score(number)) for number in range(4)]
            await asyncio.sleep(0.2)
            among = (await session.post("/v1/chat/completions", json=body)).json()
            busy = False
            await asyncio.gather(*scorers)
            return alone, among

    alone, among = asyncio.run(scenario())
    compared = 0
    for one, two in zip(
        alone["choices"][0]["logprobs"]["content"],
        among["choices"][0]["logprobs"]["content"],
        strict=True,
    ):
        if one["token"] != two["token"]:
            break  # batches round differently; from here on the texts differ
        compared += 1
        found = {top["token"]: top["logprob"] for top in two["top_logprobs"]}
        assert len(found) == 4
        assert all(math.isfinite(logprob) for logprob in found.values())
        # Greedy: the token that was taken is the likeliest one, in both.
        assert max(found, key=lambda token: found[token]) == two["token"]
        assert found[one["token"]] == pytest.approx(one["logprob"], abs=0.5)
    assert compared >= 4, "the two answers differ too early to compare anything"
