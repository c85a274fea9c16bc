"""The model behind the replay's provider: answers of assumed length and rightness, by a seed."""

import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.replay_assumptions import Values
from benchmarks.replay_mix import Kind, Request
from serving.contracts.routing import Tier

if TYPE_CHECKING:
    from tests.provider.script import Seen

RIGHT, WRONG = "[right]", "[wrong]"
"""Ends of answers: one that is cut has neither, and counts as wrong."""

CHARS_PER_TOKEN = 4
_BRIEF = "Answer briefly"
_MOST_TOKENS = 6000


class ReplayModel:
    """Answers the replay's requests. tier_of: by the name of a model, without its provider."""

    def __init__(
        self, requests: Sequence[Request], values: Values, tier_of: Mapping[str, Tier]
    ) -> None:
        self._values = values
        self._tier_of = tier_of
        self._current: Request | None = None
        self._requests = {id(request): request for request in requests}

    def ask(self, request: Request) -> None:
        """Say which request comes next: the provider answers its calls, one at a time."""
        self._current = request

    def answer(self, seen: "Seen") -> str:
        """Return the whole answer to a call; the server cuts it at the call's own limit."""
        from serving.pipeline.bounded import CONTINUE

        assert self._current is not None
        sent = json.dumps(seen.body, ensure_ascii=False)
        whole = self.whole(self._current, self._tier_of[seen.model], sent)
        messages = seen.body["messages"]
        if CONTINUE not in json.dumps(messages[-1]):
            return whole
        begun = _text(messages[-2])
        return begun[-40:] + whole[len(begun) :]

    def whole(self, request: Request, tier: Tier, sent: str) -> str:
        """Return a tier's answer. sent: the body, in which the context may have been pruned."""
        draw = random.Random(  # noqa: S311  # a replay
            hashlib.sha256(f"{tier}\x00{request.key}".encode()).digest()
        )
        values = self._values
        tokens = math.exp(draw.gauss(math.log(values[_LENGTHS[request.kind]]), values["spread"]))
        tokens *= {"frontier": 1.0, "standard": values["wordy_standard"],
                   "economy": values["wordy_economy"]}[tier]  # fmt: skip
        if _BRIEF in sent:
            tokens *= values["directed"]
        # One draw for all tiers: what a cheaper one gets right, a dearer one does too.
        luck = random.Random(request.key).random()  # noqa: S311
        context = sent.casefold()
        holds = all(any(_quoted(a) in context for a in need) for need in request.needs)
        mark = RIGHT if holds and luck < values[f"right_{tier}"] else WRONG
        size = CHARS_PER_TOKEN * max(3, min(_MOST_TOKENS, round(tokens)))
        body = f"{draw.random()} says the answer. " * (size // 20 + 1)
        return body[: max(0, size - len(mark))] + mark


_LENGTHS: dict[Kind, str] = {
    "narrow": "narrow_tokens", "medium": "medium_tokens", "open": "open_tokens",
    "rag": "rag_tokens", "turns": "medium_tokens",
}  # fmt: skip


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1].casefold()


def _text(message: Mapping[str, Any]) -> str:
    content = message["content"]
    return str(content if isinstance(content, str) else content[0]["text"])
