"""Unusual answers of providers are read, repaired, or become the error that they name."""

import json
from typing import Any

import pytest

from serving.contracts.errors import (
    FrontierAuthFailed,
    FrontierError,
    FrontierInvalidResponse,
    FrontierQuotaExhausted,
    FrontierRateLimited,
    FrontierRejected,
    FrontierStreamBroken,
    FrontierTimeout,
    FrontierUnavailable,
    InvalidRequest,
    UnsupportedParameter,
)
from serving.contracts.openai import openai_usage
from serving.frontier.usage import input_tokens
from serving.gateway.errors import error_response

from ..provider.script import Fault
from ..provider.server import ProviderServer
from .frontier_kit import ANTHROPIC, OPENAI, OTHER, call, frontier, page, settings
from .memory_ledger import Page

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
TARGET = pytest.mark.parametrize("target", [OPENAI, ANTHROPIC])


def raw(*pieces: str, status: int = 200, **headers: str) -> Fault:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault("raw", status, headers=named, body=tuple(piece.encode() for piece in pieces))


def document(message: str, usage: Any = USAGE, choice: str = '"finish_reason": "stop"') -> str:
    return (
        f'{{"id": "x", "choices": [{{"index": 0, "message": {message}, {choice}}}], '
        f'"usage": {json.dumps(usage)}}}'
    )


def content(text: str) -> str:
    return f'{{"role": "assistant", "content": {text}}}'


def events(*documents: str) -> Fault:
    return raw(*(f"data: {each}\n\n" for each in (*documents, "[DONE]")))


def delta(text: str, finish: str = "null", more: str = "") -> str:
    return (
        f'{{"id": "x", "choices": [{{"index": 0, "delta": {{"content": {text}}}, '
        f'"finish_reason": {finish}}}]{more}}}'
    )


FIRST, END = delta('"Hello"'), delta('" there."', '"stop"')
LAST = json.dumps({"id": "x", "choices": [], "usage": USAGE})


async def whole(provider: ProviderServer, fault: Fault, target: str = OPENAI) -> tuple[Any, Page]:
    """Return the answer of a target that does so, and its ledger entry."""
    provider.script.next(fault)
    entry = page()
    async with frontier(settings(provider)) as stack:
        done = await stack.complete(call(target, entry=entry))
    json.dumps(done.body, allow_nan=False, ensure_ascii=False).encode()
    return done, entry


async def streamed(
    provider: ProviderServer, fault: Fault, target: str = OPENAI
) -> tuple[list[dict[str, Any]], Page]:
    provider.script.next(fault)
    entry = page()
    async with frontier(settings(provider)) as stack:
        stream = await stack.stream(call(target, entry=entry))
        chunks = [chunk async for chunk in stream.events]
    json.dumps(chunks, allow_nan=False, ensure_ascii=False).encode()
    return chunks, entry


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])


def source_of(entry: Page) -> str:
    (made,) = entry.calls
    assert made.end is not None
    return made.end.usage_source


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 5000])
async def test_numbers_that_json_does_not_have_become_null(
    provider: ProviderServer, number: str
) -> None:
    choice = f'"finish_reason": "stop", "logprobs": {{"content": [{{"logprob": {number}}}]}}'
    done, entry = await whole(provider, raw(document(content('"Hi"'), choice=choice)))
    assert done.body["choices"][0]["logprobs"] == {"content": [{"logprob": None}]}
    assert source_of(entry) == "reported"


async def test_half_a_surrogate_pair_is_replaced(provider: ProviderServer) -> None:
    done, _ = await whole(provider, raw(document(content('"smile \\ud83d"'))))
    assert done.text == "smile \ufffd"
    chunks, _ = await streamed(provider, events(delta('"smile \\ud83d"'), delta('"!"', '"stop"')))
    assert text_of(chunks) == "smile \ufffd!"


