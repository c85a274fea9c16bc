"""Replays conversations through the frontier to the fake provider, and reads the provider's bill.

`python -m tests.unit.prompt_cache_replay` prints the figures. Time is simulated: the provider's
cache and the gateway's policy share one clock.
"""

import asyncio
import random
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from serving.contracts.answer import Usage
from serving.contracts.prices import TokenPrices

from ..provider.billing import CLASSES, billed_classes
from ..provider.model import CHARS_PER_TOKEN, PromptCache
from ..provider.server import ProviderServer
from .frontier_kit import ANTHROPIC, OPENAI, PRICES, call, frontier, settings

SYSTEM_TOKENS = 3000
_WORDS = ("the", "order", "of", "a", "reply", "states", "which", "rule", "applies", "today")


class Clock:
    """Seconds, set by the replay."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(frozen=True, slots=True)
class Traffic:
    """A replay. turns: fewest and most of a conversation. dated: each request has its own prompt.

    pauses: seconds between the turns of a conversation, each as often as it is listed.
    """

    conversations: int = 30
    turns: tuple[int, int] = (2, 8)
    pauses: tuple[tuple[float, float], ...] = ((20, 240), (20, 240), (20, 240), (600, 2400))
    applications: int = 3
    dated: bool = False
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Bill:
    """The provider's bill of the input. uncached_usd: the same input without a cache."""

    requests: int
    tokens: dict[str, int]
    usd: Decimal
    uncached_usd: Decimal

    @property
    def read_rate(self) -> float:
        """Return the share of the input tokens that were read from the cache."""
        return self.tokens["cache_read_tokens"] / sum(self.tokens.values())

    @property
    def saved(self) -> float:
        """Return the share of the input's cost that caching saved, writes included."""
        return float(1 - self.usd / self.uncached_usd)


async def replay(server: ProviderServer, target: str, traffic: Traffic, **cache: Any) -> Bill:
    """Send the traffic to one target and return the bill of its input. server: started, unused."""
    clock = Clock()
    server.app.cache = PromptCache(clock)
    server.script.answer = lambda seen: _words(len(seen.text), 200)
    config = settings(server, prompt_cache=cache)
    async with frontier(config, clock=clock) as stack:
        histories: dict[int, list[dict[str, Any]]] = {}
        for at_s, number in _arrivals(traffic):
            clock.now_s = 1000.0 + at_s
            history = histories.setdefault(number, [_system(traffic, number)])
            history.append(_user(number, len(history)))
            body = {"messages": list(history), **_tools(number)}
            answer = await stack.complete(call(target, body=body, seconds=60.0))
            history.append({"role": "assistant", "content": answer.text})
    return _bill([billed_classes(seen) for seen in server.script.seen], PRICES[target])


def _arrivals(traffic: Traffic) -> list[tuple[float, int]]:
    """Return when each request arrives and to which conversation it belongs, in order of time."""
    draw = random.Random(traffic.seed)  # noqa: S311  # a replay
    found: list[tuple[float, int]] = []
    for number in range(traffic.conversations):
        at_s = draw.uniform(0, 3600)
        for _ in range(draw.randint(*traffic.turns)):
            found.append((at_s, number))
            at_s += draw.uniform(*draw.choice(traffic.pauses))
    return sorted(found)


def _system(traffic: Traffic, number: int) -> dict[str, Any]:
    application = number % traffic.applications
    text = _words(application, SYSTEM_TOKENS)
    date = f"It is minute {number} of the day. " if traffic.dated else ""
    return {"role": "system", "content": date + text}


def _user(number: int, turn: int) -> dict[str, Any]:
    return {"role": "user", "content": _words(f"{number} {turn}", 80)}


def _tools(number: int) -> dict[str, Any]:
    if number % 3:
        return {}
    names = ("find_order", "cancel_order", "send_letter")
    schema = {"type": "object", "properties": {"id": {"type": "string"}}}
    return {
        "tools": [
            {"type": "function", "function": {"name": n, "parameters": schema}} for n in names
        ]
    }


def _words(seed: int | str, tokens: int) -> str:
    draw, text = random.Random(seed), ""  # noqa: S311  # a replay
    while len(text) < tokens * CHARS_PER_TOKEN:
        text += f"{draw.choice(_WORDS)} "
    return text.strip() + "."


def _bill(requests: list[dict[str, int]], prices: TokenPrices) -> Bill:
    names = [name for name in CLASSES if name not in ("output_tokens", "reasoning_tokens")]
    tokens = {name: sum(classes[name] for classes in requests) for name in names}
    whole = Usage(uncached_input_tokens=sum(tokens.values()), output_tokens=0)
    paid = prices.cost(Usage(**tokens, output_tokens=0))
    return Bill(len(requests), tokens, paid, prices.cost(whole))


def _main() -> None:
    rare = Traffic(conversations=60, turns=(1, 1), dated=True)
    for name, target, traffic, automatic in (
        ("conversations, off", ANTHROPIC, Traffic(), False),
        ("conversations", ANTHROPIC, Traffic(), True),
        ("slow conversations", ANTHROPIC, Traffic(pauses=((600, 2400),)), True),
        ("one request each, dated prompts", ANTHROPIC, rare, True),
        ("conversations, OpenAI's format", OPENAI, Traffic(), True),
    ):
        with ProviderServer() as server:
            bill = asyncio.run(replay(server, target, traffic, automatic=automatic))
        print(
            f"{name}: {bill.requests} requests, {sum(bill.tokens.values()):,} input tokens, "
            f"{bill.read_rate:.1%} read, {bill.saved:.1%} of the input's cost saved; {bill.tokens}"
        )


if __name__ == "__main__":
    _main()
