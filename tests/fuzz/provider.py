"""Generated answers of providers in both wire formats: the record equals the bill.

Each exchange goes over HTTP and through the provider's SDK. The fake provider keeps its own bill of
it. Whatever the provider sends, and wherever either side breaks off:

- nothing but an error of our tree is raised, and everything that is returned is valid JSON;
- a request is billed at most once;
- each call is closed once; reported usage equals the bill in every class, and the worst case of a
  call with unknown usage is at least the bill;
- an answer that arrived whole is delivered whole, with one usage, in the last chunk;
- no place among a provider's concurrent calls stays taken.
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from serving.contracts.answer import Usage
from serving.contracts.errors import NarrowgateError
from serving.contracts.frontier import OutputBounds
from serving.contracts.openai import usage_from_openai
from serving.frontier.frontier import FrontierStack

from ..provider.billing import CLASSES, billed_classes
from ..provider.script import Fault, Seen
from ..provider.server import ProviderServer
from ..unit.frontier_kit import (
    ANTHROPIC,
    KEY,
    OPENAI,
    OTHER,
    PRICES,
    call,
    frontier,
    page,
    settings,
)
from ..unit.memory_ledger import BookedCall
from .rounds import Checks, parser, run_rounds

LIMIT = 400
DEADLINE_S = 60.0
TRUE_FORMS = ("plain", "floats", "no_parts", "nulls", "extras", "beside")
FALSE_FORMS = ("absent", "null", "zeros", "absurd", "negative", "text", "nan", "parts", "list")
CHANGES: dict[str, Callable[[int], Any]] = {
    "floats": float,
    "zeros": lambda _: 0,
    "absurd": lambda count: (count + 1) * 10**25,
    "negative": lambda count: -count - 1,
    "text": str,
    "nan": lambda _: float("nan"),
}
PLACES = ("last", "no_choices_key", "finish", "empty_delta", "twice", "then_zeros", "growing")
ENDS = ("whole", "whole", "whole", "early", "cut", "refused", "proxy", "error", "silence")
BODIES = (
    b"", b"null", b"[]", b"<html>Bad gateway</html>", b'{"error": "no"}', b'{"message": "no"}',
    b'{"error": {"code": 429, "message": "slow down"}}',
    b'{"detail": [{"loc": ["body"], "msg": "x"}]}',
    b'{"error": {"type": "overloaded_error"}}', b'{"error": {"code": "x", "message": 7}}', b"{",
    b'{"type": "error", "error": {"type": "rate_limit_error", "message": null}}', b"\xff\xfe",
)  # fmt: skip
WAITS = ("", "0", "0.001", "-1", "nan", "1e999", "soon", "9" * 30,
         "Wed, 21 Oct 2026 07:28:00 GMT", "Wed, 21 Oct 2026 07:28:00 +99999999999999",
         "Fri, 31 Dec 9999 23:59:59 -2359")  # fmt: skip
NOISE = (
    '"x": NaN', '"x": -Infinity', '"x": 1e999', '"x": "half \\ud83d"', '"\\udc00": 1', '"x": null',
    '"x": [[[{}]]]', '"x": ' + "9" * 60, '"provider": "p"', '"timings": {"a": 1.5}',
)  # fmt: skip


@dataclass(frozen=True)
class Exchange:
    """One request and everything that its provider does about it. Seeds choose cuts and splits."""

    target: str = OPENAI
    is_stream: bool = False
    prompt: str = "Why?"
    text: str = "Because."
    prompt_tokens: int = 3
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    output_tokens: int = 2
    form: str = "plain"
    place: str = "last"
    end: str = "whole"
    status: int = 500
    body: bytes = b""
    wait: str = ""
    noise: str = '"x": null'
    event_noise: bool = False
    line_end: str = "\n"
    cut_seed: int = 0
    split_seed: int = 0
    hang_up_after: int | None = None

    @property
    def is_anthropic(self) -> bool:
        return self.target == ANTHROPIC

    @property
    def is_told(self) -> bool:
        return self.form in TRUE_FORMS


def exchanges() -> st.SearchStrategy[Exchange]:
    text = st.text(st.sampled_from('ab é漢\n"\\😀'), max_size=40)
    return st.builds(
        Exchange,
        target=st.sampled_from((OPENAI, ANTHROPIC)),
        is_stream=st.booleans(),
        prompt=text.map(lambda words: f"Why {words}?"),
        text=text.map(lambda words: f"So {words}."),
        prompt_tokens=st.integers(3, 30),
        cached_tokens=st.integers(0, 3),
        reasoning_tokens=st.integers(0, 20),
        output_tokens=st.integers(1, 100),
        form=st.sampled_from((*TRUE_FORMS, *TRUE_FORMS, *FALSE_FORMS)),
        place=st.sampled_from(PLACES),
        end=st.sampled_from(ENDS),
        status=st.sampled_from((400, 401, 403, 404, 408, 409, 422, 429, 500, 503, 529)),
        body=st.sampled_from(BODIES),
        wait=st.sampled_from(WAITS),
        noise=st.sampled_from(NOISE),
        event_noise=st.booleans(),
        line_end=st.sampled_from(("\n", "\r\n")),
        cut_seed=st.integers(0, 10**6),
        split_seed=st.integers(0, 10**6),
        hang_up_after=st.one_of(st.none(), st.none(), st.integers(0, 4)),
    )


def truth(exchange: Exchange) -> dict[str, Any]:
    """Return the billed usage, in the provider's wire format."""
    output = exchange.output_tokens + exchange.reasoning_tokens
    if exchange.is_anthropic:
        return {
            "input_tokens": exchange.prompt_tokens,
            "cache_read_input_tokens": exchange.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            "output_tokens": output,
            "output_tokens_details": {"thinking_tokens": exchange.reasoning_tokens},
        }
    return {
        "prompt_tokens": exchange.prompt_tokens,
        "completion_tokens": output,
        "total_tokens": exchange.prompt_tokens + output,
        "prompt_tokens_details": {"cached_tokens": exchange.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": exchange.reasoning_tokens},
    }


def told(exchange: Exchange) -> Any:
    """Return the usage that the provider sends: true in one of many forms, or not credible."""
    usage = truth(exchange)
    parts = ("output_tokens_details",) if exchange.is_anthropic else ("completion_tokens_details",)
    no_reasoning = not exchange.reasoning_tokens
    if exchange.form == "no_parts" and no_reasoning:
        return {name: value for name, value in usage.items() if name not in parts}
    if exchange.form == "nulls" and no_reasoning:
        return {**usage, parts[0]: None}
    if exchange.form == "beside" and not exchange.is_anthropic and not no_reasoning:
        return {**usage, "completion_tokens": exchange.output_tokens}
    changed: dict[str, Any] = {
        "extras": {**usage, "cost": 0.1, "queue_time": None, "details": {"a": [1]}},
        "absent": None,
        "null": None,
        "parts": {**usage, parts[0]: {"reasoning_tokens": 10**6, "thinking_tokens": 10**6}},
        "list": [usage],
    }
    if exchange.form in CHANGES:
        return _each(usage, CHANGES[exchange.form])
    return changed.get(exchange.form, usage)


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, dict):
        return {name: _each(item, change) for name, item in value.items()}
    return change(value)