async def test_a_pair_that_is_split_between_two_events_is_whole(provider: ProviderServer) -> None:
    chunks, _ = await streamed(
        provider, events(delta('"a\\ud83d"'), delta('"\\ude00b"'), delta('""', '"stop"'))
    )
    assert text_of(chunks) == "a\U0001f600b"


async def test_bytes_that_are_not_utf_8_are_replaced(provider: ProviderServer) -> None:
    body = document(content('"caf?"')).encode().replace(b"?", b"\xe9")
    done, _ = await whole(provider, Fault("raw", 200, body=(body,)))
    assert done.text == "caf\ufffd"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('[{"type": "text", "text": "Bon"}, {"type": "text", "text": "jour"}]', "Bonjour"),
        ('[{"type": "image_url"}, "x", {"text": null}]', ""),
        ("null", ""),
        ("7", ""),
    ],
)
async def test_content_in_any_shape_has_a_text(
    provider: ProviderServer, given: str, expected: str
) -> None:
    done, _ = await whole(provider, raw(document(content(given))))
    assert done.text == expected


@pytest.mark.parametrize("depth", [70, 3000, 100_000])
async def test_a_document_nested_without_end_is_unreadable(
    provider: ProviderServer, depth: int
) -> None:
    deep = "[" * depth + "]" * depth
    with pytest.raises(FrontierInvalidResponse):
        await whole(provider, raw(document(content('"Hi"'), choice=f'"x": {deep}')))


ERRORS: list[tuple[str, str, type[FrontierError]]] = [
    (OPENAI, '{"error": {"code": 429, "message": "Rate limit exceeded"}}', FrontierRateLimited),
    (OPENAI, '{"error": {"code": "429"}}', FrontierRateLimited),
    (OPENAI, '{"error": {"status": "RESOURCE_EXHAUSTED"}}', FrontierRateLimited),
    (OPENAI, '{"error": {"code": 502, "message": "upstream"}}', FrontierInvalidResponse),
    (OPENAI, '{"error": {"code": 504}}', FrontierTimeout),
    (OPENAI, '{"error": {"type": "insufficient_quota"}}', FrontierQuotaExhausted),
    (OPENAI, '{"error": "overloaded"}', FrontierUnavailable),
    (OPENAI, '{"error": [{"code": 429}]}', FrontierRateLimited),
    (OPENAI, '{"error": {"code": 429.0}}', FrontierRateLimited),
    (OPENAI, '{"error": {"status_code": 429}}', FrontierRateLimited),
    (OPENAI, '{"error": {"message": "Rate limit exceeded"}}', FrontierRateLimited),
    (OPENAI, '{"error": true, "code": 429, "message": "x"}', FrontierRateLimited),
    (OPENAI, '{"errors": [{"code": 429, "message": "x"}]}', FrontierRateLimited),
    (OPENAI, '{"object": "error", "type": "RateLimitError", "code": 429}', FrontierRateLimited),
    (OPENAI, '{"object": "error", "message": "x", "code": 40303}', FrontierUnavailable),
    (OPENAI, '{"code": 429, "message": "Too many"}', FrontierRateLimited),
    (OPENAI, '{"statusCode": 401, "message": "x"}', FrontierAuthFailed),
    (OPENAI, '{"status": "error", "message": "x"}', FrontierUnavailable),
    (OPENAI, '{"detail": "Too many requests"}', FrontierRateLimited),
    (OPENAI, '{"success": false, "error_msg": "x"}', FrontierUnavailable),
    (OPENAI, '{"text": "An answer in another shape"}', FrontierInvalidResponse),
    (OPENAI, '{"message": "An answer in another shape"}', FrontierInvalidResponse),
    (ANTHROPIC, '{"error": {"code": 429}}', FrontierRateLimited),
    (ANTHROPIC, '{"code": 429, "message": "Too many"}', FrontierRateLimited),
    (ANTHROPIC, '{"message": "Rate limit exceeded"}', FrontierRateLimited),
    (ANTHROPIC, '{"message": "An answer in another shape"}', FrontierInvalidResponse),
    (ANTHROPIC, '{"type": "error", "error": {"type": "overloaded_error"}}', FrontierUnavailable),
    (ANTHROPIC, '{"type": "error", "error": {"type": "rate_limit_error"}}', FrontierRateLimited),
]


