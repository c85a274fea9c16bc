"""The HTTP application with everything behind it scripted."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import numpy as np

from serving.contracts.answer import Usage
from serving.contracts.deadline import Deadline
from serving.contracts.engine import (
    EngineInfo,
    EngineOutput,
    EngineWork,
    GenerateOutput,
    ScoreOutput,
    ScoreWork,
    TokenCounts,
)
from serving.contracts.errors import (
    EngineFailure,
    FrontierNotConfigured,
    LedgerUnavailable,
    NarrowgateError,
    Unauthenticated,
)
from serving.contracts.exits import Exit
from serving.contracts.frontier import Completion, CompletionStream, FrontierCall
from serving.contracts.frontier_settings import FrontierSettings
from serving.contracts.ledger import CallEnd, Caller, Tenant
from serving.contracts.ledger_settings import AuthSettings
from serving.contracts.openai import OpenAIReply
from serving.contracts.report import Report
from serving.contracts.requests import ChatRequest
from serving.contracts.routing import Decision, KnownVector, Vectors
from serving.contracts.routing_settings import RoutingSettings
from serving.contracts.settings import GatewaySettings, Replicas
from serving.contracts.task_spec import TaskSpec
from serving.gateway.access import Access
from serving.gateway.context import GatewayContext
from serving.gateway.http import build_http
from serving.gateway.local_models import LocalModels
from serving.gateway.metrics import Metrics
from serving.local.health import EngineHealth
from serving.pipeline.admission import AdmissionQueue
from serving.pipeline.bounded import Learning
from serving.pipeline.build import build_runners
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.known_vectors import KnownVectors
from serving.pipeline.plan import Policy
from serving.pipeline.pruned import Pruning
from serving.pipeline.replica_meter import ReplicaMeter
from serving.pipeline.request_path import RequestPath
from serving.pipeline.runner import BoundTask
from serving.tasks.grant import Grant
from serving.tasks.task import bind

from .character_tokenizer import CharacterTokenizer
from .memory_ledger import MemoryLedger

MODEL = "tiny"
WINDOW = 4096
INFO = EngineInfo(MODEL, "vllm", "0.29.0", WINDOW, None, "bfloat16")


class ScriptedEngine:
    """Stands where serving.local.client does; the first candidate or label always wins."""

    def __init__(self) -> None:
        self.model_id = MODEL
        self.queue_depth = 0
        self.health = EngineHealth(MODEL, self._ping)
        self.release = asyncio.Event()
        self.release.set()
        self.bodies: list[dict[str, Any]] = []
        self.events = ['data: {"choices": [{"delta": {"content": "hi"}}]}\n\n']
        self.fail_after_events: NarrowgateError | None = None
        usage = {"prompt_tokens": 5, "completion_tokens": 2}
        self.document: dict[str, Any] = {"id": "x", "usage": usage}

    async def _ping(self, timeout_s: float) -> EngineInfo:
        return INFO

    async def run(
        self, works: Sequence[EngineWork], deadline: Deadline
    ) -> list[EngineOutput | NarrowgateError]:
        self.health.require_ready()
        await self.release.wait()
        return [self._output(work) for work in works]

    def _output(self, work: EngineWork) -> EngineOutput | NarrowgateError:
        tokens = TokenCounts(7, 3, 0)
        if isinstance(work, ScoreWork):
            if ord("☠") in work.prompt_token_ids:
                return EngineFailure("the engine failed: ValueError")
            points = [(0.0, *(-2.0 for _ in point.candidates[1:])) for point in work.points]
            return ScoreOutput(tuple(points), tokens)
        return GenerateOutput("[]" if work.json_schema else "Hallo", (-0.1,), "stop", tokens)

    async def openai(
        self, endpoint: str, body: dict[str, Any], request_id: str, deadline: Deadline
    ) -> tuple[OpenAIReply, AsyncIterator[str]]:
        self.health.require_ready()
        self.bodies.append(body)
        await self.release.wait()

        async def events() -> AsyncIterator[str]:
            for event in self.events:
                yield event
            if self.fail_after_events:
                raise self.fail_after_events

        if body.get("stream"):
            return OpenAIReply(200, None), events()
        return OpenAIReply(200, self.document), events()

    async def metrics(self, timeout_s: float) -> str:
        return (
            "# HELP vllm:num_requests_running Running.\n"
            "# TYPE vllm:num_requests_running gauge\n"
            'vllm:num_requests_running{engine="0"} 3.0\n'
            "# HELP python_info x\n# TYPE python_info gauge\npython_info 1.0\n"
        )


PAID = Usage(uncached_input_tokens=20, output_tokens=4, reasoning_tokens=1)


class _Closing:
    """Events whose closing is noticed also before the first was taken, as a provider's is."""

    def __init__(
        self, events: AsyncGenerator[dict[str, Any], None], over: Callable[[], None]
    ) -> None:
        self._events = events
        self._over = over

    def __aiter__(self) -> "_Closing":
        return self

    async def __anext__(self) -> dict[str, Any]:
        return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()
        self._over()


