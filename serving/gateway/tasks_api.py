"""POST /v1/tasks/{task} and the list of tasks."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from serving.contracts.answer import Answer
from serving.contracts.errors import NarrowgateError
from serving.contracts.openai import json_text
from serving.gateway.attested import TaskState
from serving.gateway.cache_options import CACHE, hit_headers
from serving.gateway.context import Context
from serving.gateway.errors import error_body
from serving.gateway.http_request import ReceivedRequest
from serving.gateway.middleware import ATTESTATION, GUARANTEE, REASON, ROUTE
from serving.gateway.openapi import TASK_BODY
from serving.pipeline.write import TaskReply
from serving.tasks.catalog import find_task

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])


class ErrorBody(BaseModel):
    """The error of one input."""

    message: str
    type: str
    param: str | None
    code: str
    fix: str | None
    progress: dict[str, Any] | None = None


class IndexedResult(BaseModel):
    """The outcome of one of several inputs: an answer or an error."""

    index: int
    answer: Answer | None = None
    error: ErrorBody | None = None


class AnswerList(BaseModel):
    """Outcomes in the order of the inputs."""

    object: str = "list"
    task: str
    results: list[IndexedResult]
    request_id: str


class TaskCard(BaseModel):
    """One task, served or refused."""

    name: str
    kind: str
    description: str
    digest: str
    model: str
    attested: TaskState
    labels: list[str] | None = None
    entity_types: list[str] | None = None
    languages: dict[str, str] | None = None


class TaskList(BaseModel):
    """All configured tasks."""

    object: str = "list"
    data: list[TaskCard]


@router.get("")
async def list_tasks(context: Context) -> TaskList:
    """List the tasks with their attestations."""
    cards = []
    for name in sorted(context.tasks):
        bound = context.tasks[name]
        spec: Any = bound.task.spec
        labels = getattr(spec, "labels", None)
        types = getattr(spec, "entity_types", None)
        cards.append(
            TaskCard(
                name=name,
                kind=spec.kind,
                description=spec.description,
                digest=spec.digest(),
                model=bound.engine.model_id,
                attested=TaskState.of(bound.grant),
                labels=[label.name for label in labels] if labels else None,
                entity_types=[item.name for item in types] if types else None,
                languages=getattr(spec, "languages", None),
            )
        )
    return TaskList(data=cards)


@router.post("/{task}", response_model=Answer | AnswerList, openapi_extra=TASK_BODY)
async def run_task(task: str, received: ReceivedRequest) -> Response:
    """Answer one input (an answer) or several (a list of answers and errors, in order)."""
    path = received.gateway.path
    find_task(path.policy.specs, task)
    context = received.context()
    async with path.tasks(task, received.body, context) as reply:
        return _response(reply, context.request_id)


def _response(reply: TaskReply, request_id: str) -> Response:
    """Return the response. Raises the error of an only input."""
    model = task_reply(reply, request_id)
    answers = [result for result in reply.results if isinstance(result, Answer)]
    headers = {
        ROUTE: ",".join(sorted({answer.route for answer in answers})) or "none",
        REASON: ",".join(sorted({answer.reason for answer in answers})) or "none",
    }
    if answers:
        headers[GUARANTEE] = ", ".join(sorted({answer.guarantee.header() for answer in answers}))
    if reply.cache:
        headers[CACHE] = ",".join(sorted(set(reply.cache)))
    hit = answers[0].cache if answers and not reply.is_list else None
    if hit is not None:
        headers |= hit_headers(hit)
    if reply.attestation is not None:
        headers[ATTESTATION] = reply.attestation
    document = json_text(model.model_dump(mode="json"))
    return Response(document, media_type="application/json", headers=headers)


def task_reply(reply: TaskReply, request_id: str) -> BaseModel:
    """Return the body of a response. Raises the error of an only input."""
    if not reply.is_list:
        (only,) = reply.results
        if isinstance(only, NarrowgateError):
            raise only
        return only
    return AnswerList(
        task=reply.task,
        results=[_indexed(index, result) for index, result in enumerate(reply.results)],
        request_id=request_id,
    )


def _indexed(index: int, result: Answer | NarrowgateError) -> IndexedResult:
    if isinstance(result, NarrowgateError):
        return IndexedResult(index=index, error=ErrorBody(**error_body(result)))
    return IndexedResult(index=index, answer=result)