@pytest.mark.parametrize(("target", "body", "expected"), ERRORS)
async def test_an_error_with_status_200_is_the_error_that_it_names(
    provider: ProviderServer, target: str, body: str, expected: type[FrontierError]
) -> None:
    for ask in (whole, streamed):
        provider.reset()
        fault = raw(body) if ask is whole else events(body)
        with pytest.raises(FrontierError) as caught:
            await ask(provider, fault, target)
        assert type(caught.value) is expected


@TARGET
async def test_a_limit_with_status_200_is_retried_elsewhere_and_free(
    provider: ProviderServer, target: str
) -> None:
    provider.script.next(
        raw('{"type": "error", "error": {"code": 429, "type": "rate_limit_error"}}')
    )
    entry = page()
    async with frontier(settings(provider)) as stack:
        done = await stack.complete(call(target, OTHER, entry=entry))
    assert done.model == OTHER
    first = entry.calls[0].end
    assert first is not None
    assert (first.outcome, first.usage, first.usage_source) == (
        "frontier_rate_limited", None, "reported",
    )  # fmt: skip


@pytest.mark.parametrize(("usage", "source"), [(USAGE, "reported"), (None, "unknown")])
async def test_an_answer_that_ends_in_an_error_is_an_error_and_paid(
    provider: ProviderServer, usage: Any, source: str
) -> None:
    choice = '"finish_reason": "error", "error": {"code": 429, "message": "x"}'
    provider.script.next(raw(document(content('"Half an"'), usage, choice)))
    entry = page()
    async with frontier(settings(provider, {"max_retries": 2})) as stack:
        with pytest.raises(FrontierRateLimited):
            await stack.complete(call(OPENAI, OTHER, entry=entry))
    assert source_of(entry) == source


@pytest.mark.parametrize("reason", ['"error"', '"ERROR"'])
async def test_an_answer_whose_finish_reason_is_error_is_an_error(
    provider: ProviderServer, reason: str
) -> None:
    with pytest.raises(FrontierStreamBroken):
        await streamed(provider, events(FIRST, delta('""', reason)))
    with pytest.raises(FrontierUnavailable):
        await whole(
            provider, raw(document(content('"Half an"'), choice=f'"finish_reason": {reason}'))
        )


@pytest.mark.parametrize(
    ("ask", "fault"),
    [
        (whole, raw(document(content('"Half an"'), choice='"finish_reason": "error"'))),
        (whole, raw('{"error": {"code": 429}, "usage": {"prompt_tokens": 20, '
                    '"completion_tokens": 8}}')),
        (streamed, events(delta('"Hello"', '"error"'), LAST)),
        (streamed, events('{"error": {"code": 429}, "choices": [], "usage": '
                          '{"prompt_tokens": 20, "completion_tokens": 8}}')),
    ],
)  # fmt: skip
async def test_an_error_that_was_paid_for_is_not_repeated_by_anyone(
    provider: ProviderServer, ask: Any, fault: Fault
) -> None:
    with pytest.raises(FrontierError) as caught:
        await ask(provider, fault)
    assert len(provider.script.seen) == 1
    assert error_response(caught.value).headers["x-should-retry"] == "false"


async def test_usage_before_the_text_is_kept(provider: ProviderServer) -> None:
    early = json.dumps({"id": "x", "choices": [], "usage": USAGE})
    _, entry = await streamed(provider, events(early, FIRST, END))
    (made,) = entry.calls
    assert made.end is not None
    assert made.end.usage is not None
    assert input_tokens(made.end.usage) == USAGE["prompt_tokens"]
    assert made.end.usage.output_tokens >= USAGE["completion_tokens"]


