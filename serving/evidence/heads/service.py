"""Learned heads in one gateway replica: store labelled inputs, fit and load heads."""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from sqlalchemy.exc import SQLAlchemyError

from serving.contracts.answer import Value
from serving.contracts.errors import LedgerUnavailable
from serving.contracts.evidence import Claim, ClaimState, Scope
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.task_spec import ClassificationSpec, TaskSpec
from serving.evidence.candidates import LocalView
from serving.evidence.heads.candidate import DIMENSIONS
from serving.evidence.heads.example_store import ExampleStore, Source, Task
from serving.evidence.heads.examples import Example
from serving.evidence.heads.fit_queue import FitQueue
from serving.evidence.heads.head_candidate import HeadCandidate, model_logs
from serving.evidence.heads.head_directory import HeadDirectory
from serving.evidence.heads.head_store import HeadStore
from serving.evidence.heads.head_tests import HeadTests, head_scope
from serving.evidence.heads.keys import evidence_keys, vector_cipher
from serving.evidence.heads.trainer import HeadEvents, HeadTrainer, TrainerDeps
from serving.evidence.rulings import Evidence
from serving.ledger.database import Database

logger = logging.getLogger(__name__)

_TIDY_EVERY_S = 3600.0


@dataclass(frozen=True, slots=True)
class LabelledInput:
    """An input with the reference's answer. scope: of its claim."""

    scope: Scope
    spec: TaskSpec
    source: Source
    view: LocalView
    label: Value


class HeadService:
    """Everything about heads in one process. Build it with build_heads.

    encoder: names the encoder of the vectors.
    """

    def __init__(
        self,
        examples: ExampleStore,
        heads: HeadStore,
        trainer: HeadTrainer,
        evidence: Evidence,
        encoder: str,
    ) -> None:
        settings = evidence.settings
        self.examples = examples
        self.heads = heads
        self.trainer = trainer
        self.tests = HeadTests(examples, heads, settings.head)
        self._evidence = evidence
        self._encoder = encoder
        self._refresh_s = settings.head.check_s
        self._directory = HeadDirectory(heads, self._refresh_s)

    async def learn(self, found: LabelledInput) -> None:
        """Store a labelled input as an example; what cannot teach is left out.

        While the database is unreachable the example is lost: a later input teaches the same.
        """
        spec, vector = found.spec, found.view.vector
        if not isinstance(spec, ClassificationSpec) or vector is None:
            return
        labels = tuple(label.name for label in spec.labels)
        if found.label not in labels or vector.shape != (DIMENSIONS,):
            return
        logs = model_logs(found.view, labels)
        versions = found.scope.versions
        model = "" if logs is None else f"{versions['model']}@{versions.get('attestation', '')}"
        task = Task(head_scope(found.scope), labels, self._encoder, model)
        example = Example(str(found.label), vector, found.view.length, logs, model)
        try:
            await asyncio.to_thread(self.examples.add, task, found.source, example)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            logger.warning("evidence.head_example_lost error=%s", type(error).__name__)

    async def watch(self) -> None:
        """Fit, load and tidy until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.trainer.watch())
            group.create_task(self._load())
            group.create_task(self._tidy())

    async def refresh(self) -> None:
        """Load the heads of every claim that this replica knows."""
        claims = [
            claim for claim in self._evidence.snapshot.all() if "spec" in claim.scope.versions
        ]
        scopes = {claim.id: head_scope(claim.scope).id for claim in claims}
        for scope_id in scopes.values():
            self._directory.newest(scope_id)
        await self._directory.refresh()
        for name, scope_id in scopes.items():
            found = [HeadCandidate(head) for head in self._directory.all(scope_id)]
            self._evidence.load(name, found)

    async def _load(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(self._refresh_s)

    async def _tidy(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._tidy_blocking)
            except (LedgerUnavailable, SQLAlchemyError) as error:
                logger.warning("evidence.head_cleanup_failed error=%s", type(error).__name__)
            await asyncio.sleep(_TIDY_EVERY_S)

    def _tidy_blocking(self) -> None:
        settings = self._evidence.settings
        if not self._evidence.snapshot.is_fresh:
            # Which heads are in use is not known.
            return
        used = [claim for claim in self._evidence.snapshot.all() if _uses_head(claim)]
        digests = {digest for claim in used for digest in self._digests(claim)}
        self.heads.prune(digests, settings.head.keep_versions, settings.head.erase_within_h)

    def _digests(self, claim: Claim) -> list[str]:
        """Return the heads of the fit that a claim rests on."""
        assert claim.action is not None
        version = claim.action.candidate.partition("@")[2]
        rows = self.heads.listed(head_scope(claim.scope).id)
        return [row.digest for row in rows if str(row.version) == version]


def build_heads(
    state: Path,
    settings: EvidenceSettings,
    database: Database,
    evidence: Evidence,
    events: HeadEvents,
    encoder: str,
) -> HeadService:
    """Return the service, not running yet. Blocking: makes missing keys in the state folder.

    Raises InvalidKey.
    """
    examples = ExampleStore(database, vector_cipher(state, settings.vector_key_file))
    keys = evidence_keys(state, settings.signing_key, settings.trusted_keys)
    heads = HeadStore(database, keys)
    queue = FitQueue(database, settings.head, uuid4().hex)
    trainer = HeadTrainer(TrainerDeps(queue, examples, heads, events), settings.head)
    return HeadService(examples, heads, trainer, evidence, encoder)


def _uses_head(claim: Claim) -> bool:
    return (
        claim.state is ClaimState.HELD
        and claim.action is not None
        and "@" in claim.action.candidate
    )
