"""The HTTP application with a task that no model is gated for: real stores and provider.

A gateway replica's evidence and heads, over a database that replicas share. The reference is the
fake provider, over HTTP.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from serving.contracts.errors import TaskNotAttested
from serving.contracts.evidence import Claim
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.head_settings import HeadSettings
from serving.contracts.ledger import Tenant
from serving.contracts.settings import Replicas
from serving.contracts.task_spec import TaskSpec
from serving.evidence.heads.candidate import DIMENSIONS
from serving.evidence.heads.keys import vector_cipher
from serving.evidence.heads.service import HeadService, build_heads
from serving.evidence.service import EvidenceService, build_evidence
from serving.ledger.database import Database
from serving.pipeline.auditor import Auditor, AuditRunners
from serving.pipeline.build import Audited, build_runners
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.replica_meter import ReplicaMeter
from serving.tasks.catalog import load_specs
from serving.tasks.grant import Grant

from ..provider.script import Seen
from . import frontier_kit
from .evidence_kit import keep_what_is_stored
from .scripted import MODEL, Server

TASK = "desk"
REFERENCE = frontier_kit.OPENAI
SETTINGS = EvidenceSettings(
    min_groups=1, min_span_h=0.0, group_window_s=0.0, max_snapshot_age_s=600.0,
    head=HeadSettings(first_fit=100, max_fit_s=3000, check_s=0.1),
)  # fmt: skip
"""Settings under which some ten audits earn a claim.

A busy machine takes long between two readings of the claims, and an old snapshot collects nothing.
"""

# What people write to a service desk, by label: a thing and what happened to it.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "Password": ("password", "login code", "passphrase"),
    "Printer": ("printer", "toner", "paper tray"),
    "Invoice": ("invoice", "billing statement", "overdue bill"),
    "Vacation": ("vacation", "annual leave", "holiday request"),
    "Parking": ("parking space", "car park barrier", "garage permit"),
    "Email": ("email inbox", "mail attachment", "spam filter"),
    "Laptop": ("laptop battery", "notebook keyboard", "docking station"),
    "Coffee": ("coffee machine", "espresso beans", "cappuccino milk"),
    "Flight": ("flight ticket", "airline booking", "boarding pass"),
    "Hotel": ("hotel room", "hotel reservation", "guest house stay"),
    "Salary": ("salary", "wage payment", "payslip"),
    "Heating": ("heating", "radiator", "cold office temperature"),
    "Elevator": ("elevator", "lift doors", "lift cabin"),
    "Telephone": ("telephone", "desk phone", "voicemail"),
    "Network": ("wifi network", "internet connection", "network cable"),
    "Insurance": ("health insurance", "insurance policy", "accident cover"),
    "Training": ("training course", "seminar", "workshop enrolment"),
    "Chair": ("office chair", "armrest", "seat cushion"),
    "Window": ("window", "blinds", "window glass"),
    "Canteen": ("canteen lunch", "cafeteria menu", "vegetarian meal"),
}  # fmt: skip
_FRAMES = (
    "There is a problem with the {}{}.", "Can somebody please look at the {}{}?",
    "I have a question about my {}{}.", "Who is responsible for the {}{}?",
    "The {} needs attention{}.", "Since this morning I have trouble with the {}{}.",
    "Please help me with the {}{}.", "I would like to report the {}{}.",
)  # fmt: skip
_PLACES = ("", " today", " on the second floor", " in Berlin", " again", " before Friday",
           " for a colleague", " as soon as possible", " for the third time")  # fmt: skip


def inputs(seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yield distinct texts with their labels, in a random order."""
    found = [
        (frame.format(subject, place), label)
        for label, subjects in SUBJECTS.items()
        for subject in subjects
        for frame in _FRAMES
        for place in _PLACES
    ]
    order = np.random.default_rng(seed).permutation(len(found))
    yield from (found[number] for number in order)


