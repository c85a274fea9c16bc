"""`python -m benchmarks.ledger_server`: a gateway with an instant provider and a ledger.

The local model answers immediately. Without a state folder the ledger writes nothing. The plan is
one line of JSON on standard input.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from benchmarks.fake_ledger import NullLedger
from benchmarks.ledger_databases import LOCAL_MODEL, open_ledger
from serving.contracts.deadline import Deadline
from serving.contracts.engine import EngineOutput, EngineWork
from serving.contracts.errors import LedgerUnavailable, NarrowgateError, Unauthenticated
from serving.contracts.ledger import Caller, LedgerService, Tenant
from serving.contracts.openai import OpenAIReply
from serving.contracts.report import Report
from serving.contracts.requests import ChatRequest
from serving.contracts.routing import Decision, Vectors

if TYPE_CHECKING:
    from serving.gateway.context import GatewayContext

_USAGE = {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23}


@dataclass(frozen=True, slots=True)
class Plan:
    """What to serve. state: folder of the ledger; None for a ledger that writes nothing.

    url: of a PostgreSQL database; None for SQLite. model: `provider/model` that has a price.
    """

    port: int
    upstream: str
    model: str
    state: str | None
    url: str | None = None


class InstantEngine:
    """Implements Engine with one constant answer."""

    model_id = LOCAL_MODEL

    async def run(
        self, works: Sequence[EngineWork], deadline: Deadline
    ) -> list[EngineOutput | NarrowgateError]:
        """Raise NotImplementedError: no task is served."""
        raise NotImplementedError

    async def openai(
        self, endpoint: str, body: dict[str, Any], request_id: str, deadline: Deadline
    ) -> tuple[OpenAIReply, AsyncIterator[str]]:
        """Return the constant answer."""
        message = {"role": "assistant", "content": "At once."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        document = {
            "id": request_id, "object": "chat.completion", "created": 0, "model": LOCAL_MODEL,
            "choices": [choice], "usage": dict(_USAGE),
        }  # fmt: skip
        return OpenAIReply(200, document), _nothing()


class NoRouter:
    """Routes every chat to the standard tier."""

    async def vectors(self, request: ChatRequest, known: Any = None) -> Vectors:
        """Return no vectors: none are needed."""
        return Vectors()

    def decide(self, request: ChatRequest, vectors: Vectors) -> Decision:
        """Return the standard tier."""
        return Decision(None, 1.0, None, "standard", "bench")


class NoDecisions:
    """Discards decisions."""

    def record(self, row: Mapping[str, Any]) -> None:
        """Forget the row."""

    def close(self) -> None:
        """Do nothing."""


class OneTenant:
    """Every name is a tenant without limits."""

    def find(self, presented: str) -> Caller:
        """Raise Unauthenticated: no key exists."""
        raise Unauthenticated("no key is known")

    def tenant(self, name: str) -> Tenant:
        """Return the tenant."""
        return Tenant(name)

    async def refresh(self) -> None:
        """Return at once: nothing changes."""

    async def watch(self) -> None:
        """Wait until cancelled: nothing changes."""
        await asyncio.Event().wait()


class NoReports:
    """Refuses every report."""

    zone = ZoneInfo("UTC")

    async def report(self, since: datetime, until: datetime, tenant: str | None) -> Report:
        """Raise LedgerUnavailable."""
        raise LedgerUnavailable("this benchmark has no reports")

    def close(self) -> None:
        """Do nothing."""


async def _nothing() -> AsyncIterator[str]:
    return
    yield


async def _serve(plan: Plan) -> None:
    import uvicorn

    from serving.gateway.http import build_http

    ledger = NullLedger() if plan.state is None else open_ledger(plan.url, Path(plan.state))
    app = build_http(build_context(plan, ledger))
    config = uvicorn.Config(app, port=plan.port, log_level="warning", access_log=False)
    await uvicorn.Server(config).serve()


def build_context(plan: Plan, ledger: LedgerService) -> "GatewayContext":
    """Return the gateway of a plan with this ledger."""
    from serving.contracts.frontier_settings import FrontierSettings, ProviderSettings
    from serving.contracts.ledger_settings import AuthSettings
    from serving.contracts.routing import TIERS
    from serving.contracts.routing_settings import RoutingSettings
    from serving.contracts.settings import GatewaySettings, Replicas
    from serving.frontier.build import build_frontier
    from serving.gateway.access import Access
    from serving.gateway.context import GatewayContext
    from serving.gateway.local_models import LocalModels
    from serving.gateway.metrics import Metrics
    from serving.ledger.pricing.book import PriceBook
    from serving.pipeline.admission import AdmissionQueue
    from serving.pipeline.build import build_runners
    from serving.pipeline.exit_recorder import ExitRecorder
    from serving.pipeline.known_vectors import KnownVectors
    from serving.pipeline.plan import Policy
    from serving.pipeline.replica_meter import ReplicaMeter
    from serving.pipeline.request_path import RequestPath

    metrics = Metrics()
    settings = GatewaySettings()
    local, remote = (
        AdmissionQueue(settings.max_concurrent_inputs, settings.max_queued_inputs) for _ in "12"
    )
    provider = ProviderSettings(
        api="openai", base_url=f"{plan.upstream}/v1", keyless=True, max_concurrent=256
    )
    providers = FrontierSettings(
        providers={plan.model.partition("/")[0]: provider},
        tiers=dict.fromkeys(TIERS, (plan.model,)),
    )
    frontier = build_frontier(providers, PriceBook.load(), {}, metrics)
    engines = {LOCAL_MODEL: InstantEngine()}
    meters = {LOCAL_MODEL: ReplicaMeter(Replicas())}
    decisions = NoDecisions()
    path = RequestPath(
        policy=Policy.of(
            providers, RoutingSettings(), {}, {LOCAL_MODEL: 8192}, frontier.configured
        ),
        router=NoRouter(),
        recorder=ExitRecorder(ledger, metrics),
        runners=build_runners({}, engines, meters, frontier, decisions, local, remote),
        max_inputs=settings.max_inputs,
        known=KnownVectors(0),
    )
    return GatewayContext(
        settings=settings,
        path=path,
        models=LocalModels.serving({}, {}),
        frontier=frontier,
        decisions=decisions,
        local_admission=local,
        frontier_admission=remote,
        metrics=metrics,
        access=Access.of(OneTenant(), AuthSettings(mode="off"), 1),
        ledger=ledger,
        reports=NoReports(),
    )


if __name__ == "__main__":
    asyncio.run(_serve(Plan(**json.loads(sys.stdin.readline()))))
