"""What a request for brevity changes of the replay's answers, and what is known of their length."""

from collections.abc import Iterable, Sequence
from itertools import cycle, islice
from typing import TYPE_CHECKING

from benchmarks.replay_assumptions import Values
from benchmarks.replay_earning import TENANT, mean_tokens
from benchmarks.replay_mix import Request
from benchmarks.replay_paired import PairedRequest
from benchmarks.replay_provider import CHARS_PER_TOKEN
from serving.contracts.requests import Message
from serving.pipeline.answer_lengths import AnswerLengths, scopes_of

if TYPE_CHECKING:
    from benchmarks.replay_provider import ReplayModel

_MOST_LENGTHS = 1_000
"""Of earlier answers by model: more change the 99.5th percentile little."""


def brief_requests(requests: Sequence[Request], values: Values) -> list[PairedRequest]:
    """Return the requests whose answers a directive shortens, without repeats.

    Not the narrow ones, which get a label: a local model answers most of them. Each comparison
    counts as one unit of evidence, though that of a conversation is one for all its turns: at a
    fifth of the requests, few conversations are compared twice.
    """
    found = []
    for one in requests:
        if one.kind == "narrow" or one.is_repeat:
            continue
        output = mean_tokens(one.kind, values)
        size = sum(len(message["content"]) for message in one.messages)
        found.append(
            PairedRequest(
                one, size / CHARS_PER_TOKEN, output,
                less_output=(1.0 - values["directed"]) * output, lost=values["brief_lost"],
            )
        )  # fmt: skip
    return found


def learn_lengths(
    lengths: AnswerLengths,
    requests: Sequence[Request],
    model: "ReplayModel",
    models: Iterable[str],
    earlier: int,
) -> None:
    """Count the lengths of answers to so many earlier requests, by each `provider/model`."""
    asked = [one for one in requests if one.kind != "narrow" and not one.is_repeat]
    if not asked:
        return
    for name in models:
        tier = model.tier_of[name.partition("/")[2]]
        for one in islice(cycle(asked), min(earlier, _MOST_LENGTHS)):
            messages = [Message(m["role"], m["content"]) for m in one.messages]
            text = model.whole(one, tier, "")
            scopes = scopes_of(TENANT, name, messages)
            lengths.ended(scopes, "plain", "complete", -(-len(text) // CHARS_PER_TOKEN))
