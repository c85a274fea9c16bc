"""Streams of chats with known repeats, replayed through a gateway with a cache."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

Kind = Literal["new", "word for word", "outer white space", "case", "paraphrase", "near miss"]
"""How a chat repeats an earlier one. case: that of its letters differs, so another key."""

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
        stream.append(_repeated(text, draw, number))
    return stream


def meaning_stream(count: int) -> list[tuple[Kind, str]]:
    """Return chats of which 30 % repeat an earlier one, a third in another wording, 30 % nearly do.

    Wordings and near misses are the pairs that the project ships. Of a pair's questions the second
    comes after all first ones. count: at most 3000.
    """
    numbers = random.Random(4)  # noqa: S311  # the order of a benchmark
    repeats = count // 10
    known: set[str] = set()
    paraphrases = _pairs("paraphrases", repeats, numbers, known)
    near_misses = _pairs("changed_pairs", 3 * repeats, numbers, known)
    first = [pair["a"] for pair in paraphrases + near_misses]
    again = [numbers.choice(first) for _ in range(2 * repeats)]
    second: list[tuple[Kind, str]] = [
        *(("paraphrase", pair["b"]) for pair in paraphrases),
        *(("near miss", pair["b"]) for pair in near_misses),
        *(("word for word", text) for text in again[:repeats]),
        *(("outer white space", f"  {text}\n") for text in again[repeats:]),
    ]
    numbers.shuffle(first)
    numbers.shuffle(second)
    return [*(("new", text) for text in first), *second]


def _pairs(name: str, count: int, numbers: random.Random, known: set[str]) -> list[dict[str, str]]:
    """Return pairs whose questions are not known, and note them."""
    text = (files("serving.cache.evaluation") / f"{name}.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    numbers.shuffle(rows)
    found: list[dict[str, str]] = []
    for row in rows:
        if len(found) < count and known.isdisjoint((row["a"], row["b"])):
            known |= {row["a"], row["b"]}
            found.append(row)
    return found


def _repeated(text: str, draw: float, number: int) -> tuple[Kind, str]:
    if draw < 0.1:
        return "word for word", text
    if draw < 0.2:
        return "outer white space", f"  {text}\n"
    if draw < 0.3:
        return "case", text.swapcase()
    # The number at its start is another one, and no other near miss has it.
    return "near miss", f"{number}9{text}"


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


def replay_meaning(url: str, requests: int, model: str) -> Replayed:
    """Replay the project's pairs through a gateway that serves by meaning."""
    name = "by meaning, 30 % repeats, 30 % near misses"
    return asyncio.run(replay(url, name, meaning_stream(requests), model))


def replay_all(url: str, requests: int, model: str) -> list[Replayed]:
    """Replay both streams of equal chats, each of so many requests."""
    streams = {
        "Zipf": zipf_stream(requests, requests // 2),
        "30 % repeats, 30 % near misses": repeating_stream(requests),
    }
    return [asyncio.run(replay(url, name, stream, model)) for name, stream in streams.items()]
