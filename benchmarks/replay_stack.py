"""The request path of one arm of the cost replay: the shipped parts over the replay's provider."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from benchmarks.replay_briefs import learn_lengths
from benchmarks.replay_earning import EVIDENCE, Earned
from benchmarks.replay_provider import ReplayModel
from benchmarks.replay_setup import EARNED, UNBOUNDED, Lever, Replay
from serving.contracts.answer import Answer, Usage
from serving.contracts.frontier_settings import (
    BoundSettings,
    FrontierSettings,
    PromptCacheSettings,
    ProviderSettings,
)
from serving.contracts.ledger import Tenant
from serving.contracts.requests import ChatRequest, TaskBatch
from serving.contracts.routing import TIERS, Tier
from serving.contracts.settings import Replicas
from serving.evidence.appender import EvidenceAppender
from serving.evidence.rulings import Evidence
from serving.evidence.snapshot import ClaimSnapshot
from serving.evidence.store import EvidenceStore
from serving.evidence.worker import EvidenceWorker
from serving.ledger.database import Database
from serving.pipeline.admission import AdmissionQueue, Admitted, one_call
from serving.pipeline.answer_lengths import AnswerLengths
from serving.pipeline.bounded import Learning
from serving.pipeline.brevity import BrevityAuditor
from serving.pipeline.build import Tiering, build_runners
from serving.pipeline.context_auditor import ContextAuditor
from serving.pipeline.context_pruning import ContextPruning
from serving.pipeline.exit_recorder import (
    ExitRecorder,
    Outcome,
    OutcomeStream,
    RequestRecord,
    Served,
)
from serving.pipeline.frontier_model import FrontierModelRunner
from serving.pipeline.paired_auditor import Comparison
from serving.pipeline.plan import FrontierPlan, TaskPlan
from serving.pipeline.pruned import Pruning
from serving.pipeline.replica_meter import ReplicaMeter
from serving.pipeline.tier_auditor import TierAuditor
from serving.tiers.clusters import read_clustering
from serving.tiers.planner import TierPlanner

if TYPE_CHECKING:
    from benchmarks.replay_assumptions import Values
    from benchmarks.replay_mix import Request
    from serving.pipeline.hit_auditor import HitAuditor
    from serving.pipeline.runner import Runner

LOCAL = "local-model"
_KEY = b"k" * 32
_HOLDOUT_SECRET = b"h" * 16
_FOLDED_EVERY = 10
_PLANNED_EVERY = 100
Post = Callable[[dict[str, Any], dict[str, str]], Awaitable[Any]]
"""Sends a body with headers."""


class Clock:
    """Simulated seconds."""

    now_s = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


class AssumedLocal:
    """Implements Runner for tasks: an answer of assumed coverage, rightness and service time."""

    def __init__(self, values: "Values", model: "Runner[ChatRequest, FrontierPlan]") -> None:
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


def frontier_settings(replay: "Replay", levers: Sequence[Lever], url: str) -> FrontierSettings:
    """Return the settings of an arm: what no lever changes is as the client would ask it."""
    own = replay.settings.frontier
    unbounded: dict[Tier, int] = dict.fromkeys(TIERS, UNBOUNDED)
    bounds = own.bounds.model_copy(update={"learned": True})
    if "output_bounds" not in levers:
        bounds = BoundSettings(max_tokens=unbounded, directive=None)
    usual: dict[str, Any] = {"keyless": True, "max_retries": 0, "first_byte_timeout_s": 60.0}
    return FrontierSettings(
        providers={
            "anthropic": ProviderSettings(api="anthropic", base_url=url, **usual),
            "openai": ProviderSettings(api="openai", base_url=f"{url}/v1", **usual),
        },
        tiers={tier: own.tiers[tier][:1] for tier in TIERS},
        bounds=bounds,
        prompt_cache=PromptCacheSettings(enabled="prompt_caching" in levers),
    )


@dataclass(slots=True)
class _Earning:
    """Claims of one arm, in its database, with what was earned before the replay."""

    store: EvidenceStore
    worker: EvidenceWorker
    appender: EvidenceAppender
    evidence: Evidence
    earned: tuple[Earned, ...]
    planner: TierPlanner | None = None
    auditor: TierAuditor | None = None
    hits: "HitAuditor | None" = None
    contexts: ContextAuditor | None = None
    briefs: BrevityAuditor | None = None
    settled: int = 0

    @classmethod
    def of(
        cls, database: Database, earned: Sequence[Earned], reference: str,
        now: Callable[[], datetime],
    ) -> "_Earning":  # fmt: skip
        """Write the evidence, and fold it. Blocking: seconds."""
        from tests.unit.evidence_kit import Transitions

        store = EvidenceStore(database)
        snapshot = ClaimSnapshot(EVIDENCE.max_snapshot_age_s)
        worker = EvidenceWorker(store, EVIDENCE, snapshot, Transitions(), now=now)
        appender = EvidenceAppender(store, worker.wake)
        evidence = Evidence(EVIDENCE, snapshot, reference, Tenant, appender.open, _KEY, now=now)
        worker.round_blocking()
        return cls(store, worker, appender, evidence, tuple(earned))

    def plan(self) -> None:
        """Plan what is explored: of the traffic before the replay, which is of the same mix."""
        if self.planner is not None:
            traffic = {key: found for one in self.earned for key, found in one.traffic.items()}
            self.planner.plan(traffic, Decimal(0))

    async def settle(self) -> None:
        """Let comparisons end; write and fold them now and then, as the service does."""
        for auditor in (self.auditor, self.hits, self.contexts, self.briefs):
            if auditor is not None:
                await auditor.settled()
        number, self.settled = self.settled, self.settled + 1
        if number % _FOLDED_EVERY == 0:
            await self.appender.flush()
            await self.worker.round()
        if number % _PLANNED_EVERY == 0:
            self.plan()

    async def aclose(self) -> None:
        """End what goes on."""
        for auditor in (self.auditor, self.hits, self.contexts, self.briefs):
            if auditor is not None:
                await auditor.aclose()


class Stack:
    """The request path over the replay's provider: the shipped parts, a ledger in memory.

    Made outside of the event loop, because models are loaded.
    """

    def __init__(self, replay: "Replay", levers: Sequence[Lever], url: str, clock: Clock) -> None:
        from benchmarks.replay_ledger import PricedLedger
        from serving.contracts.context_settings import ContextSettings
        from serving.frontier.build import build_frontier
        from serving.pipeline.plan import Policy
        from serving.routing.router import build_router
        from serving.tasks.catalog import load_specs
        from tests.unit.authenticated import opened
        from tests.unit.frontier_kit import Recorder
        from tests.unit.scripted import MODEL, WINDOW, Server

        settings = frontier_settings(replay, levers, url)
        specs = load_specs(None) if "local_tasks" in levers else {}
        specs = {name: spec for name, spec in specs.items() if name in ("topic", "sentiment")}
        context = ContextSettings()
        if "context_pruning" in levers:
            context = replay.context_settings
        server = Server(
            specs, frontier=build_frontier(settings, replay.book, {}, Recorder(), clock)
        )
        self.gateway_s = 0.0
        self._server = server
        self.ledger = server.ledger = PricedLedger(replay.book)
        metrics = server.context.metrics
        self._metrics = metrics
        self._embedder = replay.embedder
        self._recorder = ExitRecorder(self.ledger, server.exits)
        self._database: Database | None = None
        self._earning: _Earning | None = None
        self._is_cached = "exact_cache" in levers or "similar_cache" in levers
        self._is_similar = "similar_cache" in levers
        is_earned = not set(EARNED).isdisjoint(levers)
        if self._is_cached or is_earned:
            self._database = opened(None, replay.arm_folder(levers))
        if self._database is not None and is_earned:
            found = replay.all_before(levers)
            until = max(one.until for one in found)

            def now() -> datetime:
                return until + timedelta(seconds=clock.now_s - Clock.now_s)

            self._earning = _Earning.of(self._database, found, replay.judge, now)
        path = server.context.path
        runners: dict[Any, Any] = dict(
            build_runners(
                {}, {}, {MODEL: ReplicaMeter(Replicas())}, server.frontier, server.decisions,
                server.context.local_admission, AdmissionQueue(16, 1000),
                pruning=self._pruning(
                    replay,
                    ContextPruning(
                        context, replay.pruner.get, replay.book, settings.prompt_cache.marker,
                        metrics,
                    ),
                ),
                learning=self._learning(replay, settings, levers),
                tiering=self._tiering(replay, settings, levers) if "tiers" in levers else None,
            )
        )  # fmt: skip
        self.local = runners[TaskPlan] = AssumedLocal(replay.values, runners[FrontierPlan])
        routing = replay.settings.routing
        asked: dict[Tier, tuple[str, ...]] = dict.fromkeys(TIERS, (replay.reference,))
        # Without tiers, and until one is earned, the reference answers, as the client would ask it.
        policy = Policy.of(
            settings.model_copy(update={"tiers": asked}),
            routing,
            specs,
            {MODEL: 4 * WINDOW},
            server.frontier.configured,
        )
        router = build_router(routing, specs, self._embedder, metrics)
        changed = replace(
            path, policy=policy, router=router, runners=runners, recorder=self._recorder
        )
        object.__setattr__(server.context, "path", changed)

    def _learning(
        self, replay: "Replay", settings: FrontierSettings, levers: Sequence[Lever]
    ) -> Learning | None:
        """Return learned bounds, with the lengths of earlier answers and the auditor of brevity."""
        bounds, earning = settings.bounds, self._earning
        if not bounds.learned:
            return None
        assert earning is not None
        lengths = AnswerLengths(None, self._metrics)
        targets = settings.tiers.values() if "tiers" in levers else [(replay.reference,)]
        learn_lengths(
            lengths, replay.requests,
            ReplayModel(replay.requests, replay.values, replay.tier_of(), replay.topics.kinds),
            [first for first, *_ in targets],
            round(replay.earlier_days * 86_400 / replay.values["arrival_s"]),
        )  # fmt: skip

        def auditor(asking: Any) -> BrevityAuditor:
            comparison = Comparison(
                earning.evidence, earning.appender, self._recorder, asking, replay.judge,
                replay.book, bounds.target_error,
            )  # fmt: skip
            earning.briefs = BrevityAuditor(comparison, bounds.directive or "")
            return earning.briefs

        # A process draws its own secret; two runs of an arm would hold out other requests.
        return Learning(lengths, bounds.holdout, bounds.directive, auditor, secret=_HOLDOUT_SECRET)

    def _pruning(self, replay: "Replay", pruning: ContextPruning) -> Pruning:
        """Return pruning with the auditor of its claims, where it is on."""
        from serving.frontier.failures import may_fall_back

        earning = self._earning
        if pruning.settings.mode == "off" or earning is None:
            return Pruning(pruning)

        def auditor(asking: Any) -> ContextAuditor:
            comparison = Comparison(
                earning.evidence, earning.appender, self._recorder, asking, replay.judge,
                replay.book, pruning.settings.target_error,
            )  # fmt: skip
            earning.contexts = ContextAuditor(comparison, replay.pruner.version, self._metrics)
            return earning.contexts

        return Pruning(pruning, auditor, may_fall_back)

    def _tiering(
        self, replay: "Replay", settings: FrontierSettings, levers: Sequence[Lever]
    ) -> Tiering:
        assert self._earning is not None
        earning = self._earning
        planner = TierPlanner(
            replay.tiers_settings.model_copy(
                update={"cascade": "on" if "cascade" in levers else "off"}
            ),
            read_clustering(None), settings.tiers,
            self._server.frontier.configured, replay.book, earning.evidence, self._metrics.tiers,
        )  # fmt: skip
        earning.planner = planner
        earning.plan()

        def auditor(reference: Any, served: Any) -> TierAuditor:
            earning.auditor = TierAuditor(
                planner, earning.appender, self._recorder, reference, served,
                self._embedder.embed,
            )  # fmt: skip
            return earning.auditor

        return Tiering(planner, auditor, self._embedder.embed)

    @asynccontextmanager
    async def posting(self) -> AsyncIterator[Post]:
        """Yield the function that sends a request.

        What goes on behind it, and the writing of a stored answer, have ended when it returns.
        """
        from tests.unit.cache_kit import cached

        async def post(body: dict[str, Any], headers: dict[str, str]) -> Any:
            began = time.perf_counter()
            response = await self._server.client.post(
                "/v1/chat/completions", json=body, headers=headers
            )
            self.gateway_s = time.perf_counter() - began
            return response

        async def settled(body: dict[str, Any], headers: dict[str, str]) -> Any:
            response = await post(body, headers)
            if self._earning is not None:
                await self._earning.settle()
            return response

        try:
            if not self._is_cached:
                yield settled
                return
            assert self._database is not None
            evidence = None if self._earning is None else self._earning.evidence
            async with (
                cached(self._server, self._database, evidence) as found,
                self._looking_up(found),
            ):

                async def written(body: dict[str, Any], headers: dict[str, str]) -> Any:
                    response = await settled(body, headers)
                    await found.service.read(lambda store: None)
                    return response

                yield written
        finally:
            if self._earning is not None:
                await self._earning.aclose()
            await self._server.client.aclose()
            await self._server.frontier.aclose()

    @asynccontextmanager
    async def _looking_up(self, found: Any) -> AsyncIterator[None]:
        """Look up by meaning, too, where the arm does."""
        from serving.cache.policy import guards_digest
        from serving.cache.question_store import QuestionStore
        from serving.cache.similar import SimilarEntries
        from serving.embedding.encoder import DIMENSIONS
        from serving.embedding.model_file import encoder_name
        from serving.pipeline.hit_auditor import HitAuditor
        from serving.pipeline.similar_chat import SimilarChats

        if not self._is_similar:
            yield
            return
        assert self._earning is not None
        earning, server = self._earning, self._server
        entries = SimilarEntries(QuestionStore(found.store), DIMENSIONS, 10.0)
        asking: Any = Admitted(
            FrontierModelRunner(server.frontier), AdmissionQueue(8, 100), one_call
        )
        earning.hits = HitAuditor(
            earning.evidence, earning.appender, self._recorder, asking, entries,
            self._metrics.cache,
        )  # fmt: skip
        path = server.context.path
        assert path.cache is not None
        chats = SimilarChats(
            path.cache, entries, self._metrics.cache, self._embedder.embed,
            (encoder_name(), guards_digest()), earning.evidence, earning.hits,
        )  # fmt: skip
        object.__setattr__(server.context, "path", replace(path, similar=chats))
        watch = asyncio.create_task(entries.watch())
        try:
            yield
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    def close(self) -> None:
        """Close the database."""
        if self._database is not None:
            self._database.close()
