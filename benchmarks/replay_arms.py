"""The arms of the cost replay: directly to the reference, and through the stack with levers."""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.replay_assumptions import SPEEDS
from benchmarks.replay_coins import RequestCoins
from benchmarks.replay_earning import Earned
from benchmarks.replay_mix import Kind, Request
from benchmarks.replay_provider import ReplayModel, right
from benchmarks.replay_setup import UNBOUNDED, Lever, Replay
from benchmarks.replay_stack import Clock, Post, Stack
from serving.contracts.answer import Usage
from serving.contracts.routing import Tier

if TYPE_CHECKING:
    from tests.provider.script import Seen
    from tests.unit.memory_ledger import Page

_CORE_HOUR_USD = 0.05
"""Of the gateway's own processor time, which includes embedding and pruning."""


_PATIENCE = 50


class _PatientLoop(asyncio.SelectorEventLoop):
    """An event loop on which every deadline comes 50 times as late.

    The shipped parts give up in real time, as on an embedding after half a second: on a busy
    machine the reference then answers, and the figures would be the machine's.
    """

    def time(self) -> float:
        """Return the seconds of a slow clock."""
        return super().time() / _PATIENCE


@dataclass(frozen=True, slots=True)
class Result:
    """One request's outcome. usd: all its calls, and busy local time. gateway_s: measured time.

    latency_s: by the assumed speeds, without the gateway's own time. behind_usd: of usd, what was
    spent behind the request: exploring, judging, audits.
    """

    kind: Kind
    conversation: str
    usd: float
    latency_s: float
    is_right: bool
    route: str
    gateway_s: float = 0.0
    behind_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm. local_s: busy time of the replica. span_s: simulated time, for its idle cost.

    earned: what the traffic before had earned; empty without such a lever.
    """

    name: str
    levers: tuple[Lever, ...]
    results: tuple[Result, ...]
    local_s: float = 0.0
    span_s: float = 0.0
    earned: tuple[Earned, ...] = ()


def direct(replay: Replay) -> Arm:
    """Return what the client pays that sends everything to the reference, without caching."""
    from serving.frontier.anthropic_request import anthropic_request
    from tests.provider.model import PromptCache
    from tests.provider.script import Seen

    model = replay.reference.partition("/")[2]
    answers = ReplayModel(replay.requests, replay.values, replay.tier_of(), replay.topics.kinds)
    results = []
    cache = PromptCache()
    for request in replay.requests:
        body = anthropic_request(
            {"messages": [dict(m) for m in request.messages], "max_tokens": UNBOUNDED}, model
        )
        seen = Seen("anthropic", {}, body, "", "")
        answers.ask(request)
        text = answers.answer(seen)
        seen.usage = seen.billed = cache.anthropic_usage(seen, -(-len(text) // 4), 0)
        usage = _usage(seen)
        results.append(
            Result(request.kind, request.conversation, replay.usd(replay.reference, usage),
                   _latency_s(replay.start, usage), text.endswith(right(request.key)), "direct")
        )  # fmt: skip
    return Arm("direct", (), tuple(results))


def run_arm(
    replay: Replay, name: str, levers: Sequence[Lever], advance: Callable[[], None] = lambda: None
) -> Arm:
    """Return the requests' outcomes with some levers, one request at a time. Blocking."""
    from tests.provider.server import ProviderServer

    clock = Clock()
    with ProviderServer() as provider:
        model = ReplayModel(replay.requests, replay.values, replay.tier_of(), replay.topics.kinds)
        provider.script.answer = model.answer
        provider.app.cache.clock = clock
        stack = Stack(replay, levers, provider.url, clock)
        coins = RequestCoins(replay.seed)

        async def all_asked() -> list[Result]:
            results = []
            async with stack.posting() as post:
                for number, request in enumerate(replay.requests):
                    model.ask(request)
                    coins.ask(number)
                    stack.local.request = request
                    clock.now_s = Clock.now_s + request.at_s
                    seen = provider.script.seen
                    results.append(await _asked(replay, post, stack, request, number, seen))
                    advance()
            return results

        try:
            with coins.in_place(), asyncio.Runner(loop_factory=_PatientLoop) as runner:
                results = runner.run(all_asked())
        finally:
            stack.close()
    span_s = replay.requests[-1].at_s - replay.requests[0].at_s
    before = tuple(
        dataclasses.replace(found, definitions=(), rows=(), traffic={})
        for found in replay.all_before(levers)
    )
    return Arm(name, tuple(levers), tuple(results), stack.local.busy_s, span_s, before)


async def _asked(
    replay: Replay, post: Post, stack: Stack, request: Request, number: int, seen: "list[Seen]"
) -> Result:
    local, ledger = stack.local, stack.ledger
    local_before, before, pages = local.busy_s, len(seen), len(ledger.pages)
    # Whether an answer is asked for without brevity is drawn by the request's id.
    response = await post(
        {"model": "auto", "messages": list(request.messages)}, {"x-request-id": f"replay-{number}"}
    )
    assert response.status_code == 200, response.text
    text = response.json()["choices"][0]["message"]["content"]
    usd = 0.0
    for call in seen[before:]:
        provider = "anthropic" if call.api == "anthropic" else "openai"
        usd += replay.usd(f"{provider}/{call.model}", _usage(call))
    busy_s = local.busy_s - local_before
    usd += busy_s * replay.values["replica_hour_usd"] / 3600
    usd += stack.gateway_s * _CORE_HOUR_USD / 3600
    behind, waited_s = _behind(replay, ledger.pages[pages:])
    route = response.headers["x-narrowgate-route"]
    is_right = text.endswith(right(request.key))
    if route == "local":
        is_right = local.was_right
    elif route == "cache" and request.label is not None and "[" not in text:
        is_right = text == request.label
    return Result(
        request.kind, request.conversation, usd, waited_s + busy_s, is_right, route,
        stack.gateway_s, behind,
    )  # fmt: skip


def _behind(replay: Replay, pages: "Sequence[Page]") -> tuple[float, float]:
    """Return what was spent behind a request, and how long its client waited for models."""
    tiers: Mapping[str, Tier] = replay.tier_of()
    behind = waited_s = 0.0
    for page in pages:
        for call in page.calls:
            usage = None if call.end is None else call.end.usage
            if usage is None:
                continue
            if page.endpoint == "audit":
                behind += replay.usd(call.model, usage)
            else:
                waited_s += _latency_s(tiers[call.model.partition("/")[2]], usage)
    return behind, waited_s


def _usage(seen: "Seen") -> Usage:
    from tests.provider.billing import billed_classes

    return Usage(**billed_classes(seen))


def _latency_s(tier: Tier, usage: Usage) -> float:
    first_s, rate = SPEEDS[tier]
    return first_s + (usage.output_tokens + usage.reasoning_tokens) / rate