def whole_body(exchange: Exchange) -> bytes:
    usage = told(exchange)
    if exchange.is_anthropic:
        document: dict[str, Any] = {
            "id": "msg_1", "type": "message", "role": "assistant", "model": "m",
            "content": [{"type": "text", "text": exchange.text}], "stop_reason": "end_turn",
        }  # fmt: skip
    else:
        content: Any = exchange.text
        if exchange.place == "empty_delta":
            content = [{"type": "text", "text": exchange.text}]
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        document = {"id": "x", "object": "chat.completion", "created": 1, "choices": [choice]}
    if exchange.form != "absent":
        document["usage"] = usage
    return _noisy(document, exchange.noise).encode()


def stream_events(exchange: Exchange) -> list[str]:
    """Return the data of the stream's events."""
    words = [exchange.text[n : n + 3] for n in range(0, len(exchange.text), 3)]
    if exchange.is_anthropic:
        return _anthropic_events(exchange, words)
    chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}

    def of(delta: Any, finish: str | None = None, usage: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**chunk, "choices": [choice], **({} if usage is None else {"usage": usage})}

    usage = told(exchange)
    result: list[dict[str, Any]] = [of({"role": "assistant", "content": ""})]
    growing = exchange.place == "growing"
    for number, word in enumerate(words):
        early = {"prompt_tokens": exchange.prompt_tokens, "completion_tokens": min(number, 1)}
        result.append(of({"content": word}, usage=early if growing else None))
    result.append(of({}, "stop", usage if exchange.place == "finish" else None))
    if exchange.place == "no_choices_key":
        result.append({**chunk, "usage": usage})
    elif exchange.place == "empty_delta":
        result.append(of({}, usage=usage))
    elif exchange.place != "finish":
        result.append({**chunk, "choices": [], "usage": usage})
    if exchange.place == "twice":
        result.append({**chunk, "choices": [], "usage": usage})
    if exchange.place == "then_zeros" and isinstance(usage, dict):
        result.append({**chunk, "choices": [], "usage": _each(truth(exchange), lambda _: 0)})
    events = [_noisy(event, exchange.noise) for event in result]
    if exchange.event_noise:
        events = ['{"id": "meta"}', "[]", *events[:1], '{"choices": null}', *events[1:], '"end"']
    return [*events, "[DONE]"]


