"""A provider that keeps a stream alive, while its model reasons, is not silent."""

import asyncio
from typing import Any

import pytest

from serving.contracts.errors import FrontierStreamBroken, FrontierTimeout
from serving.frontier.provider_data import longest_stream

from ..provider.script import Fault
from ..provider.server import ProviderServer
from .frontier_kit import ANTHROPIC, OPENAI, call, frontier, page, settings
from .test_frontier_lenient import END, FIRST, LAST, source_of, text_of

COMMENT = ": PROCESSING\n\n"
PING = 'event: ping\ndata: {"type": "ping"}\n\n'
MESSAGE = [
    'data: {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 9}}}\n\n',
    'data: {"type": "content_block_delta", "index": 0, '
    '"delta": {"type": "text_delta", "text": "Hello there."}}\n\n',
    'data: {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, '
    '"usage": {"output_tokens": 4}}\n\n',
]
CHUNKS = [f"data: {each}\n\n" for each in (FIRST, END, LAST)]
IDLE = {"first_byte_timeout_s": 1.5, "idle_timeout_s": 1.5}


def slowly(*pieces: str, delay_s: float = 0.12) -> Fault:
    return Fault("raw", 200, body=tuple(piece.encode() for piece in pieces), delay_s=delay_s)


async def test_comments_and_pings_are_no_silence(provider: ProviderServer) -> None:
    bodies = {OPENAI: (COMMENT, CHUNKS, "data: [DONE]\n\n"), ANTHROPIC: (PING, MESSAGE, "")}
    for target, (alive, (first, *rest), done) in bodies.items():
        waits = [alive] * 14  # 1.7 s, longer than the silence that is allowed
        model = target.partition("/")[2]
        provider.script.on(model, slowly(*waits, first, *waits, *rest, done))
    async with frontier(settings(provider, IDLE)) as stack:

        async def answered(target: str) -> tuple[str, str]:
            entry = page()
            stream = await stack.stream(call(target, entry=entry))
            return text_of([chunk async for chunk in stream.events]), source_of(entry)

        found = await asyncio.gather(*map(answered, bodies))
    assert found == [("Hello there.", "reported")] * 2


@pytest.mark.parametrize("alive", [": never ends a line", 'data: {"x": 1}\n\n'])
async def test_an_endless_run_of_comments_ends_with_the_requests_time(
    provider: ProviderServer, alive: str
) -> None:
    endless = [alive] * 800
    provider.script.next(slowly(*endless, delay_s=0.02), slowly(CHUNKS[0], *endless, delay_s=0.02))
    idle = {"first_byte_timeout_s": 0.8, "idle_timeout_s": 0.8}
    async with frontier(settings(provider, idle)) as stack:
        with pytest.raises(FrontierTimeout):
            await stack.stream(call(OPENAI, seconds=1.6))
        entry = page()
        stream = await stack.stream(call(OPENAI, seconds=1.6, entry=entry))
        with pytest.raises(FrontierStreamBroken, match="took too long"):
            [chunk async for chunk in stream.events]
    assert source_of(entry) == "unknown"


@pytest.mark.parametrize("target", [OPENAI, ANTHROPIC])
async def test_a_stream_is_no_longer_than_its_request_allows(
    provider: ProviderServer, target: str
) -> None:
    first, *_ = CHUNKS if target == OPENAI else MESSAGE
    junk = 'data: {"choices": [], "x": "' + "y" * 2**20 + '"}\n\n'
    provider.script.next(slowly(first, *[junk] * 12, delay_s=0.0))
    entry = page()
    async with frontier(settings(provider)) as stack:
        stream = await stack.stream(call(target, seconds=60, entry=entry))
        with pytest.raises(FrontierStreamBroken, match="longer than its request allows"):
            [chunk async for chunk in stream.events]
    assert source_of(entry) == "unknown"


@pytest.mark.parametrize(
    ("request_", "kib"),
    [
        ({"max_tokens": 10}, 10),
        ({"max_completion_tokens": 10, "n": 3}, 30),
        ({"max_tokens": 10, "n": None, "logprobs": True}, 80),
    ],
)
def test_choices_and_their_probabilities_make_a_stream_longer(
    request_: dict[str, Any], kib: int
) -> None:
    assert longest_stream(request_) == 8 * 2**20 + kib * 2**10


async def test_comments_behind_a_complete_answer_do_not_hold_it_open(
    provider: ProviderServer,
) -> None:
    provider.script.next(slowly(*CHUNKS[:2], *[COMMENT] * 1000, delay_s=0.02))
    entry = page()
    async with frontier(settings(provider, IDLE)) as stack:
        stream = await stack.stream(call(OPENAI, seconds=60, entry=entry))
        chunks = [chunk async for chunk in stream.events]
    assert text_of(chunks) == "Hello there."
    # What it cost was still to come.
    assert source_of(entry) == "unknown"
    assert entry.calls[0].cost_usd is None
