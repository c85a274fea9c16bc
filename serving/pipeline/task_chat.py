"""A task that was asked for as a chat, answered as one."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from serving.contracts.answer import Answer, Value
from serving.contracts.errors import NarrowgateError
from serving.contracts.openai import openai_usage
from serving.contracts.routing import Reason
from serving.pipeline.chat import DONE, ChatReply
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.local_task import Outcome
from serving.pipeline.plan import TaskPlan
from serving.pipeline.stack import BoundTask, RequestContext
from serving.pipeline.usage_filter import wants_usage


async def task_chat(
    body: Mapping[str, Any],
    outcome: Outcome,
    way: TaskPlan,
    bound: BoundTask,
    trip: RequestContext,
    books: ExitRecorder,
) -> ChatReply:
    """Return a task's answer as the chat that asked for it. Raises the outcome's error."""
    request_id = trip.request_id
    answer = books.settled(0, outcome)
    await books.written()
    if isinstance(answer, NarrowgateError):
        raise answer
    reason: Reason = outcome.reason or "narrow"
    text = written(answer.value, way.decision.labels if way.decision is not None else None)
    events = _one_event(body, answer, text, request_id) if body.get("stream") else None
    document = None if body.get("stream") else _completion(answer, text, request_id)
    attestation = bound.grant.attestation if answer.route == "local" else None
    return ChatReply(
        answer.route, reason, answer.model, document, events, AsyncExitStack(), attestation,
        answer.cost_usd,
    )  # fmt: skip


def _completion(answer: Answer, text: str, request_id: str) -> dict[str, Any]:
    return {
        **_head(answer, request_id, "chat.completion"),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": openai_usage(answer.usage),
        "narrowgate": _details(answer),
    }


async def _one_event(
    body: Mapping[str, Any], answer: Answer, text: str, request_id: str
) -> AsyncIterator[str]:
    head = _head(answer, request_id, "chat.completion.chunk")
    delta = {"role": "assistant", "content": text}
    for choices in (
        [{"index": 0, "delta": delta, "finish_reason": None}],
        [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    ):
        yield f"data: {json.dumps({**head, 'choices': choices})}\n\n"
    if wants_usage(body):
        last = {**head, "choices": [], "usage": openai_usage(answer.usage)}
        yield f"data: {json.dumps(last)}\n\n"
    yield DONE


def written(value: Value, labels: Mapping[str, str] | None = None) -> str:
    """Return a task's value as the text of a chat: a label, a JSON list, or a translation.

    labels: those that the client named, each with its own word for it; entities of other types are
    left out.
    """
    if isinstance(value, str):
        return (labels or {}).get(value, value)
    if isinstance(value, tuple):
        wanted = [item for item in value if labels is None or item.type in labels]
        return json.dumps([item.model_dump() for item in wanted], ensure_ascii=False)
    return value.text


def _head(answer: Answer, request_id: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{request_id}",
        "object": kind,
        "created": int(time.time()),
        "model": answer.model,
    }


def _details(answer: Answer) -> dict[str, Any]:
    return answer.model_dump(
        mode="json",
        include={
            "task", "route", "reason", "confidence", "calibrated_confidence", "below_threshold",
            "label_probabilities", "valid", "notes", "cost_usd",
        },
    )  # fmt: skip
