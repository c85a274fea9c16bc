"""Streams of chats with known repeats, replayed through a gateway with a cache."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["new", "word for word", "outer white space", "case", "near miss"]
"""How a chat repeats an earlier one. case: only its first letter differs, so another key."""

_SKEW = 1.0
"""Exponent of Zipf's law: the n-th most frequent text comes in proportion to 1/n."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """What the cache did with one stream: hits by kind, and requests by kind."""

    name: str
    sent: Counter[Kind]
    hits: Counter[Kind]

    def document(self) -> dict[str, object]:
        """Return the shares of hits, of all requests and of each kind."""
        return {
            "stream": self.name,
            "requests": self.sent.total(),
            "intercepted": self.hits.total() / self.sent.total(),
            "by_kind": {
                kind: {"requests": count, "hits": self.hits[kind]}
                for kind, count in sorted(self.sent.items())
            },
        }


_ABOUT = ("a violin", "the tides", "a suspension bridge", "sourdough bread", "the metric system",
          "a lighthouse", "copper wire", "the alphabet", "a greenhouse", "chess")  # fmt: skip
_ASKED = ("How would you explain", "What is the history of", "Which materials make up",
          "What do people often get wrong about", "How does one take care of")  # fmt: skip


def questions(count: int, seed: int) -> list[str]:
    """Return that many distinct chats that may be cached: they name no time and no person."""
    rng = random.Random(seed)  # noqa: S311  # not for secrets
    return [
        f"{rng.choice(_ASKED)} {rng.choice(_ABOUT)} to a class of {number + 2} pupils, in the "
        f"style of lesson {seed}? Please answer in about {20 + number % 80} plain words."
        for number in range(count)
    ]


def zipf_stream(count: int, distinct: int) -> list[tuple[Kind, str]]:
    """Return chats of which the frequent ones repeat word for word."""
    numbers = random.Random(2)  # noqa: S311  # the order of a benchmark
    known = questions(distinct, seed=21)
    weights = [1 / (rank + 1) ** _SKEW for rank in range(distinct)]
    seen: set[str] = set()
    stream: list[tuple[Kind, str]] = []
    for text in numbers.choices(known, weights, k=count):
        stream.append(("word for word" if text in seen else "new", text))
        seen.add(text)
    return stream


def repeating_stream(count: int) -> list[tuple[Kind, str]]:
    """Return chats of which 30 % repeat an earlier one, a third in each way, and 30 % nearly do."""
    numbers = random.Random(3)  # noqa: S311  # the order of a benchmark
    fresh = iter(questions(count, seed=31))
    earlier: list[str] = []
    stream: list[tuple[Kind, str]] = []
    for number in range(count):
        draw = numbers.random()
        if draw >= 0.6 or not earlier:
            text = f"{number}. {next(fresh)}"
            earlier.append(text)
            stream.append(("new", text))
            continue
        text = numbers.choice(earlier)
        stream.append(_repeated(text, draw))
    return stream


def _repeated(text: str, draw: float) -> tuple[Kind, str]:
    if draw < 0.1:
        return "word for word", text
    if draw < 0.2:
        return "outer white space", f"  {text}\n"
    if draw < 0.3:
        return "case", text.swapcase()
    # The number at its start is another one.
    return "near miss", f"9{text}"


async def replay(url: str, name: str, stream: Sequence[tuple[Kind, str]], model: str) -> Replayed:
    """Send a stream, one chat after another, and count what the cache did."""
    import aiohttp

    found = Replayed(name, Counter(), Counter())
    async with aiohttp.ClientSession() as session:
        for kind, text in stream:
            body = {"model": model, "messages": [{"role": "user", "content": text}]}
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                await response.read()
                response.raise_for_status()
                state = response.headers["x-narrowgate-cache"]
            found.sent[kind] += 1
            found.hits[kind] += state == "hit"
    return found


def replay_all(url: str, requests: int, model: str) -> list[Replayed]:
    """Replay both streams, each of so many requests."""
    streams = {
        "Zipf": zipf_stream(requests, requests // 2),
        "30 % repeats, 30 % near misses": repeating_stream(requests),
    }
    return [asyncio.run(replay(url, name, stream, model)) for name, stream in streams.items()]
