"""POST /v1/tasks/{task} and the list of tasks."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from serving.contracts.answer import Answer, TaskRequest
from serving.contracts.errors import InvalidRequest, NarrowgateError, TooManyInputs
from serving.gateway.attested import TaskState
from serving.gateway.context import Context, RequestId
from serving.gateway.errors import error_body
from serving.gateway.middleware import ATTESTATION, REASON, ROUTE
from serving.gateway.options import OptionFields, RequestedOptions
from serving.pipeline import request_path
from serving.pipeline.stack import find

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])


class TaskBody(OptionFields):
    """One input or several, and the parameters of the task."""

    model_config = ConfigDict(extra="forbid")

    input: str | None = Field(default=None, description="one text")
    # Any: an input of another type is an error of its own and does not spoil the rest.
    inputs: list[Any] | None = Field(default=None, description="several texts")
    source_language: str | None = Field(
        default=None, description="translations: ISO 639-1 code; detected where absent"
    )
    target_language: str | None = Field(default=None, description="translations: ISO 639-1 code")


class ErrorBody(BaseModel):
    """Why an input was not answered."""

    message: str
    type: str
    param: str | None
    code: str
    fix: str | None


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
    """A task, served or refused."""

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
    """Every task there is."""

    object: str = "list"
    data: list[TaskCard]


@router.get("")
async def list_tasks(context: Context) -> TaskList:
    """List the tasks, with what is attested of each."""
    cards = []
    for name in sorted(context.stack.tasks):
        bound = context.stack.tasks[name]
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


@router.post("/{task}", response_model=Answer | AnswerList)
async def run_task(
    task: str,
    body: TaskBody,
    context: Context,
    request_id: RequestId,
    requested: RequestedOptions,
) -> Response:
    """Answer one input (an answer) or several (a list of answers and errors, in order)."""
    find(context.stack, task)
    single = body.inputs is None
    texts = _texts(body, context.settings.max_inputs)
    trip = requested.trip(body)
    valid = [i for i, text in enumerate(texts) if isinstance(text, str)]
    outcomes: list[Answer | NarrowgateError] = [
        InvalidRequest(f"inputs.{i} is a {type(text).__name__}, not a string", field=f"inputs.{i}")
        for i, text in enumerate(texts)
    ]
    if valid:
        requests = [
            TaskRequest(task, texts[i], body.source_language, body.target_language) for i in valid
        ]
        answered = await request_path.answer(requests, trip)
        for i, outcome in zip(valid, answered, strict=True):
            outcomes[i] = outcome
    response = _single(outcomes[0]) if single else _several(task, outcomes, request_id)
    attestation = context.stack.tasks[task].grant.attestation
    local = any(isinstance(found, Answer) and found.route == "local" for found in outcomes)
    if attestation is not None and local:
        response.headers[ATTESTATION] = attestation
    return response


def _texts(body: TaskBody, max_inputs: int) -> list[Any]:
    if (body.input is None) == (body.inputs is None):
        raise InvalidRequest(
            "give either input or inputs", field="input", fix='send {"input": "a text"}'
        )
    if body.inputs is None:
        return [body.input]
    if not body.inputs:
        raise InvalidRequest("inputs is empty", field="inputs", fix="send at least one text")
    if len(body.inputs) > max_inputs:
        raise TooManyInputs(
            f"{len(body.inputs)} inputs in one request, and {max_inputs} may be",
            field="inputs",
            fix="split the request",
        )
    return body.inputs


def _single(outcome: Answer | NarrowgateError) -> Response:
    if isinstance(outcome, NarrowgateError):
        raise outcome
    return _json(outcome, [outcome])


def _several(task: str, outcomes: list[Answer | NarrowgateError], request_id: str) -> Response:
    results = [
        IndexedResult(index=i, error=ErrorBody(**error_body(outcome)))
        if isinstance(outcome, NarrowgateError)
        else IndexedResult(index=i, answer=outcome)
        for i, outcome in enumerate(outcomes)
    ]
    answers = [item.answer for item in results if item.answer is not None]
    return _json(AnswerList(task=task, results=results, request_id=request_id), answers)


def _json(model: BaseModel, answers: list[Answer]) -> Response:
    headers = {
        ROUTE: ",".join(sorted({answer.route for answer in answers})) or "none",
        REASON: ",".join(sorted({answer.reason for answer in answers})) or "none",
    }
    return Response(model.model_dump_json(), media_type="application/json", headers=headers)
