"""What the endpoints need, built once in app.py and reached through the ASGI application."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from serving.contracts.ledger import LedgerService
from serving.contracts.report import Reports
from serving.contracts.settings import GatewaySettings
from serving.gateway.access import Access
from serving.gateway.admission import Admission
from serving.gateway.attested import TaskState
from serving.gateway.metrics import Metrics
from serving.local.client import EngineClient
from serving.pipeline.stack import Stack


@dataclass(frozen=True, slots=True)
class GatewayContext:
    """Settings, the pipeline's stack, the engines by model id, admission and metrics.

    admission: of work for local models; frontier_admission: of requests at frontier APIs.
    access: who may ask, and how much. books: the stack's ledger, to be started and ended.
    development: attestations are not enforced, which every response must say.
    """

    settings: GatewaySettings
    stack: Stack
    engines: Mapping[str, EngineClient]
    admission: Admission
    frontier_admission: Admission
    metrics: Metrics
    access: Access
    books: LedgerService
    reports: Reports
    development: bool = False

    async def drain(self, timeout_s: float) -> None:
        """Refuse whatever comes from now on; return when all is done or the time is up."""
        async with asyncio.TaskGroup() as group:
            for room in (self.admission, self.frontier_admission):
                group.create_task(room.drain(timeout_s))

    def tasks_of(self, model_id: str) -> dict[str, TaskState]:
        """Return the tasks that a model is to answer, by name, with what is attested of each."""
        tasks = sorted(self.stack.tasks.items())
        return {
            name: TaskState.of(bound.grant)
            for name, bound in tasks
            if bound.engine.model_id == model_id
        }


# Coroutines though they await nothing: FastAPI runs plain functions on a thread each.
async def _context(request: Request) -> GatewayContext:
    context: GatewayContext = request.app.state.context
    return context


async def _request_id(request: Request) -> str:
    request_id: str = request.state.request_id
    return request_id


Context = Annotated[GatewayContext, Depends(_context)]
RequestId = Annotated[str, Depends(_request_id)]
