"""Builds the Ray Serve applications from settings: the only place that wires the parts."""

import asyncio
import ctypes
import gc
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from fastapi import FastAPI
from prometheus_client import disable_created_metrics
from ray import serve
from ray.serve.deployment import Application
from ray.serve.schema import LoggingConfig

from serving.artifacts.checkpoint import Checkpoint, locate
from serving.artifacts.load_check import CONFIG_KEY, METRICS_PORT_KEY, LoadCheck, ModelGrants
from serving.artifacts.verified_tokenizer import load_tokenizer
from serving.batch.audits import AuditParts
from serving.batch.batched_frontier import BatchedFrontier
from serving.batch.blobs import BlobStore
from serving.batch.build import BatchDeps, build_batches
from serving.batch.estimate import CostEstimate
from serving.batch.files import FileStore
from serving.batch.providers import build_provider_batches
from serving.batch.service import BatchService
from serving.cache.entry_store import KEY_SETTING, open_store
from serving.cache.policy import guards_digest, policy_digest
from serving.cache.question_store import QuestionStore
from serving.cache.service import CacheService
from serving.cache.similar import SimilarEntries
from serving.context.lazy import LazyPruner
from serving.contracts.frontier import Frontier
from serving.contracts.ledger import Tenant
from serving.contracts.replica_process import REPLICA_ENVIRONMENT
from serving.contracts.requests import ChatRequest, TaskBatch
from serving.contracts.settings import GatewaySettings, ModelSettings, Settings
from serving.contracts.task_spec import TaskSpec
from serving.embedding.embedder import Embedder, build_embedder
from serving.embedding.encoder import DIMENSIONS
from serving.embedding.model_file import encoder_name
from serving.evidence.heads.cipher import load_cipher
from serving.evidence.heads.keys import vector_cipher
from serving.evidence.heads.service import build_heads
from serving.evidence.pending_audits import drop_late_audits
from serving.evidence.retention import EvidenceRetention, Purge
from serving.evidence.service import EvidenceService, build_evidence, kept_texts
from serving.evidence.shortcuts import ReadingRules
from serving.evidence.text_key import text_key
from serving.frontier.build import build_frontier
from serving.frontier.failures import may_fall_back
from serving.frontier.frontier import FrontierStack
from serving.gateway.access import Access
from serving.gateway.batch_lines import HttpLineFormat
from serving.gateway.context import GatewayContext
from serving.gateway.http import build_http
from serving.gateway.local_models import ConnectedModel, LocalModels, ReadStatuses
from serving.gateway.metrics import Metrics
from serving.ledger.access.directory import Directory
from serving.ledger.answer_lengths import AnswerLengthStore
from serving.ledger.build import build_ledger
from serving.ledger.database import Database, database_url, ledger_url
from serving.ledger.ledger import DatabaseLedger
from serving.ledger.pricing.book import PriceBook
from serving.ledger.pricing.cost import Pricing
from serving.ledger.reports.served import LedgerReports
from serving.local.client import EngineClient
from serving.local.deployment import llm_config_arguments
from serving.local.status_file import read_statuses
from serving.pipeline.admission import AdmissionQueue, Admitted, one_call
from serving.pipeline.answer_lengths import AnswerLengths
from serving.pipeline.auditor import Auditor, AuditRunners
from serving.pipeline.bounded import Learning
from serving.pipeline.brevity import BrevityAuditor
from serving.pipeline.build import Audited, Tiering, build_runners
from serving.pipeline.cache_access import CacheAccess
from serving.pipeline.context_auditor import ContextAuditor
from serving.pipeline.context_pruning import ContextPruning
from serving.pipeline.deferred_audits import DeferredAudits
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.frontier_model import FrontierModelRunner
from serving.pipeline.hit_auditor import HitAuditor
from serving.pipeline.in_force import InForce
from serving.pipeline.known_vectors import KnownVectors
from serving.pipeline.paired_auditor import Comparison
from serving.pipeline.plan import FrontierPlan, Policy
from serving.pipeline.pruned import Pruning
from serving.pipeline.reading_auditor import ReadingAuditor
from serving.pipeline.reading_claims import ReadingClaims
from serving.pipeline.replica_meter import ReplicaMeter
from serving.pipeline.request_path import RequestPath
from serving.pipeline.runner import BoundTask, Runner
from serving.pipeline.similar_chat import SimilarChats
from serving.pipeline.tier_auditor import TierAuditor
from serving.routing.decision_log import build_decision_log
from serving.routing.router import build_router, reader_digest
from serving.tasks.prompt import CheckpointTokenizer, longest_input
from serving.tasks.task import bind
from serving.tiers.clusters import read_clustering
from serving.tiers.planner import TierPlanner

