"""What the endpoints need, built once in app.py and reached through the ASGI application."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from serving.contracts.settings import GatewaySettings
from serving.gateway.admission import Admission
from serving.gateway.metrics import Metrics
from serving.local.client import EngineClient
from serving.pipeline import Stack


@dataclass(frozen=True, slots=True)
class GatewayContext:
    """Settings, the pipeline's stack, the engines by model id, admission and metrics."""

    settings: GatewaySettings
    stack: Stack
    engines: Mapping[str, EngineClient]
    admission: Admission
    metrics: Metrics

    def tasks_of(self, model_id: str) -> list[str]:
        """Return the names of the tasks that a model answers, sorted."""
        tasks = self.stack.tasks.items()
        return sorted(name for name, bound in tasks if bound.engine.model_id == model_id)


def _context(request: Request) -> GatewayContext:
    context: GatewayContext = request.app.state.context
    return context


def _request_id(request: Request) -> str:
    request_id: str = request.state.request_id
    return request_id


Context = Annotated[GatewayContext, Depends(_context)]
RequestId = Annotated[str, Depends(_request_id)]