class ScriptedFrontier:
    """Answers what `reply` makes of a call; unconfigured until it is set."""

    def __init__(self) -> None:
        self.reply: Callable[[FrontierCall], str | NarrowgateError] | None = None
        self.calls: list[FrontierCall] = []
        self.breaks: NarrowgateError | None = None
        self.closed = 0

    def configured(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        return targets if self.reply else ()

    async def aclose(self) -> None:
        """Nothing is open."""

    async def complete(self, call: FrontierCall) -> Completion:
        text = self._text(call)
        open_call = await call.entry.open_call(call.targets[0], Decimal(1), call.deadline)
        open_call.close(CallEnd("ok", PAID, "reported", 0.1))
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        body = {"id": "p1", "object": "chat.completion", "model": call.targets[0]}
        return Completion({**body, "choices": [choice]}, call.targets[0], PAID)

    async def stream(self, call: FrontierCall) -> CompletionStream:
        words = self._text(call).split()
        open_call = await call.entry.open_call(call.targets[0], Decimal(1), call.deadline)
        end = CallEnd("cancelled", PAID, "estimated", 0.1)

        async def events() -> AsyncGenerator[dict[str, Any], None]:
            nonlocal end
            try:
                for word in words:
                    yield {"choices": [{"index": 0, "delta": {"content": word}}]}
                if self.breaks is not None:
                    raise self.breaks
                found.usage = PAID
                end = CallEnd("ok", PAID, "reported", 0.1)
                yield {"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 5}}
            finally:
                over()

        def over() -> None:
            if open_call.end is None:  # type: ignore[attr-defined]
                open_call.close(end)
                self.closed += 1

        found = CompletionStream(call.targets[0], _Closing(events(), over))
        return found

    def _text(self, call: FrontierCall) -> str:
        self.calls.append(call)
        if self.reply is None:
            raise FrontierNotConfigured("no provider has a key", fix="set a key")
        reply = self.reply(call)
        if isinstance(reply, NarrowgateError):
            raise reply
        return reply


class ScriptedRouter:
    """Returns the scripted decision.

    needed: texts whose vectors it needs. known: those of them that were embedded before.
    """

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self.decision = Decision(None, 0.99, 0.5, "standard", "scripted")
        self.needed: tuple[str, ...] = ()
        self.embed: Callable[[str], Any] = lambda _: np.ones(4, np.float32)

    async def vectors(self, request: ChatRequest, known: KnownVector | None = None) -> Vectors:
        assert known is not None
        self.known = {text: known(text) for text in self.needed}
        return Vectors({text: self.embed(text) for text in self.needed})

    def decide(self, request: ChatRequest, vectors: Vectors) -> Decision:
        return self.decision


class Rows:
    """A decisions' log in memory."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []

    def record(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

    def close(self) -> None:
        """Nothing waits."""


class Recorded:
    """ExitObserver that are kept, and passed on."""

    def __init__(self, metrics: Metrics) -> None:
        self.exits: list[Exit] = []
        self._metrics = metrics

    def input_finished(self, exit_: Exit, cost_usd: Decimal | None) -> None:
        self.exits.append(exit_)
        self._metrics.input_finished(exit_, cost_usd)


class NoKeys:
    """A directory without keys, of tenants without limits."""

    def find(self, presented: str) -> Caller:
        raise Unauthenticated("no key is known")

    def tenant(self, name: str) -> Tenant:
        return Tenant(name)

    async def refresh(self) -> None:
        """Nothing is read."""

    async def watch(self) -> None:
        """Nothing changes."""


class NoReports:
    """Stands where serving.ledger.reports.served does; there is nothing to report on."""

    zone = ZoneInfo("UTC")

    async def report(self, since: datetime, until: datetime, tenant: str | None) -> Report:
        raise LedgerUnavailable("there is no ledger")

    def close(self) -> None:
        """Nobody waits."""


class Server:
    """The application under test with its engine and a client."""

    def __init__(
        self,
        specs: dict[str, TaskSpec],
        grants: dict[str, Grant] | None = None,
        *,
        development: bool = False,
        access: Access | None = None,
        models: LocalModels | None = None,
        frontier: Any = None,
        pruning: Callable[[Metrics], Pruning] | None = None,
        learning: Callable[[Metrics], Learning] | None = None,
        **limits: Any,
    ) -> None:
        self.engine = ScriptedEngine()
        config = GatewaySettings(**limits)
        tokenizer = CharacterTokenizer()
        tasks = {
            name: BoundTask(
                bind(spec, tokenizer, WINDOW),
                self.engine,
                (grants or {}).get(name, Grant(None, None, None)),
            )
            for name, spec in specs.items()
        }
        metrics = Metrics([MODEL])
        local = AdmissionQueue(config.max_concurrent_inputs, config.max_queued_inputs)
        remote = AdmissionQueue(4, 0)
        self.frontier = frontier or ScriptedFrontier()
        self.router = ScriptedRouter()
        self.decisions = Rows()
        self.exits = Recorded(metrics)
        self.ledger = MemoryLedger()
        models = models or LocalModels.serving({MODEL: self.engine}, tasks)  # type: ignore[dict-item]
        path = RequestPath(
            policy=Policy.of(
                FrontierSettings(), RoutingSettings(), specs, {MODEL: 4 * WINDOW},
                self.frontier.configured,
            ),
            router=self.router,
            recorder=ExitRecorder(self.ledger, self.exits),
            runners=build_runners(
                models.tasks, models.engines, {MODEL: ReplicaMeter(Replicas())}, self.frontier,
                self.decisions, local, remote, pruning=pruning and pruning(metrics),
                learning=learning and learning(metrics),
            ),
            max_inputs=config.max_inputs,
            known=KnownVectors(RoutingSettings().known_instructions),
        )  # fmt: skip
        self.context = GatewayContext(
            settings=config,
            path=path,
            models=models,
            frontier=self.frontier,
            decisions=self.decisions,
            local_admission=local,
            frontier_admission=remote,
            metrics=metrics,
            access=access or Access.of(NoKeys(), AuthSettings(mode="off"), 1),
            ledger=self.ledger,
            reports=NoReports(),
            development=development,
        )
        transport = httpx.ASGITransport(build_http(self.context), raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def ready(self) -> "Server":
        await self.engine.health.confirm()
        return self

    async def post(self, path: str, **kwargs: Any) -> httpx.Response:
        return await self.client.post(path, **kwargs)


def assert_error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Assert the one shape that all errors have, and return the error."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "fix"}
    assert error["code"] == code
    assert "Traceback" not in response.text
    return error