GATEWAY_DEPLOYMENT = "Gateway"
_YOUNG_OBJECTS = 5_000
"""New objects, net of those that died, between two collections of the youngest; 700 in Python."""

logger = logging.getLogger(__name__)

# Admission is the gateway's own and says why it refuses; Serve's must not refuse before it.
_GATEWAY_MAX_ONGOING = 100_000


@dataclass(frozen=True, slots=True)
class Engines:
    """How a gateway finds its engines.

    read: returns the models' statuses, blocking. handle: returns the handle of a deployed engine by
    the application in its status; called on the event loop. artifact: digest (hex) of the only
    model that may serve, None where attestations alone decide.
    """

    read: ReadStatuses
    handle: Callable[[str], Any]
    artifact: str | None = None

    @classmethod
    def of_file(cls, statuses: Path) -> "Engines":
        """Return engines that are applications of their own, as a local stack's file lists them."""
        return cls(lambda: read_statuses(statuses), serve.get_app_handle)


class Gateway:
    """The HTTP replica: tokenizes, plans, batches, parses. No model weights.

    engines: how the models' engines are found; a path is the file in which the process that starts
    the stack writes the models' states.
    """

    def __init__(
        self, settings: Settings, specs: Mapping[str, TaskSpec], engines: Engines | Path
    ) -> None:
        _log_through_serve()
        disable_created_metrics()  # type: ignore[no-untyped-call]
        found = Engines.of_file(engines) if isinstance(engines, Path) else engines
        self._context = _build_context(settings, specs, found)
        _settle_objects()

    def __serve_build_asgi_app__(self) -> FastAPI:  # Ray Serve's hook
        """Return the ASGI application; called by Ray Serve after the constructor."""
        return build_http(self._context)

    def check_health(self) -> None:  # Ray Serve's hook
        """Raise EngineFailure where this replica must be replaced."""
        self._context.background.check()

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests from now on and return when those in progress are done.

        timeout_s: the longest to wait for them.
        """
        await self._context.drain(timeout_s)


def build_gateway(settings: Settings, specs: Mapping[str, TaskSpec], statuses: Path) -> Application:
    """Return the gateway's application. It starts without any model and connects each later.

    settings: linted. specs: tasks by name. statuses: the file that write_statuses writes.
    """
    application: Application = serve.deployment(**gateway_options(settings.gateway))(
        serve.ingress()(Gateway)
    ).bind(settings, specs, statuses)
    return application


def gateway_options(gateway: GatewaySettings) -> dict[str, Any]:
    """Return the options of the gateway's Serve deployment."""
    return {
        "name": GATEWAY_DEPLOYMENT,
        "max_ongoing_requests": _GATEWAY_MAX_ONGOING,
        # The gateway logs one line for each request.
        "logging_config": LoggingConfig(enable_access_log=False),
        "num_replicas": gateway.replicas,
        "max_replicas_per_node": gateway.max_replicas_per_node,
        "ray_actor_options": {
            "num_cpus": gateway.num_cpus,
            "runtime_env": {"env_vars": REPLICA_ENVIRONMENT},
        },
        "graceful_shutdown_timeout_s": gateway.drain_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.2,
    }


