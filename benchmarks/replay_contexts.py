"""What the pruner removes of the replay's contexts, and the claims on that."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.replay_assumptions import Values
from benchmarks.replay_earning import mean_tokens
from benchmarks.replay_mix import Request
from benchmarks.replay_paired import PairedRequest
from benchmarks.replay_provider import CHARS_PER_TOKEN
from serving.context.detection import context_places, question_of
from serving.context.pruning import Part
from serving.context.replacing import replaced, texts_at
from serving.contracts.requests import Message

if TYPE_CHECKING:
    from serving.context.lazy import LazyPruner


def pruned_requests(
    requests: Sequence[Request], values: Values, pruner: "LazyPruner"
) -> list[PairedRequest]:
    """Return the requests with contexts, without repeats, as the product prunes them. Blocking."""
    output = mean_tokens("rag", values)
    found = [one for one in requests if one.kind == "rag" and not one.is_repeat]
    return [_pruned(one, output, pruner) for one in found]


def _pruned(one: Request, output: float, pruner: "LazyPruner") -> PairedRequest:
    messages = [Message(m["role"], m["content"]) for m in one.messages]
    places = context_places(messages, (), ())
    texts = texts_at(messages, places)
    found = pruner.get().prune(question_of(messages, places), [Part(text) for text in texts])
    left = "\n".join(message.text for message in replaced(messages, places, found.texts))
    has_answer = all(any(a.casefold() in left.casefold() for a in need) for need in one.needs)
    whole = sum(len(message.text) for message in messages)
    removed = max(0, whole - len(left)) / CHARS_PER_TOKEN
    return PairedRequest(
        one,
        whole / CHARS_PER_TOKEN,
        output,
        less_input=removed,
        lost=float(not has_answer),
        is_changed=removed > 0,
    )
