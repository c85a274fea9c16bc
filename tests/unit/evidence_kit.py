"""The HTTP application with tasks under claims: real stores, a scripted frontier and engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.cache.entry_store import EntryStore
from serving.cache.service import CacheService
from serving.contracts.cache_settings import CacheSettings
from serving.contracts.deadline import Deadline
from serving.contracts.engine import (
    EngineOutput,
    EngineWork,
    ScoreOutput,
    ScoreWork,
    TokenCounts,
)
from serving.contracts.errors import NarrowgateError
from serving.contracts.evidence import Action, Audit, Candidate, Claim, ClaimEvent, Scope
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.frontier_settings import FrontierSettings
from serving.contracts.ledger import Tenant
from serving.contracts.settings import Replicas
from serving.contracts.task_spec import TaskSpec
from serving.evidence.appender import EvidenceAppender
from serving.evidence.drift_watch import DriftWatch
from serving.evidence.fold import rules_version
from serving.evidence.heads.candidate import DIMENSIONS
from serving.evidence.heads.cipher import VectorCipher
from serving.evidence.kept_texts import KeptTexts
from serving.evidence.retention import EvidenceRetention
from serving.evidence.rulings import Evidence
from serving.evidence.service import EvidenceService
from serving.evidence.snapshot import ClaimSnapshot
from serving.evidence.store import Definition, EvidenceStore
from serving.evidence.worker import EvidenceWorker
from serving.gateway.context import GatewayContext
from serving.ledger.database import Database
from serving.pipeline.auditor import Auditor, AuditRunners
from serving.pipeline.build import Audited, build_runners
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.replica_meter import ReplicaMeter
from serving.pipeline.runner import BoundTask
from serving.tasks.grant import Grant
from serving.tasks.task import bind

from .character_tokenizer import CharacterTokenizer
from .scripted import MODEL, WINDOW, ScriptedEngine, Server

REFERENCE = FrontierSettings().tiers["economy"][0]
AT = datetime(2026, 11, 2, 12, tzinfo=UTC)
EARLY = EvidenceSettings(min_groups=1, min_span_h=0.0, group_window_s=0.0)
"""Settings under which a few audits earn a claim."""


class Transitions:
    """EvidenceEvents that are kept."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def claims_changed(self, claims: Any) -> None:
        """Nothing is counted."""

    def claim_transition(self, claim: Claim, kind: str) -> None:
        self.seen.append((claim.id, kind))


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def worker(
    store: EvidenceStore, settings: EvidenceSettings = EARLY, **changes: Any
) -> EvidenceWorker:
    clock = changes.pop("clock", Clock())
    snapshot = changes.pop("snapshot", ClaimSnapshot(settings.max_snapshot_age_s, clock))
    return EvidenceWorker(store, settings, snapshot, Transitions(), clock, **changes)


WIDE = "wide"
"""The 16-bit model."""


class WideEngine(ScriptedEngine):
    """The 16-bit baseline: like the scripted engine, and where flips is set, another label wins."""

    def __init__(self) -> None:
        super().__init__()
        self.model_id = WIDE
        self.flips: Callable[[int], bool] = lambda number: False
        self.runs = 0

    async def run(
        self, works: Sequence[EngineWork], deadline: Deadline
    ) -> list[EngineOutput | NarrowgateError]:
        outputs: list[EngineOutput | NarrowgateError] = []
        for work in works:
            self.runs += 1
            assert isinstance(work, ScoreWork)
            best = 1 if self.flips(self.runs) else 0
            points = [
                tuple(0.0 if n == min(best, len(point.candidates) - 1) else -2.0
                      for n in range(len(point.candidates)))
                for point in work.points
            ]  # fmt: skip
            outputs.append(ScoreOutput(tuple(points), TokenCounts(7, 3, 0)))
        return outputs


async def _no_vector(text: str) -> NDArray[np.float32]:
    return np.zeros(DIMENSIONS, np.float32)


def keep_what_is_stored(
    context: GatewayContext, database: Database, settings: EvidenceSettings, cipher: VectorCipher
) -> None:
    """Give a wired server what every gateway with a database has: deletions, and a cache."""
    cache = CacheService(EntryStore(database), CacheSettings(), context.metrics.cache)
    retention = EvidenceRetention(settings, database, lambda: cipher)
    object.__setattr__(context, "retention", retention)
    object.__setattr__(context, "cache", context.cache or cache)


