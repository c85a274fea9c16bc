"""How sure a cheaper model's answer is of itself: token log-probabilities, or a second answer.

A self-check is a number without units. What it is worth is decided by a claim, whose threshold is
placed and tested on judged answers of the same cluster, model and check.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from serving.contracts.plain_number import finite_number
from serving.contracts.requests import ChatRequest
from serving.evidence.judge import agreement_of
from serving.pipeline.auditor import Embed
from serving.tiers.cascades import Check

_COMPARED_CHARS = 2_000
_ROUNDING = 1e-3


def is_checkable(request: ChatRequest, check: Check) -> bool:
    """Return whether an answer to a request can be checked: one of free text.

    Two answers at temperature 0 or with one seed are equal whether they are right or not.
    """
    fields = request.fields
    if any(fields.get(name) for name in ("tools", "functions", "logprobs")):
        return False
    if check == "logprobs":
        return True
    return fields.get("temperature") != 0 and fields.get("seed") is None


def checked_request(request: ChatRequest, check: Check) -> ChatRequest:
    """Return the request as the cheaper model gets it."""
    request = replace(request, stream=False, include_usage=False)
    if check == "logprobs":
        return replace(request, fields={**request.fields, "logprobs": True})
    return request


def without_logprobs(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an answer without the log-probabilities that its client did not ask for."""
    choices = [{**choice, "logprobs": None} for choice in document["choices"]]
    return {**document, "choices": choices}


def token_confidence(document: Mapping[str, Any]) -> float | None:
    """Return the geometric mean of the tokens' probabilities; None where there are none."""
    found = document["choices"][0].get("logprobs")
    tokens = found.get("content") if isinstance(found, Mapping) else None
    if not isinstance(tokens, list) or not tokens:
        return None
    values = [token.get("logprob") for token in tokens if isinstance(token, Mapping)]
    known = [found for value in values if (found := finite_number(value)) is not None]
    is_whole = len(known) == len(tokens)
    # What is above 0 is the logarithm of no probability; rounding may leave a little.
    if not is_whole or max(known) > _ROUNDING:
        return None
    return math.exp(min(0.0, sum(known) / len(known)))


async def agreement(one: str, other: str, embed: Embed) -> float:
    """Return how far two answers say the same, in [0, 1]: by rule, else their vectors' cosine.

    Their beginnings alone are embedded. Raises what the embedder raises.
    """
    found = agreement_of(one, other)
    if found != "undecided":
        return 1.0 if found == "same" else 0.0
    first, second = [await embed(text[:_COMPARED_CHARS]) for text in (one, other)]
    return min(1.0, max(0.0, float(first @ second)))