def build_engine(
    settings: Settings,
    model: ModelSettings,
    checkpoint: Checkpoint,
    artifact: str | None = None,
    nodes: Mapping[str, str] | None = None,
) -> Application:
    """Return the application that is one model's engine.

    artifact: digest (hex) of the only model that it may load, None where the attestation decides.
    nodes: labels of the Ray nodes on which it may run, None for any with its resources.
    """
    # Imported here: gateway replicas import this module and must not load vLLM, which takes
    # 10 s and 500 MB to import.
    from ray.serve.llm import build_llm_deployment

    from serving.local.engine import EngineServer

    application: Application = build_llm_deployment(
        _llm_config(settings, model, checkpoint, artifact),
        name_prefix="Engine:",
        override_serve_options=(
            {"placement_group_bundle_label_selector": [dict(nodes)]} if nodes else None
        ),
        deployment_cls=EngineServer,
    )
    return application


def _llm_config(
    settings: Settings, model: ModelSettings, checkpoint: Checkpoint, artifact: str | None
) -> Any:
    from ray.serve.llm import LLMConfig

    arguments = llm_config_arguments(model, checkpoint, settings.gateway.drain_timeout_s)
    # Ray accepts extra values only here; the replica removes them before it loads anything.
    check = LoadCheck.of(settings, model, checkpoint, artifact)
    arguments["experimental_configs"][CONFIG_KEY] = check
    arguments["experimental_configs"][METRICS_PORT_KEY] = settings.metrics_port
    return LLMConfig(**arguments)


def _build_context(
    settings: Settings, specs: Mapping[str, TaskSpec], engines: Engines
) -> GatewayContext:
    targets = (target for tier in settings.frontier.tiers.values() for target in tier)
    metrics = Metrics((*(model.id for model in settings.models), *targets))
    models = LocalModels(
        {
            model.id: [specs[name] for name in specs if settings.model_for(name) == model.id]
            for model in settings.models
        },
        read=engines.read,
        connect=_Connector(settings, specs, metrics, engines),
        baseline=_baseline(settings, specs),
        alone=() if settings.models else list(specs.values()),
    )
    gateway, routing = settings.gateway, settings.routing
    local = AdmissionQueue(gateway.max_concurrent_inputs, gateway.max_queued_inputs)
    remote = AdmissionQueue(routing.max_concurrent_frontier, routing.max_queued_frontier)
    prices = PriceBook.load(settings.ledger.prices_file)
    ledger = _build_ledger(settings, prices, metrics)
    frontier = build_frontier(settings.frontier, prices, os.environ, metrics)
    if settings.frontier.providers and (change := prices.newest_change()):
        metrics.ledger.price_table_read(*change)
    decisions = build_decision_log(routing, metrics)
    meters = {m.id: ReplicaMeter(m.replicas, gateway.replicas) for m in settings.models}
    # Separate connections: reading a report must not delay writing a row.
    reading = Database(database_url(ledger_url(settings.ledger), settings.state))
    directory = Directory(reading, settings.auth)
    recorder = ExitRecorder(ledger, metrics)
    embedder = build_embedder(settings.state)
    evidence = _build_evidence(settings, frontier.configured, directory.tenant, metrics)
    pruning = _build_pruning(settings, metrics, evidence, frontier.configured, recorder, prices)
    deferred = None if evidence is None else _deferred(evidence, models, ledger, frontier)
    router = build_router(routing, specs, embedder, metrics)
    readings = None if evidence is None else ReadingClaims(
        evidence.evidence, models.tasks,
        ReadingRules(reader_digest(routing), routing.narrow_target_error),
    )  # fmt: skip
    audited = None if evidence is None or readings is None else _audited(
        evidence, recorder, models, embedder, deferred, readings
    )  # fmt: skip
    tiering = None if evidence is None else _tiering(
        settings, evidence, frontier.configured, prices, recorder, embedder, metrics, reading
    )  # fmt: skip
    cache = _build_cache(settings, metrics)
    in_force = InForce(models.tasks, None if evidence is None else evidence.evidence, readings)
    access = None if not settings.cache.enabled else CacheAccess(
        cache, specs, in_force, policy_digest(settings, specs)
    )  # fmt: skip
    similar = None if access is None else _build_similar(
        settings, access, evidence, recorder, frontier, remote, embedder, metrics
    )  # fmt: skip
    learning = _build_learning(settings, metrics, evidence, frontier.configured, recorder, prices)
    path = RequestPath(
        policy=Policy.of(settings.frontier, routing, specs, models.max_chars, frontier.configured),
        router=router,
        recorder=recorder,
        runners=build_runners(
            models.tasks,
            models.engines,
            meters,
            BatchedFrontier(frontier),
            decisions,
            local,
            remote,
            audited,
            pruning,
            learning,
            tiering,
        ),
        max_inputs=gateway.max_inputs,
        known=KnownVectors(routing.known_instructions),
        cache=access,
        similar=similar,
    )
    return GatewayContext(
        settings=gateway,
        path=path,
        models=models,
        frontier=frontier,
        decisions=decisions,
        local_admission=local,
        frontier_admission=remote,
        metrics=metrics,
        access=Access.of(directory, settings.auth, gateway.replicas),
        ledger=ledger,
        reports=LedgerReports(reading, ZoneInfo(settings.ledger.time_zone)),
        development=settings.attestation.development,
        evidence=evidence,
        retention=_build_retention(settings),
        cache=cache,
        lengths=None if learning is None else learning.lengths,
        metrics_port=settings.metrics_port,
        batches=_build_batches(
            settings,
            path,
            (local, remote),
            metrics,
            CostEstimate(
                prices,
                frontier.configured,
                frontier.batch_targets,
                settings.ledger.reference_model,
                {name: bound.task for name, bound in models.tasks.items()},
            ),
            frontier,
            ledger,
            _audit_parts(evidence, deferred),
        ),
        batch=settings.batch,
    )