def _anthropic_events(exchange: Exchange, words: list[str]) -> list[str]:
    usage = told(exchange)
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": []}
    early = usage
    if isinstance(usage, dict) and exchange.is_told:
        early = {**usage, "output_tokens": 1, "output_tokens_details": None}
    start = {"type": "message_start", "message": {**message, "usage": early}}
    block = {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": ""},
    }
    result: list[dict[str, Any]] = [start, {"type": "ping"}, block]
    for word in words:
        delta = {"type": "text_delta", "text": word}
        result.append({"type": "content_block_delta", "index": 0, "delta": delta})
    result.append({"type": "content_block_stop", "index": 0})
    late = usage
    if exchange.is_told and exchange.place in ("finish", "empty_delta"):
        # Only what changed since the start.
        names = ("output_tokens", "output_tokens_details")
        late = {name: usage[name] for name in names if name in usage}
    end = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    result.append({**end, "usage": late})
    if exchange.place == "then_zeros" and isinstance(usage, dict):
        zeros = _each(truth(exchange), lambda _: 0)
        result.append({"type": "message_delta", "delta": {}, "usage": zeros})
    events = [_noisy(event, exchange.noise) for event in result]
    if exchange.event_noise:
        events = [*events[:1], '{"type": "news"}', "7", *events[1:]]
    return [*events, '{"type": "message_stop"}']


def _noisy(document: dict[str, Any], noise: str) -> str:
    return f"{json.dumps(document)[:-1]}, {noise}}}"


def fault(exchange: Exchange) -> Fault:
    """Return the fake provider's script for an exchange."""
    headers = {"retry-after": exchange.wait} if exchange.wait else {}
    bill = truth(exchange)
    match exchange.end:
        case "refused":
            return Fault("raw", exchange.status, headers=headers, body=(exchange.body,))
        case "proxy":
            page = (b"<html>upstream</html>",)
            status = (502, 504, 520, 524)[exchange.cut_seed % 4]
            return Fault("raw", status, headers=headers, body=page, worked=True, bill=bill)
        case "silence":
            return Fault("hang_up", 200, bill=bill)
    pieces = pieces_of(exchange)
    rng = random.Random(exchange.cut_seed)  # noqa: S311
    if exchange.end in ("early", "cut"):
        pieces = pieces[: rng.randrange(len(pieces))]
    if exchange.end == "error" and not _has_begun(exchange):
        # An error in place of an answer, with status 200.
        bill = {}
    aborts = exchange.end == "cut"
    return Fault("raw", 200, headers=headers, body=tuple(pieces), aborts=aborts, bill=bill)


def _has_begun(exchange: Exchange) -> bool:
    """Return whether a stream that ends in an error had a part of its answer before."""
    if not exchange.is_stream:
        return False
    events = stream_events(exchange)
    before = events[: exchange.cut_seed % len(events)]
    return any('"choices": [{' in event or "message_start" in event for event in before)


def pieces_of(exchange: Exchange) -> list[bytes]:
    """Return an answer's bytes, split at random."""
    if exchange.is_stream:
        end, error = exchange.line_end, '{"type": "error", "error": {"type": "api_error"}}'
        events = stream_events(exchange)
        if exchange.end == "error":
            at = exchange.cut_seed % len(events)
            events = [*events[:at], error]
        lines = (f": ping{end}{end}data: {event}{end}{end}" for event in events)
        data = "".join(lines).encode()
    elif exchange.end == "error":
        data = b'{"type": "error", "error": {"type": "api_error", "code": 500}}'
    else:
        data = whole_body(exchange)
    rng = random.Random(exchange.split_seed)  # noqa: S311
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(8)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