def own_task(folder: Path, target_error: float = 0.2) -> dict[str, TaskSpec]:
    """Write the one YAML file of a user's task, and return all tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "name": TASK,
        "kind": "classification",
        "description": "What a message to the service desk is about.",
        "instruction": "Say what the message is about. Answer with one label.",
        "labels": list(SUBJECTS),
        "floor": 0.5,
        "target_error": target_error,
    }
    (folder / f"{TASK}.yaml").write_text(yaml.safe_dump(document))
    return dict(load_specs(folder))


async def embed(text: str) -> NDArray[np.float32]:
    """Return a vector of the text's words: what the encoder gives, in microseconds.

    The encoder takes a second to load and some milliseconds a text; its vectors are tested apart.
    """
    vector = np.zeros(DIMENSIONS, np.float32)
    for word in re.findall(r"\w+", text.casefold()):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        vector += np.random.default_rng(seed).normal(size=DIMENSIONS).astype(np.float32)
    return vector / np.linalg.norm(vector)


class ReferenceModel:
    """Knows the label of every text. wrong: says another label for every text."""

    def __init__(self) -> None:
        self.labels = dict(inputs())
        self.is_wrong = False
        self.asked: list[str] = []

    def answer(self, seen: Seen) -> str:
        content = seen.body["messages"][-1]["content"]
        written = content if isinstance(content, str) else content[-1]["text"]
        text = max((text for text in self.labels if text in written), key=len)
        self.asked.append(text)
        labels = list(SUBJECTS)
        at = labels.index(self.labels[text])
        return json.dumps({"label": labels[(at + self.is_wrong) % len(labels)]})


class HeadServer:
    """One gateway replica."""

    def __init__(
        self,
        specs: dict[str, TaskSpec],
        database: Database,
        state: Path,
        frontier: Any,
        settings: EvidenceSettings,
    ) -> None:
        refusal = TaskNotAttested("no gate has tested it on this task", field="task")
        self.server = Server(specs, {TASK: Grant(None, None, refusal)}, frontier=frontier)
        context = self.server.context
        service = build_evidence(
            settings, database, REFERENCE, Tenant, context.metrics.evidence, b"k" * 32
        )
        self.heads: HeadService = build_heads(
            state, settings, database, service.evidence, context.metrics.evidence, "encoder-1"
        )
        service.worker.fitted = self.heads.tests
        self.evidence: EvidenceService = replace(service, heads=self.heads)
        recorder = ExitRecorder(self.server.ledger, self.server.exits)

        def auditor(runners: AuditRunners) -> Auditor:
            self.auditor = Auditor(
                service.evidence, service.appender, recorder, context.models.tasks, runners,
                embed=embed, learn=self.heads.learn,
            )  # fmt: skip
            return self.auditor

        runners = build_runners(
            context.models.tasks, context.models.engines, {MODEL: ReplicaMeter(Replicas())},
            frontier, self.server.decisions, context.local_admission, context.frontier_admission,
            Audited(service.evidence, auditor, embed),
        )  # fmt: skip
        # The parts of a wired server that this replaces.
        policy = replace(context.path.policy, tiers={**context.path.policy.tiers,
                         "economy": (REFERENCE,), "standard": (REFERENCE,)})  # fmt: skip
        path = replace(context.path, runners=runners, policy=policy)
        object.__setattr__(context, "path", path)
        object.__setattr__(context, "evidence", self.evidence)
        cipher = vector_cipher(state, settings.vector_key_file)
        keep_what_is_stored(context, database, settings, cipher)

    async def ask(self, text: str, **headers: str) -> dict[str, Any]:
        response = await self.server.post(
            f"/v1/tasks/{TASK}", json={"input": text}, headers=headers
        )
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    async def settle(self) -> None:
        """Let audits end, write them, fold them, load heads."""
        await self.auditor.settled()
        await self.evidence.appender.flush()
        await self.evidence.worker.round()
        await self.heads.refresh()

    async def fit(self) -> None:
        """Fit what is due, fold, and load it."""
        ended = await self.heads.trainer.fit_next()
        assert ended is not None
        assert ended.outcome == "fitted"
        await self.settle()

    @property
    def claim(self) -> Claim:
        """Return the only claim."""
        (claim,) = self.evidence.snapshot.all()
        return claim