def _build_batches(
    settings: Settings,
    path: RequestPath,
    queues: Sequence[AdmissionQueue],
    metrics: Metrics,
    estimate: CostEstimate,
    frontier: FrontierStack,
    ledger: DatabaseLedger,
    audits: AuditParts | None,
) -> BatchService | None:
    if not settings.batch.enabled:
        return None
    key_file = settings.cache.encryption_key_file
    deps = BatchDeps(
        path=path,
        queues=queues,
        line_format=HttpLineFormat(),
        events=metrics.batch,
        # Its own connections, as the cache's.
        database=Database(database_url(ledger_url(settings.ledger), settings.state)),
        folder=settings.state / "files",
        model_of=settings.model_for,
        longest=settings.gateway.max_body_bytes,
        grace_s=settings.gateway.drain_timeout_s / 2,
        cipher=None if key_file is None else load_cipher(key_file, KEY_SETTING),
        estimate=estimate,
        providers=build_provider_batches(settings.frontier, os.environ),
        frontier=frontier,
        ledger=ledger,
        audits=audits,
    )
    return build_batches(settings.batch, deps)


def _build_learning(
    settings: Settings,
    metrics: Metrics,
    evidence: EvidenceService | None,
    configured: Callable[[tuple[str, ...]], tuple[str, ...]],
    recorder: ExitRecorder,
    prices: PriceBook,
) -> Learning | None:
    bounds = settings.frontier.bounds
    if not bounds.learned:
        return None
    # Its own connections, as the cache's.
    database = Database(database_url(ledger_url(settings.ledger), settings.state))
    lengths = AnswerLengths(AnswerLengthStore(database), metrics)
    if bounds.judge is None or evidence is None:
        return Learning(lengths, bounds.holdout, bounds.directive)
    judge = next(iter(configured((bounds.judge,))), None)
    if judge is None:
        logger.warning("bounds.no_judge model=%s: no answer is asked for briefly", bounds.judge)

    def auditor(asking: Runner[ChatRequest, FrontierPlan]) -> BrevityAuditor:
        comparison = Comparison(
            evidence.evidence, evidence.appender, recorder, asking, judge, prices,
            bounds.target_error,
        )  # fmt: skip
        made = BrevityAuditor(comparison, bounds.directive or "")
        evidence.closers.append(made.aclose)
        return made

    return Learning(lengths, bounds.holdout, bounds.directive, auditor)


