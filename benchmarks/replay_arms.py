"""The arms of the cost replay: directly to the reference, and through the stack with levers."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from benchmarks.replay_assumptions import SPEEDS, Values
from benchmarks.replay_mix import Kind, Request
from benchmarks.replay_provider import RIGHT, ReplayModel
from serving.contracts.answer import Answer, Usage
from serving.contracts.frontier_settings import (
    BoundSettings,
    FrontierSettings,
    PromptCacheSettings,
    ProviderSettings,
)
from serving.contracts.requests import ChatRequest, TaskBatch
from serving.contracts.routing import TIERS, Tier
from serving.contracts.settings import Settings
from serving.pipeline.exit_recorder import Outcome, OutcomeStream, RequestRecord, Served
from serving.pipeline.plan import FrontierPlan, TaskPlan

if TYPE_CHECKING:
    from serving.ledger.pricing.book import PriceBook
    from serving.pipeline.runner import Runner
    from tests.provider.script import Seen

Lever = Literal[
    "exact_cache", "local_tasks", "context_pruning", "prompt_caching", "output_bounds", "tiers"
]
LEVERS: tuple[Lever, ...] = get_args(Lever)
LOCAL = "local-model"
Post = Callable[[dict[str, Any]], Awaitable[Any]]
_UNBOUNDED = 8192
_CORE_HOUR_USD = 0.05
"""Of the gateway's own processor time, which includes embedding and pruning."""


@dataclass(frozen=True, slots=True)
class Result:
    """One request's outcome. usd: all its calls, and busy local time. gateway_s: measured time.

    latency_s: by the assumed speeds, without the gateway's own time.
    """

    kind: Kind
    conversation: str
    usd: float
    latency_s: float
    is_right: bool
    route: str
    gateway_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm. local_s: busy time of the replica. span_s: simulated time, for its idle cost."""

    name: str
    levers: tuple[Lever, ...]
    results: tuple[Result, ...]
    local_s: float = 0.0
    span_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Replay:
    """What the arms share. reference: `provider/model` that every request would have gone to."""

    requests: Sequence[Request]
    values: Values
    settings: Settings
    book: "PriceBook"
    reference: str
    folder: Path

    def tier_of(self) -> dict[str, Tier]:
        """Return the tier of each model, by its name without the provider."""
        return {
            target.partition("/")[2]: tier
            for tier in TIERS
            for target in self.settings.frontier.tiers[tier]
        }

    def usd(self, model: str, usage: Usage) -> float:
        """Return the price of a usage at a `provider/model`."""
        prices = self.book.of(model)
        assert prices is not None, model
        return float(prices.base.cost(usage))


def direct(replay: Replay) -> Arm:
    """Return what the client pays that sends everything to the reference, without caching."""
    from serving.frontier.anthropic_request import anthropic_request
    from tests.provider.model import PromptCache
    from tests.provider.script import Seen

    model = replay.reference.partition("/")[2]
    tier = replay.tier_of()[model]
    answers = ReplayModel(replay.requests, replay.values, replay.tier_of())
    results = []
    cache = PromptCache()
    for request in replay.requests:
        body = anthropic_request(
            {"messages": [dict(m) for m in request.messages], "max_tokens": _UNBOUNDED}, model
        )
        seen = Seen("anthropic", {}, body, "", "")
        answers.ask(request)
        text = answers.answer(seen)
        seen.usage = seen.billed = cache.anthropic_usage(seen, -(-len(text) // 4), 0)
        usage = _usage(seen)
        results.append(
            Result(request.kind, request.conversation, replay.usd(replay.reference, usage),
                   _latency_s(tier, usage), text.endswith(RIGHT), "direct")
        )  # fmt: skip
    return Arm("direct", (), tuple(results))


def run_arm(
    replay: Replay, name: str, levers: Sequence[Lever], advance: Callable[[], None] = lambda: None
) -> Arm:
    """Return the requests' outcomes with some levers, one request at a time. Blocking."""
    from tests.provider.server import ProviderServer

    clock = _Clock()
    with ProviderServer() as provider:
        model = ReplayModel(replay.requests, replay.values, replay.tier_of())
        provider.script.answer = model.answer
        provider.app.cache.clock = clock
        stack = _Stack(replay, levers, provider.url, clock)

        async def all_asked() -> list[Result]:
            results = []
            async with stack.posting() as post:
                for request in replay.requests:
                    model.ask(request)
                    stack.local.request = request
                    clock.now_s = 1000.0 + request.at_s
                    seen = provider.script.seen
                    results.append(await _asked(replay, post, stack.local, request, seen))
                    advance()
            return results

        try:
            results = asyncio.run(all_asked())
        finally:
            stack.close()
    span_s = replay.requests[-1].at_s - replay.requests[0].at_s
    return Arm(name, tuple(levers), tuple(results), stack.local.busy_s, span_s)


