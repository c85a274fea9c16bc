"""Learned output bounds over HTTP: cuts are continued, lengths are learned, savings measured."""

import io
import json
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import SecretStr
from rich.console import Console

from serving.contracts.errors import LedgerUnavailable
from serving.contracts.ledger import DEFAULT_TENANT
from serving.contracts.requests import Message
from serving.gateway.metrics import Metrics
from serving.ledger.answer_lengths import AnswerLengthStore
from serving.ledger.database import Database
from serving.ledger.reports.build import build_report
from serving.ledger.reports.page import render_page
from serving.ledger.reports.query import Scope
from serving.ledger.reports.text import print_report
from serving.pipeline.answer_lengths import (
    LEAST_ANSWERS,
    AnswerLengths,
    LengthStore,
    Tally,
    bucket_of,
    longest_of,
    scopes_of,
)
from serving.pipeline.bounded import CONTINUE, Learning, drawn, without_overlap

from ..provider.script import Fault, Reply, Seen, ToolCall
from ..provider.server import ProviderServer
from .authenticated import opened
from .chat_kit import CHAT
from .frontier_kit import ANTHROPIC, OPENAI, frontier, settings
from .scripted import Server

DIRECTIVE = "Answer briefly: at most {words} words unless asked for more."
LIMIT = {OPENAI: 4096, ANTHROPIC: 1024}
"""The bounds of their tiers, tokens of four characters at the fake provider."""


def text_of(tokens: int) -> str:
    draw, text = random.Random(tokens), ""  # noqa: S311  # an answer
    while len(text) < 4 * tokens:
        text += f"{draw.randrange(10**6)} "
    return text[: 4 * tokens - 1] + "."


class Unstored:
    """A database that is unreachable until a test says otherwise."""

    def __init__(self) -> None:
        self.kept: dict[Tally, int] = {}
        self.is_unreachable = True

    def add(self, counts: Mapping[Tally, int]) -> None:
        if self.is_unreachable:
            raise LedgerUnavailable("unreachable")
        for tally, count in counts.items():
            self.kept[tally] = self.kept.get(tally, 0) + count

    def load(self, limit: int) -> Mapping[Tally, int]:
        return self.kept


@asynccontextmanager
async def server(
    provider: ProviderServer, store: LengthStore | None = None, holdout: float = 0.05
) -> AsyncIterator[Server]:
    """Serve with learned bounds; what is stored is read first, and written at the end."""
    known: list[AnswerLengths] = []

    def learning(metrics: Metrics) -> Learning:
        known.append(AnswerLengths(store, metrics))
        return Learning(known[0], holdout, DIRECTIVE, secret=b"k" * 16)

    async with frontier(settings(provider)) as stack:
        one = Server({}, frontier=stack, learning=learning)
        await known[0].start()
        yield one
        await known[0].flush()


def answering(provider: ProviderServer, whole: str, repeated: int = 40) -> None:
    """Let the model make an answer and continue it. repeated: characters of its end."""

    def answer(seen: Seen) -> str:
        messages = seen.body["messages"]
        if CONTINUE not in json.dumps(messages[-1]):
            return whole
        begun = messages[-2]["content"]
        begun = begun if isinstance(begun, str) else begun[0]["text"]
        return begun[len(begun) - repeated :] + whole[len(begun) :]

    provider.script.answer = answer