def _build_pruning(
    settings: Settings,
    metrics: Metrics,
    evidence: EvidenceService | None,
    configured: Callable[[tuple[str, ...]], tuple[str, ...]],
    recorder: ExitRecorder,
    prices: PriceBook,
) -> Pruning:
    context = settings.context
    pruner = LazyPruner(context)
    pruning = ContextPruning(
        context, pruner.get, prices, settings.frontier.prompt_cache.marker, metrics
    )
    if context.judge is None or evidence is None:
        return Pruning(pruning)
    judge = next(iter(configured((context.judge,))), None)
    if judge is None:
        logger.warning("context.no_judge model=%s: mode auto prunes nothing", context.judge)

    def auditor(asking: Runner[ChatRequest, FrontierPlan]) -> ContextAuditor:
        comparison = Comparison(
            evidence.evidence, evidence.appender, recorder, asking, judge, prices,
            context.target_error,
        )  # fmt: skip
        made = ContextAuditor(comparison, pruner.version, metrics)
        evidence.closers.append(made.aclose)
        return made

    after_timeout = settings.frontier.fall_back_after_timeout
    return Pruning(
        pruning, auditor, lambda error: may_fall_back(error, after_timeout=after_timeout)
    )


def _build_cache(settings: Settings, metrics: Metrics) -> CacheService:
    # Its own connections: a lookup must not wait for a request's rows. Entries may be lost with the
    # power; where their commits waited for a slow disk, paid calls found SQLite locked.
    url = database_url(ledger_url(settings.ledger), settings.state)
    database = Database(url, is_synced=False)
    return CacheService(open_store(database, settings.cache), settings.cache, metrics.cache)


def _build_similar(
    settings: Settings,
    access: CacheAccess,
    evidence: EvidenceService | None,
    recorder: ExitRecorder,
    frontier: Frontier,
    remote: AdmissionQueue,
    embedder: Embedder,
    metrics: Metrics,
) -> SimilarChats | None:
    if settings.cache.semantic == "off":
        return None
    entries = SimilarEntries(
        QuestionStore(access.cache.entry_store), DIMENSIONS, settings.cache.lookup_timeout_s
    )
    auditor = None
    if evidence is not None and evidence.evidence.reference is not None:
        asking: Runner[ChatRequest, FrontierPlan] = Admitted(
            FrontierModelRunner(frontier), remote, one_call
        )
        auditor = HitAuditor(
            evidence.evidence, evidence.appender, recorder, asking, entries, metrics.cache
        )
        evidence.closers.append(auditor.aclose)
    return SimilarChats(
        access, entries, metrics.cache, embedder.embed, (encoder_name(), guards_digest()),
        None if evidence is None else evidence.evidence, auditor,
    )  # fmt: skip


def _build_retention(settings: Settings) -> EvidenceRetention:
    database = Database(database_url(ledger_url(settings.ledger), settings.state))
    others: dict[str, Purge] = {}
    if not settings.batch.enabled:
        # The lane does both itself.
        files = FileStore(database, BlobStore(settings.state / "files"), settings.batch)
        silence_h = settings.evidence.max_silence_h
        others = {
            "files": files.sweep,
            "pending_audits": lambda: drop_late_audits(database, silence_h),
        }
    return EvidenceRetention(
        settings.evidence, database,
        lambda: vector_cipher(settings.state, settings.evidence.vector_key_file), others,
    )  # fmt: skip