async def _asked(
    replay: Replay, post: "Post", local: "_AssumedLocal", request: Request, seen: "list[Seen]"
) -> Result:
    local_before, before = local.busy_s, len(seen)
    began = time.perf_counter()
    response = await post({"model": "auto", "messages": list(request.messages)})
    gateway_s = time.perf_counter() - began
    assert response.status_code == 200, response.text
    text = response.json()["choices"][0]["message"]["content"]
    tiers = replay.tier_of()
    usd = latency_s = 0.0
    for call in seen[before:]:
        usage = _usage(call)
        provider = "anthropic" if call.api == "anthropic" else "openai"
        usd += replay.usd(f"{provider}/{call.model}", usage)
        latency_s += _latency_s(tiers[call.model], usage)
    busy_s = local.busy_s - local_before
    usd += busy_s * replay.values["replica_hour_usd"] / 3600 + gateway_s * _CORE_HOUR_USD / 3600
    route = response.headers["x-narrowgate-route"]
    is_right = text.endswith(RIGHT)
    if route == "local":
        is_right = local.was_right
    elif route == "cache" and request.label is not None and RIGHT not in text:
        is_right = text == request.label
    return Result(
        request.kind, request.conversation, usd, latency_s + busy_s, is_right, route, gateway_s
    )


