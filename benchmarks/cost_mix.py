"""The chats of the cost benchmark: written for it, and replayed in a mix with repeats."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal, get_args

Kind = Literal["narrow", "medium", "open"]
KINDS: tuple[Kind, ...] = get_args(Kind)

SHARES: dict[Kind, float] = {"narrow": 0.60, "medium": 0.15, "open": 0.25}
REPEATED = 0.30
"""Share of the chats of each kind that were asked before."""


@dataclass(frozen=True, slots=True)
class Text:
    """A chat of one turn. system: None without such a message."""

    kind: Kind
    text: str
    system: str | None = None

    def messages(self) -> list[dict[str, Any]]:
        """Return it as OpenAI's API wants it."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, {"role": "user", "content": self.text}]


@dataclass(frozen=True, slots=True)
class Chat:
    """One request of the replay. number: of its text. repeat: the text was asked before."""

    text: Text
    number: int
    repeat: bool


def load_texts() -> list[Text]:
    """Return the shipped chats; blocking."""
    source = files("benchmarks").joinpath("cost_texts.jsonl").read_text(encoding="utf-8")
    return [Text(**json.loads(line)) for line in source.splitlines()]


def replay(texts: Sequence[Text], requests: int, seed: int) -> list[Chat]:
    """Return so many chats in the mix's shares, in random order; a repeat follows its original.

    Raises InvalidRequest where there are too few texts.
    """
    from serving.contracts.errors import InvalidRequest

    draw = random.Random(seed)  # noqa: S311  # not for secrets
    queues: dict[Kind, list[Chat]] = {}
    for kind, count in counts(requests).items():
        numbers = [number for number, text in enumerate(texts) if text.kind == kind]
        new = count - round(count * REPEATED)
        if new > len(numbers):
            raise InvalidRequest(
                f"{requests} requests need {new} {kind} texts, and there are {len(numbers)}",
                field="requests",
                fix="ask for fewer",
            )
        queues[kind] = _queue(texts, draw.sample(numbers, new), count - new, draw)
    order = [kind for kind, queue in queues.items() for _ in queue]
    draw.shuffle(order)
    return [queues[kind].pop(0) for kind in order]


def counts(requests: int) -> dict[Kind, int]:
    """Return how many chats of each kind there are among so many."""
    found: dict[Kind, int] = {kind: round(requests * SHARES[kind]) for kind in KINDS}
    found["open"] += requests - sum(found.values())
    return found


def _queue(
    texts: Sequence[Text], numbers: Sequence[int], repeats: int, draw: random.Random
) -> list[Chat]:
    """Return one kind's chats in order, a new one first."""
    fresh = iter(numbers)
    flags = [False] * (len(numbers) - 1) + [True] * repeats
    draw.shuffle(flags)
    queue: list[Chat] = []
    for repeat in [False, *flags] if numbers else []:
        number = draw.choice(queue).number if repeat else next(fresh)
        queue.append(Chat(texts[number], number, repeat))
    return queue