class Bench:
    """A fake provider, the frontier before it, and the event loop of both ends."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._server = ProviderServer(keys=[KEY])
        self._open: Any = None
        self.stack: FrontierStack

    def __enter__(self) -> "Bench":
        self._server.__enter__()
        self._runner.run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._open.__aexit__(None, None, None))
        self._runner.close()
        self._server.__exit__()

    def hold(self, exchange: Exchange) -> None:
        """Make an exchange and check every invariant of it."""
        self._runner.run(asyncio.wait_for(self._hold(exchange), 120))

    async def _start(self) -> None:
        # The result must not depend on the speed of the machine.
        provider = {"max_retries": 1, "first_byte_timeout_s": 60.0, "idle_timeout_s": 30.0}
        self._open = frontier(settings(self._server, provider))
        self.stack = await self._open.__aenter__()

    async def _hold(self, exchange: Exchange) -> None:
        server = self._server
        server.reset()
        server.script.next(fault(exchange))
        entry = page()
        message = {"role": "user", "content": exchange.prompt}
        asked = call(
            exchange.target,
            OTHER,
            entry=entry,
            body={"messages": [message]},
            bounds=OutputBounds(LIMIT),
            seconds=DEADLINE_S,
        )
        error: NarrowgateError | None = None
        text: str | None = None
        try:
            text = await (self._streamed if exchange.is_stream else self._whole)(exchange, asked)
        except NarrowgateError as raised:
            error = raised
            json.dumps([raised.message, raised.fix]).encode()
        async with asyncio.timeout(10):
            while not all(made.end for made in entry.calls):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        for provider in self.stack._providers.values():
            assert provider.places._value == provider.settings.max_concurrent, "a place is taken"
        self._check(exchange, entry.calls, server.script.seen, text, error)

    async def _whole(self, exchange: Exchange, asked: Any) -> str:
        done = await self.stack.complete(asked)
        json.dumps(done.body, allow_nan=False, ensure_ascii=False).encode()
        assert usage_from_openai(done.body["usage"]) == _summed(done.usage)
        return done.text

    async def _streamed(self, exchange: Exchange, asked: Any) -> str | None:
        stream = await self.stack.stream(asked)
        chunks: list[dict[str, Any]] = []
        async for chunk in _taken(stream.events, exchange.hang_up_after):
            json.dumps(chunk, allow_nan=False, ensure_ascii=False).encode()
            chunks.append(chunk)
        if exchange.hang_up_after is not None:
            return None
        *others, last = chunks
        assert last["choices"] == []
        assert not any("usage" in chunk for chunk in others)
        assert stream.usage is not None
        assert usage_from_openai(last["usage"]) == _summed(stream.usage)
        deltas = [choice["delta"] for chunk in others for choice in chunk["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)

    def _check(
        self,
        exchange: Exchange,
        calls: list[BookedCall],
        seen: list[Seen],
        text: str | None,
        error: NarrowgateError | None,
    ) -> None:
        assert len(calls) == len(seen)
        assert sum(request.billed is not None for request in seen) <= 1, "billed twice"
        for made, request in zip(calls, seen, strict=True):
            end, bill = made.end, billed_classes(request)
            assert end is not None
            cost = PRICES[made.model].cost(Usage(**bill))
            if end.usage_source == "reported":
                recorded = end.usage.model_dump() if end.usage else dict.fromkeys(CLASSES, 0)
                assert recorded == bill, "the record is not the bill"
            elif end.usage_source == "unknown":
                assert made.worst_case_usd >= cost, "the hold is below the bill"
                assert end.outcome != "ok" or exchange.end != "whole"
            else:
                # Where the stream ended in order, behind its text and before its usage, too.
                ended = exchange.end == "early" and exchange.is_stream
                assert ended or not exchange.is_told, "estimated although it was reported"
        if exchange.end == "whole":
            assert error is None
            assert text is None or text == exchange.text
            source = calls[0].end.usage_source if calls[0].end else None
            assert (source == "reported") == exchange.is_told


def _summed(usage: Usage) -> Usage:
    """Return a usage as OpenAI's shape can tell it: with one class of cache writes."""
    written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    return usage.model_copy(update={"cache_write_5m_tokens": written, "cache_write_1h_tokens": 0})


@asynccontextmanager
async def _closing(events: Any) -> AsyncIterator[Any]:
    try:
        yield events
    finally:
        await events.aclose()


async def _taken(events: Any, count: int | None) -> AsyncIterator[dict[str, Any]]:
    """Yield the first chunks of a stream, or all, and close it."""
    async with _closing(events):
        if count == 0:
            return
        async for chunk in events:
            yield chunk
            count = None if count is None else count - 1
            if count == 0:
                return


def checks(bench: Bench) -> Checks:
    return [(exchanges(), bench.hold)]


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--minutes", type=float, default=None, help="instead of --seconds")
    given = arguments.parse_args()
    seconds = given.seconds if given.minutes is None else 60 * given.minutes
    with Bench() as bench:
        run_rounds("provider", checks(bench), seconds, given.seed)


if __name__ == "__main__":
    main()