class _Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class _AssumedLocal:
    """Implements Runner for tasks: an answer of assumed coverage, rightness and service time."""

    def __init__(self, values: Values, model: "Runner[ChatRequest, FrontierPlan]") -> None:
        self._values = values
        self._model = model
        self.request: Request | None = None
        self.busy_s = 0.0
        self.was_right = False

    async def whole(
        self, request: ChatRequest | TaskBatch, plan: TaskPlan, record: RequestRecord
    ) -> list[Outcome]:
        """Return the local answer where it is above its threshold, else the frontier model's."""
        assert self.request is not None
        assert isinstance(request, ChatRequest)
        self.busy_s += self._values["local_s"]
        digest = hashlib.sha256(f"local\x00{self.request.key}".encode()).digest()
        covered, right = (int.from_bytes(digest[n : n + 4]) / 2**32 for n in (0, 4))
        if covered >= self._values["local_coverage"]:
            return await self._model.whole(
                request, replace(plan.fallback, reason="below_threshold"), record
            )
        self.was_right = self.request.label is not None and right < self._values["local_right"]
        usage = Usage(uncached_input_tokens=len(self.request.key) // 4, output_tokens=0)
        label = self.request.label if self.was_right else "none"
        answer = Answer(
            task=plan.batch.task, value=label or "none", label_probabilities=None, confidence=0.9,
            below_threshold=False, valid=True, notes=(), route="local", reason="narrow",
            model=LOCAL, usage=usage, cost_usd=Decimal(0), request_id=record.context.request_id,
        )  # fmt: skip
        served = Served("local", "narrow", LOCAL, usage, replica_s=self._values["local_s"])
        return [Outcome(answer, served)]

    async def stream(
        self, request: ChatRequest | TaskBatch, plan: TaskPlan, record: RequestRecord
    ) -> Outcome | OutcomeStream:
        """As `whole`."""
        return (await self.whole(request, plan, record))[0]


def frontier_settings(replay: Replay, levers: Sequence[Lever], url: str) -> FrontierSettings:
    """Return the settings of an arm: what no lever changes is as the client would ask it."""
    own = replay.settings.frontier
    tiers = own.tiers if "tiers" in levers else dict.fromkeys(TIERS, (replay.reference,))
    unbounded: dict[Tier, int] = dict.fromkeys(TIERS, _UNBOUNDED)
    bounds = own.bounds.model_copy(update={"learned": True})
    if "output_bounds" not in levers:
        bounds = BoundSettings(max_tokens=unbounded, directive=None)
    usual: dict[str, Any] = {"keyless": True, "max_retries": 0, "first_byte_timeout_s": 60.0}
    return FrontierSettings(
        providers={
            "anthropic": ProviderSettings(api="anthropic", base_url=url, **usual),
            "openai": ProviderSettings(api="openai", base_url=f"{url}/v1", **usual),
        },
        tiers={tier: names[:1] for tier, names in tiers.items()},
        bounds=bounds,
        prompt_cache=PromptCacheSettings(enabled="prompt_caching" in levers),
    )


class _Stack:
    """The request path over the replay's provider: the shipped parts, a ledger in memory.

    Made outside of the event loop, because models are loaded. database: of the cache, or None.
    """

    def __init__(
        self, replay: Replay, levers: Sequence[Lever], url: str, clock: Callable[[], float]
    ) -> None:
        from serving.context.lazy import LazyPruner
        from serving.contracts.context_settings import ContextSettings
        from serving.embedding.embedder import build_embedder
        from serving.frontier.build import build_frontier
        from serving.pipeline.answer_lengths import AnswerLengths
        from serving.pipeline.bounded import Learning
        from serving.pipeline.plan import Policy
        from serving.pipeline.pruned import Pruning
        from serving.routing.router import build_router
        from serving.savings.detection import RememberingEmbedder
        from serving.tasks.catalog import load_specs
        from tests.unit.authenticated import opened
        from tests.unit.frontier_kit import Recorder
        from tests.unit.scripted import MODEL, WINDOW, Server

        settings = frontier_settings(replay, levers, url)
        specs = load_specs(None) if "local_tasks" in levers else {}
        specs = {name: spec for name, spec in specs.items() if name in ("topic", "sentiment")}
        context = ContextSettings(mode="threshold" if "context_pruning" in levers else "off")
        pruner = LazyPruner(context)

        def pruning(metrics: Any) -> Pruning:
            return Pruning(context, pruner.get, replay.book, settings.prompt_cache.marker, metrics)

        def learning(metrics: Any) -> Learning:
            bounds = settings.bounds
            return Learning(AnswerLengths(None, metrics), bounds.holdout, bounds.directive)

        server = Server(
            specs,
            frontier=build_frontier(settings, replay.book, {}, Recorder(), clock), pruning=pruning,
            learning=learning if settings.bounds.learned else None,
        )  # fmt: skip
        metrics = server.context.metrics
        embedder = RememberingEmbedder(build_embedder(replay.folder))
        path = server.context.path
        runners: dict[Any, Any] = dict(path.runners)
        self.local = runners[TaskPlan] = _AssumedLocal(replay.values, runners[FrontierPlan])
        routing = replay.settings.routing
        policy = Policy.of(
            settings, routing, specs, {MODEL: 4 * WINDOW}, server.frontier.configured
        )
        router = build_router(routing, specs, embedder, metrics)
        changed = replace(path, policy=policy, router=router, runners=runners)
        object.__setattr__(server.context, "path", changed)
        self._server = server
        self._database = None
        if "exact_cache" in levers:
            self._database = opened(None, replay.folder / f"cache-{time.monotonic_ns()}")

    @asynccontextmanager
    async def posting(self) -> AsyncIterator[Post]:
        """Yield the function that sends a request; a stored answer is written when it returns."""
        from tests.unit.cache_kit import cached

        async def post(body: dict[str, Any]) -> Any:
            return await self._server.client.post("/v1/chat/completions", json=body)

        try:
            if self._database is None:
                yield post
                return
            async with cached(self._server, self._database) as found:

                async def written(body: dict[str, Any]) -> Any:
                    response = await post(body)
                    await found.service.read(lambda store: None)
                    return response

                yield written
        finally:
            await self._server.client.aclose()
            await self._server.frontier.aclose()

    def close(self) -> None:
        """Close the cache's database."""
        if self._database is not None:
            self._database.close()


def _usage(seen: "Seen") -> Usage:
    from tests.provider.billing import billed_classes

    return Usage(**billed_classes(seen))


def _latency_s(tier: Tier, usage: Usage) -> float:
    first_s, rate = SPEEDS[tier]
    return first_s + (usage.output_tokens + usage.reasoning_tokens) / rate