def _build_evidence(
    settings: Settings,
    configured: Callable[[tuple[str, ...]], tuple[str, ...]],
    tenant_of: Callable[[str], Tenant],
    metrics: Metrics,
) -> EvidenceService | None:
    if not settings.evidence.enabled:
        return None
    named = settings.evidence.reference
    targets = settings.frontier.tiers[settings.routing.task_tier] if named is None else (named,)
    reference = next(iter(configured(targets)), None)
    # Its own connections: folding audits must not delay requests' rows.
    database = Database(database_url(ledger_url(settings.ledger), settings.state))
    # Without a reference no text is digested, and the state folder need not hold a key.
    is_judged = reference is not None or settings.evidence.keep_texts is not None
    key = (
        secrets.token_bytes(32)
        if not is_judged
        else text_key(settings.state, settings.evidence.vector_key_file)
    )
    service = build_evidence(
        settings.evidence, database, reference, tenant_of, metrics.evidence, key, settings.state
    )
    service = replace(service, texts=kept_texts(settings.evidence, database, settings.state))
    if reference is None or not settings.evidence.heads:
        return service
    heads = build_heads(
        settings.state, settings.evidence, database, service.evidence, metrics.evidence,
        encoder_name(),
    )  # fmt: skip
    service.worker.fitted = heads.tests
    return replace(service, heads=heads)


def _deferred(
    evidence: EvidenceService,
    models: LocalModels,
    ledger: DatabaseLedger,
    frontier: FrontierStack,
) -> DeferredAudits | None:
    """Return what audits in batches need; None without a reference."""
    if evidence.pending is None:
        return None
    return DeferredAudits(
        evidence.evidence, models.tasks, ledger,
        lambda call: frontier.batch_request(call).worst_case_usd,
        None if evidence.heads is None else evidence.heads.learn,
        None if evidence.texts is None else evidence.keep,
    )  # fmt: skip


def _audit_parts(
    evidence: EvidenceService | None, deferred: DeferredAudits | None
) -> AuditParts | None:
    if evidence is None or evidence.pending is None or deferred is None:
        return None
    return AuditParts(evidence.pending, deferred, evidence.settings, evidence.worker.wake)


def _audited(
    evidence: EvidenceService,
    recorder: ExitRecorder,
    models: LocalModels,
    embedder: Embedder,
    deferred: DeferredAudits | None,
    readings: ReadingClaims,
) -> Audited:
    is_batch = evidence.settings.audit.mode == "batch"

    def auditor(runners: AuditRunners) -> Auditor:
        learn = None if evidence.heads is None else evidence.heads.learn
        made = Auditor(
            evidence.evidence, evidence.appender, recorder, models.tasks, runners,
            embed=embedder.embed, learn=learn,
            keep=None if evidence.texts is None else evidence.keep,
            deferred=deferred if is_batch else None,
        )  # fmt: skip
        evidence.closers.append(made.aclose)
        return made

    def reading(
        asked: Runner[TaskBatch, FrontierPlan], asked_chat: Runner[ChatRequest, FrontierPlan]
    ) -> ReadingAuditor:
        made = ReadingAuditor(readings, evidence.appender, recorder, asked, asked_chat)
        evidence.closers.append(made.aclose)
        return made

    judged = None if evidence.settings.baseline is None else models.judged
    return Audited(evidence.evidence, auditor, embedder.embed, judged, reading)


def _tiering(
    settings: Settings,
    evidence: EvidenceService,
    configured: Callable[[tuple[str, ...]], tuple[str, ...]],
    prices: PriceBook,
    recorder: ExitRecorder,
    embedder: Embedder,
    metrics: Metrics,
    database: Database,
) -> Tiering | None:
    if settings.tiers.mode == "off":
        return None
    clustering = read_clustering(settings.tiers.clusters_file)
    planner = TierPlanner(
        settings.tiers, clustering, settings.frontier.tiers, configured, prices,
        evidence.evidence, metrics.tiers, settings.frontier.may_give_logprobs,
        settings.gateway.replicas,
    )  # fmt: skip

    def auditor(
        reference: Runner[ChatRequest, FrontierPlan], served: Runner[ChatRequest, FrontierPlan]
    ) -> TierAuditor:
        made = TierAuditor(planner, evidence.appender, recorder, reference, served, embedder.embed)
        evidence.closers.append(made.aclose)
        return made

    evidence.watches.append(lambda: planner.watch(database, evidence.store))
    return Tiering(planner, auditor, embedder.embed)