@TARGET
@pytest.mark.parametrize(
    ("body", "quote"),
    [
        (
            '{"detail": [{"loc": ["body", "max_tokens"], "msg": "too large"}]}',
            "body.max_tokens: too",
        ),
        ('{"detail": "no such field"}', "no such field"),
        ('{"message": "bad temperature"}', "bad temperature"),
        ('{"error": "bad top_p"}', "bad top_p"),
        ('[{"error": {"message": "bad seed"}}]', "bad seed"),
        ('{"errors": {"top_k": ["too large"]}}', "top_k: too large"),
        ('{"message": {"text": "bad stop"}}', "bad stop"),
        ('{"error": {"msg": null, "reason": "bad user"}}', "bad user"),
        ('{"error_message": "bad n"}', "bad n"),
    ],
)
async def test_a_rejection_is_quoted_in_whatever_shape(
    provider: ProviderServer, target: str, body: str, quote: str
) -> None:
    with pytest.raises(FrontierRejected) as caught:
        await whole(provider, raw(body, status=422), target)
    assert quote in caught.value.message
    assert "Error" not in caught.value.message


@TARGET
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"detail": [{"loc": ["body", "max_tokens"], "msg": "too large"}]}', "max_tokens"),
        ('{"error": {"message": "bad", "param": "tools[0].function"}}', "tools[0].function"),
        ('{"error": {"message": "messages.0.content: is empty"}}', "messages.0.content"),
        ('{"error": {"message": "Note: this is bad", "param": "a b"}}', "messages"),
    ],
)
async def test_a_rejection_names_the_field_that_the_provider_names(
    provider: ProviderServer, target: str, body: str, field: str
) -> None:
    with pytest.raises(FrontierRejected) as caught:
        await whole(provider, raw(body, status=422), target)
    assert caught.value.field == field


@TARGET
async def test_redirects_are_not_followed(
    provider: ProviderServer, keyless_provider: ProviderServer, target: str
) -> None:
    path = "/v1/chat/completions" if target == OPENAI else "/v1/messages"
    for location in (f"{keyless_provider.url}{path}", path):
        for ask in (whole, streamed):
            provider.reset()
            with pytest.raises(FrontierUnavailable, match="redirects"):
                await ask(provider, raw("", status=307, location=location), target)
            assert len(provider.script.seen) == 1
    assert keyless_provider.script.seen == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Wed, 21 Oct 2026 07:28:00 +99999999999999", None),
        ("Fri, 31 Dec 9999 23:59:59 -2359", 86_400),
        ("999999999999", 86_400),
        ("1e300", 86_400),
        ("120", 120),
    ],
)
async def test_a_wait_without_reason_is_limited_to_a_day(
    provider: ProviderServer, value: str, expected: float | None
) -> None:
    with pytest.raises(FrontierRateLimited) as caught:
        await whole(provider, raw("{}", status=429, retry_after=value))
    assert caught.value.retry_after_s == expected


@pytest.mark.parametrize(
    "documents",
    [
        (FIRST, END, json.dumps({"id": "x", "object": "chat.completion.chunk", "usage": USAGE})),
        ('{"id": "x", "provider": "p"}', FIRST, END, LAST),
        ('{"choices": null}', "[]", '"x"', "7", FIRST, END, LAST),
        (FIRST, delta('" there."'), '{"choices": [{"finish_reason": "stop"}]}', LAST),
        (FIRST, delta('" there."'), delta("0", '"stop"').replace('{"content": 0}', "null"), LAST),
        (FIRST, delta('" there."', '"stop"', f', "usage": {json.dumps(USAGE)}')),
        (FIRST, END, delta('""', "null", f', "usage": {json.dumps(USAGE)}')),
        ('{"choices": [{"text": "Hello there.", "finish_reason": "stop"}]}', LAST),
        ('{"choices": [{"message": {"content": "Hello there."}, "finish_reason": "stop"}]}', LAST),
        (FIRST, END, LAST, LAST),
        (FIRST, END, LAST, json.dumps({"choices": [], "usage": dict.fromkeys(USAGE, 0)})),
        (FIRST, END, LAST, '{"error": {"message": "late"}}'),
        (FIRST, END, LAST, '{"broken'),
    ],
    ids=["no_choices", "metadata", "odd", "no_delta", "null_delta", "in_finish", "empty_delta",
         "text", "message", "twice", "then_zeros", "late_error", "late_garbage"],
)  # fmt: skip
async def test_a_complete_stream_is_whole_and_ends_with_its_usage(
    provider: ProviderServer, documents: tuple[str, ...]
) -> None:
    chunks, entry = await streamed(provider, events(*documents))
    assert text_of(chunks) == "Hello there."
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 13
    assert not any("usage" in chunk for chunk in chunks[:-1])
    assert source_of(entry) == "reported"