def body(model: str, *, stream: bool = False, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me everything about herring."}]
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return {"model": model, "messages": messages, **streamed, **fields}


async def asked(one: Server, document: dict[str, Any]) -> tuple[str, str, dict[str, int]]:
    """Return text, finish reason and usage, of a stream as a client reads it."""
    response = await one.client.post(CHAT, json=document)
    assert response.status_code == 200, response.text
    if not document.get("stream"):
        whole = response.json()
        (choice,) = whole["choices"]
        return choice["message"]["content"], choice["finish_reason"], whole["usage"]
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    events = [json.loads(line) for line in lines[:-1]]
    assert len({event["id"] for event in events}) == 1
    choices = [choice for event in events for choice in event["choices"]]
    finishes = [c["finish_reason"] for c in choices if c["finish_reason"]]
    assert len(finishes) == 1
    (usage,) = [event["usage"] for event in events if event.get("usage")]
    return "".join(c["delta"].get("content") or "" for c in choices), finishes[0], usage


def counted(one: Server, outcome: str) -> float:
    registry, total = one.context.metrics.registry, 0.0
    for arm in ("plain", "directed"):
        labels = {"arm": arm, "outcome": outcome}
        total += registry.get_sample_value("narrowgate_bounded_answers_total", labels) or 0.0
    return total


def test_request_ids_do_not_choose_the_holdout() -> None:
    ids = [f"r{number}" for number in range(200)]
    one, other = ([drawn(name, secret) for name in ids] for secret in (b"a" * 16, b"b" * 16))
    assert one == [drawn(name, b"a" * 16) for name in ids]
    # Ids that one process leaves out of the directive are a random share of another's.
    low = [number for number in range(200) if one[number] < 0.5]
    assert 0.25 < sum(other[number] < 0.5 for number in low) / len(low) < 0.75


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize("repeated", [0, 12, 40, 150])
async def test_an_answer_that_our_bound_cuts_is_continued(
    provider: ProviderServer, model: str, repeated: int, *, stream: bool
) -> None:
    whole = text_of(LIMIT[model] + 300)
    answering(provider, whole, repeated)
    async with server(provider) as one:
        text, finish, usage = await asked(one, body(model, stream=stream))
        # Between two words there may be a space that no model sent.
        assert text.replace(" ", "") == whole.replace(" ", "")
        assert finish == "stop"
        assert usage["completion_tokens"] == LIMIT[model] + 300 + -(-repeated // 4)
        assert (counted(one, "continued"), counted(one, "cut")) == (1, 0)
        (entry,) = one.ledger.pages
        assert [call.end.outcome for call in entry.calls if call.end] == ["ok", "ok"]
    first, second = provider.script.seen
    limits = [seen.body.get("max_completion_tokens") or seen.body["max_tokens"]
              for seen in (first, second)]  # fmt: skip
    assert limits == [LIMIT[model], 2 * LIMIT[model]]


SEAMS = {
    "list": ("- item 7: the price is ", "70 dollars\n- item 8: the price is 80 dollars\n- end"),
    "code": ("if shape.kind == '", "circle':\n    a()\nif shape.kind == 'triangle':\n    b()"),
    "lines": ('{"name": "x", "id": 1}\n{"name": "', 'y", "id": 2}\n{"name": "z", "id": 3}\n'),
    "colon": ("    elif kind == '", "here':\n        x()\n    elif kind == 'there':\n        y()"),
}
REPEATED = {"nothing": "", "quoted": '"', "omission": "... ", "said": "Sure, here is the rest:\n\n",
            "said and quoted": "Continuing from there:\n\n…"}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("seam", SEAMS)
async def test_a_continuation_that_repeats_nothing_loses_nothing(
    provider: ProviderServer, seam: str, *, stream: bool
) -> None:
    end, more = SEAMS[seam]
    begun = text_of(LIMIT[ANTHROPIC])[: 4 * LIMIT[ANTHROPIC] - len(end)] + end

    def answer(seen: Seen) -> Any:
        is_second = CONTINUE in json.dumps(seen.body["messages"][-1])
        return more if is_second else Reply(begun, finish="length")

    provider.script.answer = answer
    async with server(provider) as one:
        text, finish, _ = await asked(one, body(ANTHROPIC, stream=stream))
    assert (text, finish) == (begun + more, "stop")


@pytest.mark.parametrize("lead", REPEATED)
def test_a_repetition_is_cut_off_with_what_announces_it(lead: str) -> None:
    begun = "The herring is a fish. It swims in schools of millions, and"
    for size in (12, 30, len(begun)):
        more = REPEATED[lead] + begun[-size:] + " it eats plankton."
        assert without_overlap(begun, more) == " it eats plankton."
    # Fewer than 12 characters may be the answer's own, as a number that two lines share.
    for short in ("and", "millions, a"):
        own = f"{short} so on"
        assert without_overlap(f"It swims in {short}", own).endswith(own)
    # A line of the answer's own is none.
    for own in ("Its eyes are large:\n\n", "However, "):
        more = own + begun[-30:] + " it eats."
        assert without_overlap(begun, more).endswith(more)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_too_long_for_both_calls_says_so(
    provider: ProviderServer, *, stream: bool
) -> None:
    answering(provider, text_of(4 * LIMIT[ANTHROPIC]))
    async with server(provider) as one:
        text, finish, _ = await asked(one, body(ANTHROPIC, stream=stream))
        assert finish == "length"
        assert len(text) > 4 * 2.9 * LIMIT[ANTHROPIC]
        assert (counted(one, "continued"), counted(one, "cut")) == (0, 1)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_continuation_that_fails_leaves_what_was_paid_for(
    provider: ProviderServer, *, stream: bool
) -> None:
    whole = text_of(LIMIT[ANTHROPIC] + 300)
    answering(provider, whole)
    provider.script.next(None, Fault("status", 500))
    async with server(provider) as one:
        text, finish, _ = await asked(one, body(ANTHROPIC, stream=stream))
        assert whole.startswith(text)
        assert (len(text), finish) == (4 * LIMIT[ANTHROPIC], "length")
        assert counted(one, "cut") == 1


@pytest.mark.parametrize(
    "fault",
    [Fault("cut", after_events=120), Fault("cut", after_events=3),
     Fault("error_event", after_events=120), Fault("malformed", after_events=60)],
    ids=["late", "soon", "error", "malformed"],
)  # fmt: skip
async def test_a_continuation_that_breaks_off_ends_the_answer_there(
    provider: ProviderServer, fault: Fault
) -> None:
    whole = text_of(LIMIT[ANTHROPIC] + 300)
    answering(provider, whole)
    provider.script.next(None, fault)
    async with server(provider) as one:
        text, finish, _ = await asked(one, body(ANTHROPIC, stream=True))
        assert whole.replace(" ", "").startswith(text.replace(" ", ""))
        assert (len(text) >= 4 * LIMIT[ANTHROPIC], finish) == (True, "length")
        assert counted(one, "cut") == 1
        (entry,) = one.ledger.pages
        assert [call.end.usage_source for call in entry.calls if call.end] != ["reported"] * 2


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "second",
    [Reply(""), Reply("More.", (ToolCall("f", {}),), "tool_calls"),
     Reply("", (ToolCall("f", {}),), "tool_calls")],
    ids=["empty", "text and tool", "tool"],
)  # fmt: skip
async def test_what_continues_no_text_is_no_part_of_the_answer(
    provider: ProviderServer, second: Reply, *, stream: bool
) -> None:
    whole = text_of(LIMIT[OPENAI] + 300)

    def answer(seen: Seen) -> Any:
        return second if CONTINUE in json.dumps(seen.body["messages"][-1]) else whole

    provider.script.answer = answer
    async with server(provider) as one:
        text, finish, _ = await asked(one, body(OPENAI, stream=stream))
        assert (text, finish) == (whole[: 4 * LIMIT[OPENAI]], "length")
        assert counted(one, "cut") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_behind_reasoning_is_not_continued(
    provider: ProviderServer, *, stream: bool
) -> None:
    cut = Reply(text_of(100), finish="length", reasoning_tokens=LIMIT[OPENAI] - 100)
    provider.script.answer = lambda seen: cut
    async with server(provider) as one:
        text, finish, _ = await asked(one, body(OPENAI, stream=stream))
        assert (text, finish) == (text_of(100), "length")
        assert counted(one, "cut") == 1
    assert len(provider.script.seen) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
async def test_an_answer_that_something_else_cut_is_not_continued(
    provider: ProviderServer, model: str, *, stream: bool
) -> None:
    # A full context window, a paused turn and a reason that is not known are `length`, too.
    provider.script.answer = lambda seen: Reply("A short answer.", finish="length")
    async with server(provider) as one:
        text, finish, _ = await asked(one, body(model, stream=stream))
        assert (text, finish) == ("A short answer.", "length")
        assert counted(one, "cut") == 1
    assert len(provider.script.seen) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_clients_own_limit_is_never_continued(
    provider: ProviderServer, *, stream: bool
) -> None:
    answering(provider, text_of(600))
    async with server(provider) as one:
        text, finish, _ = await asked(one, body(ANTHROPIC, stream=stream, max_tokens=50))
        assert (len(text), finish) == (200, "length")
        assert counted(one, "cut") == 0
    assert len(provider.script.seen) == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_both_calls_together_keep_a_clients_limit(
    provider: ProviderServer, *, stream: bool
) -> None:
    limit = LIMIT[ANTHROPIC] + 100
    answering(provider, text_of(3 * LIMIT[ANTHROPIC]))
    async with server(provider) as one:
        document = body(ANTHROPIC, stream=stream, max_tokens=limit)
        _, finish, usage = await asked(one, document)
        assert (usage["completion_tokens"], finish) == (limit, "length")
    assert [seen.body["max_tokens"] for seen in provider.script.seen] == [LIMIT[ANTHROPIC], 100]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", ["", " " + "I was told to stop. " * 60], ids=["short", "long"])
async def test_a_continuation_that_is_declined_is_no_part_of_the_answer(
    provider: ProviderServer, more: str, *, stream: bool
) -> None:
    whole = text_of(LIMIT[ANTHROPIC] + 300)

    def answer(seen: Seen) -> str:
        is_second = CONTINUE in json.dumps(seen.body["messages"][-1])
        return f"I'm sorry, I can't continue.{more}" if is_second else whole

    provider.script.answer = answer
    async with server(provider) as one:
        text, finish, usage = await asked(one, body(ANTHROPIC, stream=stream))
        assert (text, finish) == (whole[: 4 * LIMIT[ANTHROPIC]], "length")
        # Both calls were paid for.
        assert usage["completion_tokens"] > LIMIT[ANTHROPIC]
        assert counted(one, "cut") == 1


FORM = {"type": "json_object"}
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": FORM},
        {"tools": TOOLS},
        {"reasoning_effort": "low"},
        {"stop": ["END"]},
        {"max_cost_usd": 0.9},
        {"deterministic": True},
    ],
    ids=lambda fields: next(iter(fields)),
)
async def test_what_cannot_be_continued_keeps_the_bounds_of_the_settings(
    provider: ProviderServer, fields: dict[str, Any]
) -> None:
    provider.script.answer = lambda seen: Reply(text_of(LIMIT[OPENAI] + 300))
    async with server(provider) as one:
        _, finish, _ = await asked(one, body(OPENAI, **fields))
        assert finish == "length"
        assert counted(one, "complete") + counted(one, "cut") == 0
    (seen,) = provider.script.seen
    assert (seen.body.get("max_completion_tokens") or seen.body["max_tokens"]) == LIMIT[OPENAI]


