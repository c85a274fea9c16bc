"""Builds the batch lane from settings."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from serving.batch.audit_store import AuditStore
from serving.batch.audits import AuditBatches, AuditParts
from serving.batch.blobs import BlobStore
from serving.batch.check import LineRules
from serving.batch.check_turns import CheckTurns
from serving.batch.estimate import CostEstimate
from serving.batch.files import FileStore, utc_now
from serving.batch.line_work import NotedLedger
from serving.batch.lines import LineFormat
from serving.batch.provider_batches import ProviderBatches
from serving.batch.runner import ExitNotes, LineRunner
from serving.batch.scheduler import BatchEvents, Scheduler, SchedulerParts
from serving.batch.service import BatchService
from serving.batch.slack import Slack
from serving.batch.store import BatchStore
from serving.batch.submission_store import SubmissionStore
from serving.batch.submissions import ResumableLedger, SubmissionParts
from serving.contracts.batch_settings import BatchSettings
from serving.evidence.heads.cipher import VectorCipher
from serving.frontier.frontier import FrontierStack
from serving.ledger.database import Database
from serving.pipeline.admission import AdmissionQueue
from serving.pipeline.request_path import RequestPath

_THREADS = 4


@dataclass(frozen=True, slots=True)
class BatchDeps:
    """What the lane is built from.

    path: of online requests. queues: of interactive work, which the lane makes way for. model_of:
    the local model of a task. longest: bytes of a line. folder: of the files' contents. cipher: of
    the cache's key, None without one. grace_s: for running lines when the process stops.
    providers: their batch APIs by name, used with frontier and ledger. audits: None where evidence
    is off.
    """

    path: RequestPath
    queues: Sequence[AdmissionQueue]
    line_format: LineFormat
    events: BatchEvents
    database: Database
    folder: Path
    model_of: Callable[[str], str | None]
    longest: int
    grace_s: float
    cipher: VectorCipher | None = None
    estimate: CostEstimate | None = None
    providers: Mapping[str, ProviderBatches] = field(default_factory=dict)
    frontier: FrontierStack | None = None
    ledger: ResumableLedger | None = None
    audits: AuditParts | None = None


def build_batches(settings: BatchSettings, deps: BatchDeps) -> BatchService:
    """Return the lane; its watch runs it."""
    path, estimate = deps.path, deps.estimate
    notes = ExitNotes(path.recorder.observer)
    # The same steps with a recorder that also tells what a line cost, and when that is on disk.
    ledger = NotedLedger(path.recorder.ledger)
    path = replace(path, recorder=replace(path.recorder, observer=notes, ledger=ledger))
    blobs = BlobStore(deps.folder, deps.cipher)
    files = FileStore(deps.database, blobs, settings)
    store = BatchStore(deps.database)
    slack = Slack(settings, deps.queues)
    rules = LineRules(
        path.policy, deps.line_format, deps.model_of, path.max_inputs, deps.longest,
        settings.max_lines, None if estimate is None else estimate.worst,
        None if estimate is None else estimate.reference,
        None if estimate is None else estimate.in_batch,
        None if estimate is None else estimate.held,
        None if path.cache is None else path.cache.equal_key, slack.breathe,
    )  # fmt: skip
    runner = LineRunner(path, notes, deps.line_format, settings, ledger, deps.cipher)
    audits = AuditBatches(AuditStore(store), deps.frontier, deps.audits, utc_now)
    submissions = None
    # Also without a provider: lines may be in the batch of one that the settings no longer name.
    if deps.frontier is not None and deps.ledger is not None:
        submissions = SubmissionParts(
            SubmissionStore(deps.database), files, blobs, deps.providers, deps.frontier,
            deps.ledger, deps.path.recorder.observer, path.policy, deps.line_format, runner,
            settings, path.max_inputs, utc_now, slack, audits, path.cache,
        )  # fmt: skip
    scheduler = Scheduler(
        SchedulerParts(
            store,
            files,
            blobs,
            runner,
            rules,
            slack,
            settings,
            deps.events,
            deps.grace_s,
            audits,
            submissions,
        )
    )
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="batch-api")
    return BatchService(store, files, blobs, rules, settings, scheduler, threads, CheckTurns())
