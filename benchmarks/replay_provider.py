"""The models behind the replay's provider: answers of assumed length and rightness, and a judge."""

import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.replay_assumptions import Values
from benchmarks.replay_mix import Kind, Request
from serving.context.pruning import MARKER
from serving.contracts.routing import Tier

if TYPE_CHECKING:
    from tests.provider.script import Seen

TopicKind = Literal["easy", "hard", "trap"]
"""Of open-ended requests: what the cheaper tiers lose there."""

CHARS_PER_TOKEN = 4
_BRIEF = "Answer briefly"
_MOST_TOKENS = 6000
_SECTION = re.compile(r"^\S{32} (FIRST|SECOND)\n(.*?)\n\S{32} END", re.DOTALL | re.MULTILINE)


def right(key: str) -> str:
    """Return the end of a right answer to a question. An answer that is cut lacks it: it is wrong.

    It names the question, so that another question's answer is wrong. In letters: by the judge's
    rules, short answers with other numbers are different.
    """
    return f"[right {_letters(key)}]"


def wrong(key: str) -> str:
    """Return the end of a wrong answer."""
    return f"[wrong {_letters(key)}]"


def lost(kind: TopicKind | None, tier: Tier, values: Values) -> float:
    """Return the share of right answers that a tier loses against the frontier's.

    kind: None for narrow requests, which are as the easy ones.
    """
    if tier == "frontier":
        return 0.0
    if kind == "trap":
        return values["trap_loss"]
    return values[f"{'hard' if kind == 'hard' else 'easy'}_{tier}"]


class ReplayModel:
    """Answers the replay's requests. tier_of: by the name of a model, without its provider.

    kinds: of topics, by the key of a request; a request that is not in it is of an easy one.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        values: Values,
        tier_of: Mapping[str, Tier],
        kinds: Mapping[str, TopicKind] | None = None,
    ) -> None:
        self._values = values
        self.tier_of = tier_of
        self._kinds = kinds or {}
        self._current: Request | None = None
        self._requests = {id(request): request for request in requests}
        self._number = 0
        self._asked: Counter[str] = Counter()

    def ask(self, request: Request) -> None:
        """Say which request comes next: the provider answers its calls, one at a time."""
        self._current = request
        self._number += 1
        self._asked.clear()

    def answer(self, seen: "Seen") -> str:
        """Return the whole answer to a call; the server cuts it at the call's own limit."""
        from serving.pipeline.bounded import CONTINUE

        assert self._current is not None
        sent = json.dumps(seen.body, ensure_ascii=False)
        if is_judging(seen):
            return self._judge(self._current, _text(seen.body["messages"][-1]))
        tier = self.tier_of[seen.model]
        whole = self.whole(self._current, tier, sent)
        messages = seen.body["messages"]
        if CONTINUE not in json.dumps(messages[-1]):
            self._asked[tier] += 1
            return whole if self._asked[tier] % 2 else self._second(self._current, whole)
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
        is_brief = _BRIEF in sent
        if is_brief:
            tokens *= values["directed"]
        # One draw for all tiers: what a cheaper one gets right, a more expensive one does too.
        luck = random.Random(request.key).random()  # noqa: S311
        context = sent.casefold()
        holds = all(any(_quoted(a) in context for a in need) for need in request.needs)
        share = values["right_frontier"] - lost(self._kinds.get(request.key), tier, values)
        is_right = holds and luck < share
        if is_brief and random.Random(f"brief {request.key}").random() < values["brief_lost"]:  # noqa: S311
            is_right = False
        mark = right(request.key) if is_right else wrong(request.key)
        size = CHARS_PER_TOKEN * max(3, min(_MOST_TOKENS, round(tokens)))
        # In other words where the request is another one: equal answers would need no judge.
        words = f"{draw.random()}{'pruned' * (MARKER in sent)}{'brief' * is_brief}"
        body = f"{_letters(words)} says the answer. " * (size // 20 + 1)
        return body[: max(0, size - len(mark))] + mark

    def _second(self, request: Request, first: str) -> str:
        """Return a model's second answer to a request: the same, or one in other words."""
        is_right = first.endswith(right(request.key))
        luck = random.Random(f"agree {request.key}").random()  # noqa: S311
        if luck < self._values["agree_right" if is_right else "agree_wrong"]:
            return first
        return f"{_letters(request.key)} is another answer. {first[25:]}"

    def _judge(self, request: Request, content: str) -> str:
        """Return the verdict on two answers, with the assumed errors of a judge.

        They are drawn by the request and by who answered what, not by the order of calls: two arms
        differ by what their levers change.
        """
        parts = dict(_SECTION.findall(content))
        values = self._values
        pair = "/".join(parts[name][:8] + parts[name][-20:] for name in ("FIRST", "SECOND"))
        errs = random.Random(f"judge/{self._number}/{pair}")  # noqa: S311  # a replay
        if errs.random() < values["slip"]:
            return _verdict(errs.choice(("first_is_weaker", "second_is_weaker")))
        first, second = (parts[name].endswith(right(request.key)) for name in ("FIRST", "SECOND"))
        if first == second:
            is_placed = errs.random() < values["place"]
            return _verdict("second_is_weaker" if is_placed else "equal")
        worse = parts["SECOND" if first else "FIRST"]
        # An answer to another question is wrong; one to this may only be weaker.
        is_own = worse.endswith(wrong(request.key))
        luck = random.Random(f"badly {request.key}").random()  # noqa: S311
        how = "weaker" if is_own and luck >= values["badly"] else "wrong"
        return _verdict(f"{'second' if first else 'first'}_is_{how}")


def is_judging(seen: "Seen") -> bool:
    """Return whether a call asks a judge."""
    return "You compare two answers to one question" in json.dumps(seen.body.get("system", ""))


_LENGTHS: dict[Kind, str] = {
    "narrow": "narrow_tokens", "medium": "medium_tokens", "open": "open_tokens",
    "rag": "rag_tokens", "turns": "medium_tokens",
}  # fmt: skip


def _verdict(verdict: str) -> str:
    return json.dumps({"verdict": verdict})


def _letters(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return "".join(chr(ord("a") + byte % 26) for byte in digest[:8])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1].casefold()


def _text(message: Mapping[str, Any]) -> str:
    content = message["content"]
    return str(content if isinstance(content, str) else content[0]["text"])