async def test_the_usage_that_a_stream_does_not_tell_is_estimated_in_its_last_chunk(
    provider: ProviderServer,
) -> None:
    chunks, entry = await streamed(provider, events(FIRST, END))
    (made,) = entry.calls
    assert made.end is not None
    assert made.end.usage is not None
    assert made.end.usage_source == "estimated"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == openai_usage(made.end.usage)


async def test_an_estimate_does_not_depend_on_how_the_answer_came(provider: ProviderServer) -> None:
    logprobs = '"finish_reason": "stop", "logprobs": {"content": [{"token": "Hello there, you"}]}'
    _, first = await whole(provider, raw(document(content('"Hello there."'), None, logprobs)))
    _, second = await streamed(provider, events(FIRST, END))
    usages = [entry.calls[0].end.usage for entry in (first, second) if entry.calls[0].end]
    assert usages[0] == usages[1]
    assert usages[0] is not None
    assert usages[0].output_tokens == 3


async def test_chinese_is_estimated_at_a_token_a_character(provider: ProviderServer) -> None:
    text = json.dumps("汉字" * 30)
    done, _ = await whole(provider, raw(document(content(text), None)))
    assert done.usage.output_tokens == 60
    # No provider bills more than the 64 tokens that the request allows.
    text = json.dumps("汉字" * 480)
    done, _ = await whole(provider, raw(document(content(text), None)))
    assert done.usage.output_tokens == 64


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 10**25, "completion_tokens": 4},
        {"prompt_tokens": 9, "completion_tokens": 5 * 10**9},
        {"prompt_tokens": 0, "completion_tokens": 0},
        {"prompt_tokens": 9, "completion_tokens": 0},
        {"prompt_tokens": 9, "completion_tokens": 4.5},
        {"prompt_tokens": True, "completion_tokens": 4},
        {"prompt_tokens": "9", "completion_tokens": 4},
        {**USAGE, "prompt_tokens_details": {"cached_tokens": -1}},
        {**USAGE, "prompt_tokens_details": {"cached_tokens": 10}},
        {**USAGE, "completion_tokens_details": {"reasoning_tokens": "4"}},
        [USAGE],
        "many",
    ],
)
async def test_usage_that_is_not_credible_is_estimated(
    provider: ProviderServer, usage: Any
) -> None:
    done, entry = await whole(provider, raw(document(content('"Hello there."'), usage)))
    assert source_of(entry) == "estimated"
    assert done.usage.output_tokens == 3
    assert done.body["usage"] == openai_usage(done.usage)
    documents = (FIRST, END, json.dumps({"choices": [], "usage": usage}))
    _, entry = await streamed(provider, events(*documents))
    assert source_of(entry) == "estimated"


async def test_counts_as_floats_are_counts(provider: ProviderServer) -> None:
    usage = {
        "prompt_tokens": 20.0,
        "completion_tokens": 4.0,
        "prompt_tokens_details": {"cached_tokens": 16.0},
    }
    done, entry = await whole(provider, raw(document(content('"Hello there."'), usage)))
    assert source_of(entry) == "reported"
    assert (done.usage.uncached_input_tokens, done.usage.cache_read_tokens) == (4, 16)