class EvidenceServer:
    """A server whose tasks run under claims, over a migrated database."""

    def __init__(
        self,
        specs: dict[str, TaskSpec],
        database: Database,
        grants: dict[str, Grant] | None = None,
        settings: EvidenceSettings = EARLY,
        reply: Callable[..., Any] | None = None,
        reference: str | None = REFERENCE,
        tenants: Mapping[str, Tenant] | None = None,
    ) -> None:
        cipher = VectorCipher([b"v" * 32])
        self.texts = None if settings.keep_texts is None else KeptTexts(database, cipher)
        self.server = Server(specs, grants)
        self.server.frontier.reply = reply
        self.store = EvidenceStore(database)
        self.clock = Clock()
        self.now = AT
        self.transitions = Transitions()
        self.snapshot = ClaimSnapshot(settings.max_snapshot_age_s, self.clock)
        drift = DriftWatch(lambda: self.now)
        self.worker = EvidenceWorker(
            self.store, settings, self.snapshot, self.transitions, self.clock, lambda: self.now,
            drift,
        )  # fmt: skip
        self.appender = EvidenceAppender(self.store, self.worker.wake)
        known = tenants or {}
        self.evidence = Evidence(
            settings, self.snapshot, reference if reply else None,
            lambda name: known.get(name, Tenant(name)), self.appender.open, b"k" * 32,
            now=lambda: self.now, drift=drift,
        )  # fmt: skip
        service = EvidenceService(
            settings, self.store, self.snapshot, self.worker, self.appender, self.evidence,
            texts=self.texts,
        )  # fmt: skip
        context = self.server.context
        tasks = context.models.tasks
        recorder = ExitRecorder(self.server.ledger, self.server.exits)

        def auditor(runners: AuditRunners) -> Auditor:
            self.auditor = Auditor(
                self.evidence, self.appender, recorder, tasks, runners,
                keep=None if self.texts is None else service.keep,
            )  # fmt: skip
            return self.auditor

        meters = {name: ReplicaMeter(Replicas()) for name in (MODEL, WIDE)}
        runners = build_runners(
            tasks, context.models.engines, meters, self.server.frontier, self.server.decisions,
            context.local_admission, context.frontier_admission,
            Audited(self.evidence, auditor, _no_vector, self._baseline(specs, settings)),
        )  # fmt: skip
        # The parts of a wired server that these tests replace.
        object.__setattr__(context, "path", replace(context.path, runners=runners))
        object.__setattr__(context, "evidence", service)
        keep_what_is_stored(context, database, settings, cipher)

    def _baseline(
        self, specs: dict[str, TaskSpec], settings: EvidenceSettings
    ) -> dict[str, BoundTask] | None:
        """Return the tasks on a second engine, the 16-bit model; None where none is configured."""
        if settings.baseline is None:
            return None
        self.wide = WideEngine()
        grant = Grant(None, None, None)
        return {
            name: BoundTask(bind(spec, CharacterTokenizer(), WINDOW), self.wide, grant)
            for name, spec in specs.items()
        }

    async def ready(self) -> "EvidenceServer":
        await self.server.ready()
        await self.worker.round()
        return self

    async def settle(self) -> None:
        """Let audits end, write them, fold them."""
        await self.auditor.settled()
        await self.appender.flush()
        await self.worker.round()

    async def ask(self, text: str, task: str = "topic", **kwargs: Any) -> Any:
        return await self.server.post(f"/v1/tasks/{task}", json={"input": text}, **kwargs)

    @property
    def claim(self) -> Claim:
        """Return the only claim."""
        (claim,) = self.snapshot.all()
        return claim

    def rows(self) -> list[Audit | ClaimEvent]:
        return self.store.rows_after(0)

    def audits(self) -> list[Audit]:
        return [row for row in self.rows() if isinstance(row, Audit)]


def opening(
    definition_id: str, threshold: float = 0.5, expected: float = 0.01, candidate: str = "model"
) -> ClaimEvent:
    parameters = {"expected_error": expected, "expected_coverage": 0.9}
    action = Action(candidate, threshold, parameters)
    return ClaimEvent(definition_id, "tested", "for a test", "narrowgate", AT, 0, action)


def audit(name: str, number: int, loss: float = 0.0, **changes: Any) -> Audit:
    """Return the number-th audit of a claim, each of its own group and text."""
    base = Audit(
        claim=name, input=f"i{number}", group=f"g{number}", text=f"t{number}", origin="shadow",
        coin=1.0, verdict="different" if loss else "same", loss=loss, reference=REFERENCE,
        candidates=(Candidate("model", 0.9, loss),), drawn_at=AT + timedelta(seconds=number),
        judged_at=AT + timedelta(seconds=number + 1), request_id=f"r{number}",
    )  # fmt: skip
    return replace(base, **changes)


def defined(
    name: str = "c1",
    *,
    target: float = 0.15,
    has_suite: bool = False,
    reference: str = REFERENCE,
    settings: EvidenceSettings = EARLY,
) -> Definition:
    versions = {"model": "tiny", "spec": "sha256:1", "rules": rules_version(settings)}
    scope = Scope("default", "topic", versions)
    return Definition(name, scope, "local_task", "exact", target, reference, has_suite, AT)