async def test_a_tool_call_is_no_length(provider: ProviderServer) -> None:
    provider.script.answer = lambda seen: Reply(calls=(ToolCall("f", {}),), finish="tool_calls")
    async with server(provider) as one:
        response = await one.client.post(CHAT, json=body(OPENAI))
        assert response.status_code == 200
        assert counted(one, "complete") == 0


async def test_a_client_that_leaves_during_the_continuation_ends_it(
    provider: ProviderServer,
) -> None:
    answering(provider, text_of(LIMIT[ANTHROPIC] + 5000))
    async with server(provider) as one:
        async with one.client.stream("POST", CHAT, json=body(ANTHROPIC, stream=True)) as response:
            async for _ in response.aiter_lines():
                break
        (entry,) = one.ledger.pages
        assert all(call.end is not None for call in entry.calls)


async def test_lengths_raise_the_bound_and_choose_the_words(provider: ProviderServer) -> None:
    lengths = AnswerLengths(None, Metrics())
    own = scopes_of("acme", OPENAI, [Message("system", "Be kind."), Message("user", "x")])
    other = scopes_of("globex", OPENAI, [Message("system", "Be kind.")])
    for _ in range(LEAST_ANSWERS - 1):
        lengths.ended(own, "plain", "complete", 400)
    assert lengths.words(own) is None
    assert lengths.plain_share(own, 0.05) == 0.5
    assert lengths.bound(own, 512) == 512
    lengths.ended(own, "plain", "continued", 2000)
    assert lengths.plain_share(own, 0.05) == 0.05
    # 400 tokens are 300 words; 0.7 of them are 210, of which the step below is 170.
    assert lengths.words(own) == 170
    # One in 200 was 2,000 tokens long, within 5 %.
    assert 512 <= lengths.bound(own, 512) <= 600
    for _ in range(10):
        lengths.ended(own, "plain", "continued", 2000)
    assert 2400 <= lengths.bound(own, 512) <= 2520
    assert lengths.words(other) is None
    # Other instructions of the same tenant begin with what is known of its model.
    assert lengths.words(scopes_of("acme", OPENAI, [Message("user", "x")])) == 170


