"""The objects that endpoints use, built once in serving.app."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from serving.cache.service import CacheService
from serving.contracts.batch import Batches
from serving.contracts.batch_settings import BatchSettings
from serving.contracts.errors import EngineFailure
from serving.contracts.frontier import Frontier
from serving.contracts.ledger import LedgerService
from serving.contracts.report import Reports
from serving.contracts.routing import DecisionLog
from serving.contracts.settings import GatewaySettings
from serving.evidence.retention import EvidenceRetention
from serving.evidence.service import EvidenceService
from serving.gateway.access import Access
from serving.gateway.attested import TaskState
from serving.gateway.local_models import LocalModels
from serving.gateway.metrics import Metrics
from serving.local.client import EngineClient
from serving.pipeline.admission import AdmissionQueue
from serving.pipeline.answer_lengths import AnswerLengths
from serving.pipeline.request_path import RequestPath
from serving.pipeline.runner import BoundTask

logger = logging.getLogger(__name__)


class BackgroundTasks:
    """Runs tasks until they are cancelled. One that ends by itself makes the replica unhealthy.

    Without such a task the replica would serve with models, keys or claims that no longer change.
    """

    def __init__(self) -> None:
        self._failure: str | None = None

    @asynccontextmanager
    async def running(
        self, tasks: Mapping[str, Coroutine[None, None, None]]
    ) -> AsyncIterator[None]:
        """Run tasks beside the body, which continues when one fails. tasks: by name for logs."""
        running = [asyncio.create_task(task, name=name) for name, task in tasks.items()]
        for task in running:
            task.add_done_callback(self._ended)
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def check(self) -> None:
        """Raise EngineFailure where a task has failed; Ray Serve then replaces the replica."""
        if self._failure is not None:
            raise EngineFailure(
                f"the background task {self._failure!r} of this gateway replica has failed",
                fix="its log has the event background_task_failed with the error",
            )

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        name, error = task.get_name(), task.exception()
        logger.error("background_task_failed task=%s error=%r", name, error, exc_info=error)
        self._failure = name


@dataclass(frozen=True, slots=True)
class GatewayContext:
    """Settings, the request path, and the parts that endpoints report.

    models: the local ones and their tasks. local_admission: of work for local models;
    frontier_admission: of requests at frontier APIs. access: authentication and limits.
    development: attestations are not enforced; every response states it. evidence: claims and
    audits; None where only attested thresholds decide. retention: deletes evidence, also what was
    stored before it was switched off. cache: what is stored of it, also where no request uses it.
    Both are None only where there is no database. lengths: of answers, where output bounds are
    learned. metrics_port: of this replica's own /metrics; None
    without one. batches: the batch lane; None without one. batch: its settings.
    """

    settings: GatewaySettings
    path: RequestPath
    models: LocalModels
    frontier: Frontier
    decisions: DecisionLog
    local_admission: AdmissionQueue
    frontier_admission: AdmissionQueue
    metrics: Metrics
    access: Access
    ledger: LedgerService
    reports: Reports
    development: bool = False
    background: BackgroundTasks = field(default_factory=BackgroundTasks)
    evidence: EvidenceService | None = None
    retention: EvidenceRetention | None = None
    cache: CacheService | None = None
    lengths: AnswerLengths | None = None
    metrics_port: int | None = None
    batches: Batches | None = None
    batch: BatchSettings = field(default_factory=BatchSettings)

    @property
    def engines(self) -> Mapping[str, EngineClient]:
        """Return the clients of the engines that are deployed, by model id."""
        return self.models.clients

    @property
    def tasks(self) -> Mapping[str, BoundTask]:
        """Return the tasks of the local models, by name."""
        return self.models.tasks

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests; return when those in progress are done or the time is up."""
        async with asyncio.TaskGroup() as group:
            for limit in (self.local_admission, self.frontier_admission):
                group.create_task(limit.drain(timeout_s))

    def tasks_of(self, model_id: str) -> dict[str, TaskState]:
        """Return the attestation of each task that a model is configured for, by name."""
        tasks = sorted(self.tasks.items())
        return {
            name: TaskState.of(bound.grant)
            for name, bound in tasks
            if bound.engine.model_id == model_id
        }


# Coroutines, because FastAPI runs each plain function in a thread.
async def _context(request: Request) -> GatewayContext:
    context: GatewayContext = request.app.state.context
    return context


Context = Annotated[GatewayContext, Depends(_context)]
