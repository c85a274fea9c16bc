"""Learned heads to test with: synthetic vectors in clusters, stores on a real database."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr

from serving.contracts.head_settings import HeadSettings
from serving.evidence.heads.candidate import DIMENSIONS, Candidate, HeadInputs, HeadScope
from serving.evidence.heads.example_store import ExampleStore, Source, Task
from serving.evidence.heads.examples import Example, FitRows
from serving.evidence.heads.fit_queue import FitQueue
from serving.evidence.heads.head_store import HeadStore
from serving.evidence.heads.keys import evidence_keys, vector_cipher
from serving.evidence.heads.trainer import FitOutcome, HeadTrainer, TrainerDeps
from serving.ledger.database import Database, database_url

from .database import make_tables

LABELS = ("cold", "mild", "hot")
SCOPE = HeadScope("acme", "weather", "sha256:spec")
MODEL = "sha256:model"
TASK = Task(SCOPE, LABELS, "encoder-1", MODEL)
SETTINGS = HeadSettings(first_fit=40, max_fit_s=100, max_fit_mib=2048, check_s=0.05)


def vectors(targets: Sequence[int], seed: int = 0, noise: float = 0.09) -> NDArray[np.float32]:
    """Return unit vectors around one centre for each target."""
    centres = np.random.default_rng(99).normal(size=(300, DIMENSIONS)) / DIMENSIONS**0.5
    draw = np.random.default_rng(seed)
    found = centres[list(targets)] + noise * draw.normal(size=(len(targets), DIMENSIONS))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def targets(count: int, labels: int = len(LABELS), seed: int = 0) -> list[int]:
    return [int(n) for n in np.random.default_rng(seed).integers(labels, size=count)]


def model_logs(
    wanted: Sequence[int], seed: int = 0, labels: int = len(LABELS)
) -> NDArray[np.float32]:
    """Return log-probabilities of a model that prefers label 0 and is often right besides."""
    draw = np.random.default_rng(seed + 1)
    scores = draw.normal(size=(len(wanted), labels))
    scores[np.arange(len(wanted)), list(wanted)] += 1.5
    scores[:, 0] += 2.0
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return scores.astype(np.float32)


def examples(
    count: int = 60, seed: int = 0, model: str = "", labels: Sequence[str] = LABELS
) -> list[Example]:
    wanted = targets(count, len(labels), seed)
    logs = model_logs(wanted, seed, len(labels))
    return [
        Example(labels[target], vector, 20 + n % 50, logs[n] if model else None, model)
        for n, (target, vector) in enumerate(zip(wanted, vectors(wanted, seed), strict=True))
    ]


def rows(count: int = 60, seed: int = 0, model: str = "", scope: HeadScope = SCOPE) -> FitRows:
    return FitRows.of(scope, LABELS, "encoder-1", model, examples(count, seed, model))


def inputs(wanted: Sequence[int], seed: int = 7) -> HeadInputs:
    chars = np.full(len(wanted), 30, np.int32)
    return HeadInputs(vectors(wanted, seed), chars, model_logs(wanted, seed))


def accuracy(candidate: Candidate, count: int = 300, seed: int = 7) -> float:
    wanted = targets(count, seed=seed)
    found = candidate.probabilities(inputs(wanted, seed)).argmax(axis=1)
    return float((found == np.array(wanted)).mean())


@dataclass
class Noted:
    """Implements HeadEvents by noting."""

    outcomes: list[FitOutcome] = field(default_factory=list)

    def head_fit_ended(self, task: str, outcome: FitOutcome, seconds: float) -> None:
        self.outcomes.append(outcome)


@dataclass
class Kit:
    """One replica's stores over a database that others may share."""

    database: Database
    examples: ExampleStore
    heads: HeadStore
    queue: FitQueue
    trainer: HeadTrainer
    events: Noted

    def learn(
        self, count: int, seed: int = 0, task: Task = TASK, tenant: str = "acme", **source: str
    ) -> int:
        """Store examples, each of its own request and text; return how many were new."""
        return sum(
            self.examples.add(
                task,
                Source(tenant, source.get("request_id", f"r{seed}-{n}"), f"text {seed} {n}",
                       source.get("end_user")),
                example,
            )
            for n, example in enumerate(examples(count, seed, task.model, task.labels))
        )  # fmt: skip


@contextmanager
def kit(
    url: SecretStr | None, state: Path, settings: HeadSettings = SETTINGS, replica: str = "one"
) -> Iterator[Kit]:
    database = Database(database_url(url, state))
    make_tables(database)
    store = ExampleStore(database, vector_cipher(state))
    heads = HeadStore(database, evidence_keys(state))
    queue, events = FitQueue(database, settings, replica), Noted()
    trainer = HeadTrainer(TrainerDeps(queue, store, heads, events), settings)
    try:
        yield Kit(database, store, heads, queue, trainer, events)
    finally:
        database.close()
