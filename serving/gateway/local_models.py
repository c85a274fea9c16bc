"""The local models of one gateway replica and their states."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from serving.contracts.deadline import Deadline
from serving.contracts.engine import EngineOutput, EngineWork
from serving.contracts.errors import (
    ModelFailed,
    ModelPreparing,
    NarrowgateError,
    TaskNotAttested,
)
from serving.contracts.exits import NO_MODEL
from serving.contracts.model_status import ModelStatus
from serving.contracts.openai import OpenAIReply
from serving.contracts.task_spec import TaskSpec
from serving.local.client import EngineClient
from serving.pipeline.runner import BoundTask, Engine
from serving.tasks.grant import Grant
from serving.tasks.prompt import Turn
from serving.tasks.task import Task, bind

logger = logging.getLogger(__name__)

_REFRESH_S = 0.5
_RETRY_AFTER_S = 5.0
_LONGEST_RETRY_AFTER_S = 60.0
# Larger than every prompt; no work that is planned with it reaches an engine.
_ANY_WINDOW = 2**24

State = Literal["preparing", "failed", "starting", "ready", "unavailable"]


@dataclass(frozen=True, slots=True)
class ConnectedModel:
    """A deployed model: the client of its engine, and its tasks by name.

    max_chars: the most characters of a prompt that can fit its window. judged: every task, where
    the model is the 16-bit baseline with which other models' answers are compared.
    """

    client: EngineClient
    tasks: Mapping[str, BoundTask]
    max_chars: int
    judged: Mapping[str, BoundTask] = field(default_factory=dict)


ReadStatuses = Callable[[], Mapping[str, ModelStatus]]
Connect = Callable[[str, str], Awaitable[ConnectedModel]]


class LocalModels:
    """Connects each model when its engine is deployed, and lets its tasks serve when it is ready.

    `tasks`, `engines`, `clients` and `max_chars` (of a prompt, by model id) are changed in place,
    so that all holders see the changes. Until a model is ready, its tasks are refused with
    ModelPreparing or ModelFailed; a frontier model may answer them. `clients` has connected models
    only.

    `judged` has the tasks of the 16-bit baseline: it answers audits alone.

    specs: the tasks of each configured model, by model id. baseline: id of the one with which
    answers are compared, and the tasks of all models.
    alone: tasks that no local model is configured for. read: returns the models' statuses,
    blocking. connect: takes a model id and the name of its Serve application; called on the event
    loop.
    """

    def __init__(
        self,
        specs: Mapping[str, Sequence[TaskSpec]],
        read: ReadStatuses,
        connect: Connect,
        baseline: tuple[str, Sequence[TaskSpec]] | None = None,
        alone: Sequence[TaskSpec] = (),
    ) -> None:
        self.judged: dict[str, BoundTask] = {}
        self.tasks: dict[str, BoundTask] = {}
        self.engines: dict[str, Engine] = {}
        self.clients: dict[str, EngineClient] = {}
        self.max_chars: dict[str, int] = {}
        self._waiting: dict[str, _Waiting] = {}
        self._read = read
        self._connect = connect
        self.tasks.update(_without_model(alone))
        for model_id, of_model in specs.items():
            is_baseline = baseline is not None and baseline[0] == model_id
            judged = baseline[1] if baseline is not None and is_baseline else ()
            self._waiting[model_id] = _Waiting(model_id, of_model, judged)
            self.max_chars[model_id] = _ANY_WINDOW
            self._show(self._waiting[model_id])

    @classmethod
    def serving(cls, clients: Mapping[str, EngineClient], tasks: Mapping[str, BoundTask]) -> Self:
        """Return models that are connected already."""
        models = cls({}, dict, _connect_nothing)
        models.clients.update(clients)
        models.engines.update(clients)
        models.tasks.update(tasks)
        return models

    @property
    def ids(self) -> list[str]:
        """Return the ids of all configured models, the first of the settings first."""
        return list(self.engines)

    def state(self, model_id: str) -> State:
        """Return the state of a model."""
        waiting = self._waiting.get(model_id)
        if waiting is None:
            return self.clients[model_id].health.state
        return "failed" if waiting.status.state == "failed" else "preparing"

    def status(self, model_id: str) -> ModelStatus | None:
        """Return the status of a model that does not serve yet; None for one that serves."""
        waiting = self._waiting.get(model_id)
        return None if waiting is None else waiting.status

    async def watch(self) -> None:
        """Follow the statuses and the engines' health until cancelled."""
        async with asyncio.TaskGroup() as group:
            for client in self.clients.values():
                group.create_task(client.health.watch())
            while self._waiting:
                await self._refresh(group)
                await asyncio.sleep(_REFRESH_S)
            # Without a model no client's watch runs, and a background task must not end.
            await asyncio.Event().wait()

    async def _refresh(self, group: asyncio.TaskGroup) -> None:
        try:
            statuses = await asyncio.to_thread(self._read)
        except NarrowgateError as error:
            logger.warning("model_states_unreadable error=%s", error.message)
            return
        for model_id, waiting in list(self._waiting.items()):
            if model_id in statuses and waiting.status.state != "failed":
                waiting.status = statuses[model_id]
            if waiting.status.state == "deployed" and waiting.connected is None:
                await self._connected(waiting, group)
            if waiting.connected is not None and waiting.connected.client.health.state == "ready":
                self._serve(waiting)
            else:
                self._show(waiting)

    async def _connected(self, waiting: "_Waiting", group: asyncio.TaskGroup) -> None:
        application = waiting.status.application or waiting.model_id
        try:
            connected = await self._connect(waiting.model_id, application)
        except NarrowgateError as error:
            logger.warning("model_refused model=%s error=%s", waiting.model_id, error.message)
            waiting.status = ModelStatus("failed", reason=error.message)
            return
        waiting.connected = connected
        self.clients[waiting.model_id] = connected.client
        self.max_chars[waiting.model_id] = connected.max_chars
        group.create_task(connected.client.health.watch())

    def _serve(self, waiting: "_Waiting") -> None:
        assert waiting.connected is not None
        del self._waiting[waiting.model_id]
        self.engines[waiting.model_id] = waiting.connected.client
        self.tasks.update(waiting.connected.tasks)
        self.judged.update(waiting.connected.judged)

    def _show(self, waiting: "_Waiting") -> None:
        self.engines[waiting.model_id] = _RefusingEngine(waiting.model_id, waiting.refusal())
        self.tasks.update(waiting.refused_tasks(self.engines[waiting.model_id]))
        self.judged.update(waiting.refused_judged(self.engines[waiting.model_id]))