@pytest.mark.parametrize("reason", ['"pause_turn"', '"something_new"', "null"])
async def test_a_turn_that_is_not_finished_does_not_look_whole(
    provider: ProviderServer, reason: str
) -> None:
    usage = '{"input_tokens": 9, "output_tokens": 4}'
    head = '{"type": "message", "content": [{"type": "text", "text": "Hm"}]'
    body = f'{head}, "stop_reason": {reason}, "usage": {usage}}}'
    done, _ = await whole(provider, raw(body), ANTHROPIC)
    assert done.body["choices"][0]["finish_reason"] == "length"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"best_of": 5}, "best_of"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"models": ["a/b"]}, "models"),
    ({"route": "fallback"}, "route"),
    ({"plugins": [{"id": "web"}]}, "plugins"),
    ({"audio": {"voice": "x"}}, "audio"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"extra_body": {"n": 9}}, "extra_body"),
    ({"tools": [{"type": "web_search"}]}, "tools.0"),
    ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
     "messages.0.content.0"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
     "messages.0.content.0"),
    ({"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages.0.audio"),
]  # fmt: skip


@TARGET
@pytest.mark.parametrize(("body", "field"), REFUSED, ids=[field for _, field in REFUSED])
async def test_fields_that_may_raise_the_price_are_refused_by_name(
    provider: ProviderServer, target: str, body: dict[str, Any], field: str
) -> None:
    async with frontier(settings(provider)) as stack:
        for ask in (stack.complete, stack.stream):
            with pytest.raises(UnsupportedParameter) as caught:
                await ask(call(target, body=body))
            assert caught.value.field == field
    assert provider.script.seen == []


async def test_a_field_that_one_provider_allows_goes_to_that_one_only(
    provider: ProviderServer,
) -> None:
    config = settings(provider)
    other = config.providers["other"].model_copy(update={"extra_fields": ("top_a",)})
    config = config.model_copy(update={"providers": {**config.providers, "other": other}})
    async with frontier(config) as stack:
        done = await stack.complete(call(OPENAI, OTHER, body={"top_a": 0.2}))
    assert done.model == OTHER
    assert provider.script.seen[0].body["top_a"] == 0.2


@pytest.mark.parametrize("name", ["tools", "audio", "web_search_options", "models", "stop", "n"])
async def test_a_null_field_is_absent(provider: ProviderServer, name: str) -> None:
    async with frontier(settings(provider)) as stack:
        await stack.complete(call(OPENAI, body={name: None}))
    assert name not in provider.script.seen[0].body


@pytest.mark.parametrize("stop", ["\n", " ", ["END", "\t"], "", ["END", ""]])
async def test_a_stop_sequence_that_anthropic_cannot_take_is_refused(
    provider: ProviderServer, stop: Any
) -> None:
    async with frontier(settings(provider)) as stack:
        with pytest.raises(FrontierRejected) as caught:
            await stack.complete(call(ANTHROPIC, body={"stop": stop}))
    assert caught.value.field == "stop"
    assert provider.script.seen == []


@pytest.mark.parametrize("body", [{"stop": 7}, {"stop": [7]}, {"messages": "x"}, {"tools": {}}])
async def test_malformed_fields_are_refused_by_name(
    provider: ProviderServer, body: dict[str, Any]
) -> None:
    async with frontier(settings(provider)) as stack:
        with pytest.raises(InvalidRequest) as caught:
            await stack.complete(call(OPENAI, body=body))
    assert caught.value.field in body


@pytest.mark.parametrize("reason", ["5", '["stop"]', '{"a": 1}', "true"])
async def test_a_finish_reason_that_is_no_text_becomes_length(
    provider: ProviderServer, reason: str
) -> None:
    done, _ = await whole(
        provider, raw(document(content('"Half an"'), choice=f'"finish_reason": {reason}'))
    )
    assert done.body["choices"][0]["finish_reason"] == "length"
    chunks, _ = await streamed(provider, events(FIRST, delta('""', reason)))
    ends = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
    assert ends[-1] == "length"