@pytest.mark.parametrize("tokens", [1, 2, 99, 100, 1024, 99_999])
def test_a_bucket_holds_its_lengths_to_five_percent(tokens: int) -> None:
    assert tokens <= longest_of(bucket_of(tokens)) + 1 <= 1.05 * tokens + 2


@pytest.fixture
def database(ledger_url: SecretStr | None, state: Path) -> Iterator[Database]:
    found = opened(ledger_url, state)
    yield found
    found.close()


@pytest.fixture
def stored(database: Database) -> AnswerLengthStore:
    return AnswerLengthStore(database)


async def test_replicas_add_up_and_a_restart_keeps_it(stored: AnswerLengthStore) -> None:
    replicas = [AnswerLengths(stored, Metrics()) for _ in range(2)]
    scopes = scopes_of("acme", OPENAI, [Message("user", "x")])
    for one in replicas:
        await one.start()
        for _ in range(LEAST_ANSWERS // 2):
            one.ended(scopes, "plain", "complete", 400)
        assert one.words(scopes) is None
    for one in replicas:
        await one.flush()
    assert replicas[1].words(scopes) == 170
    again = AnswerLengths(stored, Metrics())
    await again.start()
    assert again.words(scopes) == 170
    assert again.bound(scopes, 128) == replicas[1].bound(scopes, 128)


async def test_without_a_database_nothing_is_lost_and_nothing_fails() -> None:
    store = Unstored()
    one, scopes = AnswerLengths(store, Metrics()), scopes_of("acme", OPENAI, [])
    await one.start()
    for _ in range(LEAST_ANSWERS):
        one.ended(scopes, "plain", "complete", 400)
        await one.flush()
    assert one.words(scopes) == 170
    store.is_unreachable = False
    await one.flush()
    assert sum(store.kept.values()) == 2 * LEAST_ANSWERS
    assert one.words(scopes) == 170


async def test_what_the_directive_saves_is_measured_and_reported(
    provider: ProviderServer, database: Database
) -> None:
    """A model whose answers are a quarter shorter where it is asked to be brief."""
    draw = random.Random(3)  # noqa: S311  # lengths of answers
    store = AnswerLengthStore(database)
    known = AnswerLengths(store, Metrics())
    for _ in range(500):
        size = round(draw.lognormvariate(5.6, 0.5))
        known.ended(scopes_of(DEFAULT_TENANT, OPENAI, []), "plain", "complete", size)
    await known.flush()
    directives = []

    def answer(seen: Seen) -> str:
        is_asked = "Answer briefly: at most 130 words" in json.dumps(seen.body["messages"])
        directives.append(is_asked)
        return text_of(round(draw.lognormvariate(5.6, 0.5) * (0.75 if is_asked else 1.0)))

    provider.script.answer = answer
    async with server(provider, store, holdout=0.2) as one:
        for _ in range(300):
            assert (await one.client.post(CHAT, json=body(OPENAI))).status_code == 200
    assert 0.7 < sum(directives) / 300 < 0.9
    now = datetime.now(UTC)
    report = build_report(
        database, Scope(now - timedelta(days=1), now, None), ZoneInfo("UTC"), timeout_s=60.0
    )
    found = report.output_bounds
    assert found is not None
    assert found.saved is not None
    assert found.saved_lower is not None
    assert found.saved_upper is not None
    assert found.saved_lower < 0.25 < found.saved_upper
    assert 0.15 < found.saved < 0.35
    arms = {arm.name: arm for arm in found.arms}
    assert arms["plain"].answers + arms["directed"].answers == 800
    # None of n was cut: at most 1 - 0.05 ** (1 / n) are.
    n = arms["directed"].answers
    assert arms["directed"].cut_upper == pytest.approx(1 - 0.05 ** (1 / n))
    console = Console(record=True, width=100, file=io.StringIO())
    print_report(report, console)
    assert "the directive saves" in console.export_text()
    assert "the directive saves" in render_page(report)


async def test_a_report_without_learned_bounds_says_nothing_of_them(database: Database) -> None:
    now = datetime.now(UTC)
    scope = Scope(now - timedelta(days=1), now, None)
    report = build_report(database, scope, ZoneInfo("UTC"), timeout_s=60.0)
    assert report.output_bounds is None
    assert "Output bounds" not in render_page(report)
