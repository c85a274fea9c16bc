"""Writes a reply in OpenAI's shapes: a document, or chunks as server-sent events."""

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

from serving.contracts.answer import Answer, CacheHit, Route, Value
from serving.contracts.context import RequestContext
from serving.contracts.errors import NarrowgateError
from serving.contracts.evidence import Guarantee
from serving.contracts.openai import json_text, openai_usage
from serving.contracts.requests import ChatRequest, CompletionRequest, TaskBatch
from serving.contracts.routing import Reason
from serving.pipeline.exit_recorder import Outcome, OutcomeStream
from serving.pipeline.plan import Plan, TaskPlan
from serving.pipeline.stream_document import document_chunks

CacheStatus = Literal["hit", "miss", "bypass"]

_DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply to a chat or completion: `document`, or `events` as text.

    document: JSON. events: may raise NarrowgateError. attestation: digest of the one that covers
    the answer. cost_usd: None where unknown, and for streams, whose cost is known at their end.
    guarantee: of a task's answer, as its header says it. cache: what the cache did; None where
    there is none. hit: the cached answer that this is.
    """

    route: Route
    reason: Reason
    model: str
    document: str | None = None
    events: AsyncIterator[str] | None = None
    attestation: str | None = None
    cost_usd: Decimal | None = None
    guarantee: str | None = None
    cache: CacheStatus | None = None
    hit: CacheHit | None = None


@dataclass(frozen=True, slots=True)
class TaskReply:
    """A reply to a task: each input's answer or error, in the client's order.

    is_list: the client sent a list, and gets one. attestation: digest of the one that covers the
    local answers; None where there is none. cache: what the cache did for each input, in the order
    of the results that are not refused items; empty where there is none.
    """

    task: str
    results: tuple[Answer | NarrowgateError, ...]
    is_list: bool
    attestation: str | None
    cache: tuple[CacheStatus, ...] = ()


def write_reply(
    request: ChatRequest | CompletionRequest,
    plan: Plan,
    outcome: Outcome | OutcomeStream,
    context: RequestContext,
) -> Reply:
    """Return the reply with an outcome. Raises the outcome's error."""
    if isinstance(outcome, OutcomeStream):
        streamed = write_events(outcome.events, include_usage=request.include_usage)
        return Reply(outcome.route, outcome.reason, outcome.model, events=streamed)
    content, served = outcome.content, outcome.served
    document = whole_document(plan, outcome, context)
    assert served is not None
    return Reply(
        served.route, served.reason, served.model, *_sent(request, document), outcome.attestation,
        outcome.cost_usd, content.guarantee.header() if isinstance(content, Answer) else None,
    )  # fmt: skip


def whole_document(plan: Plan, outcome: Outcome, context: RequestContext) -> dict[str, Any]:
    """Return an outcome as a document of OpenAI's API. Raises the outcome's error."""
    content = outcome.content
    if isinstance(content, NarrowgateError):
        raise content
    if not isinstance(content, Answer):
        return content
    labels = plan.decision.labels if isinstance(plan, TaskPlan) and plan.decision else None
    text = task_text(content.value, labels)
    return _completion(content, text, outcome.finish_reason, context.request_id)


def write_hit(
    request: ChatRequest, outcome: Outcome, hit: CacheHit, guarantee: str | None
) -> Reply:
    """Return the reply with a cached document. guarantee: that of its model, None without one."""
    assert outcome.served is not None
    assert isinstance(outcome.content, dict)
    return Reply(
        "cache", "cached", outcome.served.model, *_sent(request, outcome.content),
        outcome.attestation, outcome.cost_usd, guarantee, "hit", hit,
    )  # fmt: skip


def cached_document(
    document: Mapping[str, Any],
    hit: CacheHit,
    request_id: str,
    guarantee: Guarantee | None = None,
) -> dict[str, Any]:
    """Return a cached document as the answer to another request.

    guarantee: of a hit that was found by meaning; None where the answer's own holds.
    """
    details = {
        **document.get("narrowgate", {}), "route": "cache", "reason": "cached", "cost_usd": "0",
        "cache": hit.model_dump(mode="json"),
    }  # fmt: skip
    if guarantee is not None:
        details["guarantee"] = guarantee.model_dump(mode="json")
    made = {"id": f"chatcmpl-{request_id}", "created": int(time.time())}
    return {**document, **made, "narrowgate": details}


def _sent(
    request: ChatRequest | CompletionRequest, document: dict[str, Any]
) -> tuple[str | None, AsyncIterator[str] | None]:
    """Return a document as text, or as events where the client asked for a stream."""
    if not request.stream:
        return json_text(document), None
    return None, write_events(_chunks(document), include_usage=request.include_usage)


def write_tasks(
    batch: TaskBatch, outcomes: Sequence[Outcome], cache: Sequence[CacheStatus] = ()
) -> TaskReply:
    """Return the reply with a batch's outcomes, and the errors of items that are not inputs."""
    found: dict[int, Answer | NarrowgateError] = dict(batch.refused)
    for position, outcome in zip(batch.positions, outcomes, strict=True):
        assert not isinstance(outcome.content, dict)
        found[position] = outcome.content
    attestation = next((o.attestation for o in outcomes if o.attestation is not None), None)
    results = tuple(found[position] for position in sorted(found))
    return TaskReply(batch.task, results, batch.is_list, attestation, tuple(cache))


async def write_events(
    chunks: AsyncIterator[dict[str, Any]], *, include_usage: bool
) -> AsyncIterator[str]:
    """Yield chunks as events, usage only where the client asked for it, then the final event."""
    async for chunk in chunks:
        if not include_usage and "usage" in chunk:
            if not chunk.get("choices"):
                continue
            chunk = {name: value for name, value in chunk.items() if name != "usage"}
        yield f"data: {json_text(chunk)}\n\n"
    yield _DONE


def _completion(answer: Answer, text: str, finish_reason: str, request_id: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{request_id}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": answer.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish_reason,
                "logprobs": None,
            }
        ],
        "usage": openai_usage(answer.usage),
        "narrowgate": _details(answer),
    }


async def _chunks(document: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    for chunk in document_chunks(document):
        yield chunk


def task_text(value: Value, labels: Mapping[str, str] | None = None) -> str:
    """Return a task's value as the text of a chat: a label, a JSON list, or a translation.

    labels: those that the client named, by the client's own words; entities of other types are
    left out.
    """
    if isinstance(value, str):
        return (labels or {}).get(value, value)
    if isinstance(value, tuple):
        wanted = [item for item in value if labels is None or item.type in labels]
        return json.dumps([item.model_dump() for item in wanted], ensure_ascii=False)
    return value.text


def _details(answer: Answer) -> dict[str, Any]:
    return answer.model_dump(
        mode="json",
        include={
            "task", "route", "reason", "confidence", "calibrated_confidence", "below_threshold",
            "label_probabilities", "valid", "notes", "cost_usd", "guarantee",
        },
    )  # fmt: skip