def _baseline(
    settings: Settings, specs: Mapping[str, TaskSpec]
) -> tuple[str, Sequence[TaskSpec]] | None:
    evidence = settings.evidence
    if not evidence.enabled or evidence.baseline is None:
        return None
    return evidence.baseline, list(specs.values())


class _Connector:
    """Connects the gateway to a model whose engine is deployed."""

    def __init__(
        self,
        settings: Settings,
        specs: Mapping[str, TaskSpec],
        metrics: Metrics,
        engines: Engines,
    ) -> None:
        self._settings = settings
        self._specs = specs
        self._metrics = metrics
        self._engines = engines

    async def __call__(self, model_id: str, application: str) -> ConnectedModel:
        """Return the client and the tasks.

        Raises AttestationRefused, InvalidKey, ConfigurationError.
        """
        settings = self._settings
        (model,) = (model for model in settings.models if model.id == model_id)
        granted, tokenizer = await asyncio.to_thread(self._load, model)
        # On the event loop: under RAY_SERVE_THROUGHPUT_OPTIMIZED a handle routes in the loop that
        # made it.
        handle = self._engines.handle(application)
        self._metrics.model_connected(model_id, granted.artifact, granted.expires)
        client = EngineClient(model, handle, self._metrics, granted.enforced)
        is_baseline = settings.evidence.enabled and settings.evidence.baseline == model_id
        tasks, judged = {}, {}
        for name, spec in self._specs.items():
            grant = granted.tasks[name]
            task = bind(spec, tokenizer, model.max_model_len, grant.label_offsets)
            if settings.model_for(name) == model_id:
                tasks[name] = BoundTask(task, client, grant)
            if is_baseline:
                # No client gets its answers, so that no gate need have passed this task.
                judged[name] = BoundTask(task, client, replace(grant, refusal=None))
        longest = longest_input(tokenizer, model.max_model_len)
        # The tokenizer, and the modules that it needed, live as long.
        _settle_objects()
        return ConnectedModel(client, tasks, longest, judged)

    def _load(self, model: ModelSettings) -> tuple[ModelGrants, CheckpointTokenizer]:
        """Read the attestation and the tokenizer. Blocking."""
        checkpoint = locate(model, self._settings.state)
        check = LoadCheck.of(self._settings, model, checkpoint, self._engines.artifact)
        return ModelGrants.of(check, self._specs), load_tokenizer(check)


def _build_ledger(settings: Settings, prices: PriceBook, metrics: Metrics) -> DatabaseLedger:
    # The linter has refused models without a price of an hour.
    hours = {model.id: model.replica_hour_usd or Decimal(0) for model in settings.models}
    provisioned = (hours[model.id] * model.replicas.min for model in settings.models)
    return build_ledger(
        settings.ledger,
        settings.state,
        Pricing(prices, hours, settings.ledger.reference_model),
        metrics.ledger,
        sum(provisioned, Decimal(0)),
    )


def _settle_objects() -> None:
    """Leave the objects that live as long as the process out of garbage collection from now on.

    They are half a million, of imported modules above all: looking through them took 270 ms, with
    every request waiting, and 17 % of a frontier call's processor time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])
    # What loading needed goes back to the system: 30 MB after a tokenizer. Other C libraries than
    # glibc have no such function.
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _log_through_serve() -> None:
    # Ray Serve's logger has the handlers: the replica's log file, with replica and request id.
    ours = logging.getLogger("serving")
    ours.handlers = logging.getLogger("ray.serve").handlers
    ours.setLevel(logging.INFO)
    ours.propagate = False