class _Waiting:
    """A configured model that does not serve yet."""

    def __init__(
        self, model_id: str, specs: Sequence[TaskSpec], judged: Sequence[TaskSpec]
    ) -> None:
        self.model_id = model_id
        self.status = ModelStatus("preparing")
        self.connected: ConnectedModel | None = None
        # A frontier model may answer in the meantime, with the task's prompt.
        self._tasks = _unbound(specs)
        self._judged = _unbound(judged)

    def refused_tasks(self, engine: Engine) -> dict[str, BoundTask]:
        """Return the model's tasks, each refused with the current reason."""
        return self._refused(self._tasks, engine)

    def refused_judged(self, engine: Engine) -> dict[str, BoundTask]:
        """Return the tasks that the model answers for audits alone, each refused."""
        return self._refused(self._judged, engine)

    def _refused(self, tasks: Mapping[str, Task], engine: Engine) -> dict[str, BoundTask]:
        grant = Grant(result=None, attestation=None, refusal=self.refusal())
        return {name: BoundTask(task, engine, grant) for name, task in tasks.items()}

    def refusal(self) -> ModelPreparing | ModelFailed:
        """Return the error for requests to this model."""
        status = self.status
        if status.state == "failed":
            return ModelFailed(
                f"model {self.model_id!r} could not be prepared: {status.reason}",
                fix="remove the cause and restart narrowgate serve",
            )
        progress, left_s, far = status.progress, None, ""
        if progress is not None:
            left_s = progress.left_s
            far = f": {progress.step}, {progress.share:.0%} of all steps done"
        if left_s is not None:
            far += f", about {left_s:.0f} s left"
        return ModelPreparing(
            f"model {self.model_id!r} is being prepared{far}",
            fix="retry after the time in Retry-After; GET /readyz shows the progress",
            retry_after_s=min(left_s or _RETRY_AFTER_S, _LONGEST_RETRY_AFTER_S),
            progress=progress,
        )


def _without_model(specs: Sequence[TaskSpec]) -> dict[str, BoundTask]:
    refusal = TaskNotAttested(
        "no local model is configured",
        field="task",
        fix="send route: auto, with a provider's key; or add a model to `models`",
    )
    grant = Grant(result=None, attestation=None, refusal=refusal)
    engine = _RefusingEngine(NO_MODEL, refusal)
    return {name: BoundTask(task, engine, grant) for name, task in _unbound(specs).items()}


def _unbound(specs: Sequence[TaskSpec]) -> dict[str, Task]:
    return {spec.name: bind(spec, _BytesAsTokens(), _ANY_WINDOW) for spec in specs}


class _RefusingEngine:
    """The engine of a model that does not serve yet; it refuses every call."""

    def __init__(
        self, model_id: str, refusal: ModelPreparing | ModelFailed | TaskNotAttested
    ) -> None:
        self.model_id = model_id
        self._refusal = refusal

    async def run(
        self, works: Sequence[EngineWork], deadline: Deadline
    ) -> list[EngineOutput | NarrowgateError]:
        """Raise the reason."""
        raise self._refusal

    async def openai(
        self, endpoint: str, body: dict[str, Any], request_id: str, deadline: Deadline
    ) -> tuple[OpenAIReply, AsyncIterator[str]]:
        """Raise the reason."""
        raise self._refusal


class _BytesAsTokens:
    """A tokenizer for tasks of a model whose own tokenizer has not been written yet."""

    end_of_turn_id = 256
    longest_token_chars = 1

    def encode(self, text: str) -> list[int]:
        """Return the bytes of a text in UTF-8."""
        return list(text.encode())

    def render(self, turns: Sequence[Turn]) -> str:
        """Return the turns, one below the other."""
        return "\n".join(turn.content for turn in turns)

    def encode_rendered(self, text: str) -> list[int]:
        """Return the bytes of a text in UTF-8."""
        return self.encode(text)


async def _connect_nothing(model_id: str, application: str) -> ConnectedModel:
    raise AssertionError(f"{model_id!r} is connected already")
