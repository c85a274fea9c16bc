"""The HTTP application with a router that reads too much: claims on reading, over a real provider.

Tasks are answered by a scripted engine, of which the first label always wins; the reference is the
fake provider, over HTTP.
"""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

from serving.contracts.answer import TaskRequest
from serving.contracts.evidence import Audit, Claim, ClaimState
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.ledger import Tenant
from serving.contracts.requests import ChatRequest
from serving.contracts.routing import Decision, Vectors
from serving.contracts.settings import Replicas
from serving.contracts.task_spec import TaskSpec
from serving.evidence.service import EvidenceService, build_evidence
from serving.evidence.shortcuts import ReadingRules
from serving.ledger.database import Database
from serving.pipeline.auditor import Auditor, AuditRunners
from serving.pipeline.build import Audited, build_runners
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.reading_auditor import ReadingAuditor
from serving.pipeline.reading_claims import ReadingClaims
from serving.pipeline.replica_meter import ReplicaMeter
from serving.tasks.grant import Grant

from ..provider.script import Reply, Seen
from ..provider.server import ProviderServer
from . import frontier_kit
from .attested import result
from .chat_kit import CHAT
from .evidence_kit import keep_what_is_stored, opening
from .scripted import MODEL, ScriptedRouter, Server

REFERENCE = frontier_kit.OPENAI
LOCAL = "World"
"""The label of every local answer."""
RULES = ReadingRules("careless-1", 0.05)
SETTINGS = EvidenceSettings(
    min_groups=1, min_span_h=0.0, group_window_s=0.0, max_snapshot_age_s=600.0, high_rate=1.0,
    heads=False, max_usd_a_day=1_000_000, shadow_judge_max_usd_a_day=1_000_000,
    shadow_max_usd=1_000_000,
)  # fmt: skip
"""Settings under which some ten audits earn a claim, and every accepted chat is audited."""

RIGHT = 'What is the topic of this report? """The parliament met. {}"""'
WRONG = 'Write a reply to this report about its topic. """The parliament met. {}"""'
"""Asks for something else, and is read as the task all the same."""

_TEXT = re.compile(r'"""(.*?)"""', re.DOTALL)


class CarelessRouter(ScriptedRouter):
    """Reads every chat with a marked text as the task `topic`. labels: as of its decisions."""

    labels: dict[str, str] | None = None

    def decide(self, request: ChatRequest, vectors: Vectors) -> Decision:
        found = _TEXT.search(request.messages[-1].text)
        if found is None:
            return self.decision
        read = TaskRequest("topic", found[1])
        return Decision(read, 0.99, None, "economy", "it has a text", self.labels)


class Reference:
    """The provider's model. label: its answer to the task, and to chats that ask for it.

    chat: what it answers where the client asks for the label; verdict: as a judge.
    """

    def __init__(self) -> None:
        self.label = LOCAL
        self.chat: str | None = None
        self.verdict: str | None = None
        self.asked: list[tuple[str, Seen]] = []

    def of(self, kind: str) -> list[Seen]:
        """Return the requests of a kind: `task`, `chat` or `judge`."""
        return [seen for found, seen in self.asked if found == kind]

    def __call__(self, seen: Seen) -> Reply:
        messages = seen.body["messages"]
        if "You compare two answers" in json.dumps(messages[0]):
            self.asked.append(("judge", seen))
            return Reply(json.dumps({"verdict": self.verdict or self._judged(messages)}))
        last = str(messages[-1]["content"])
        if "this report" in last:
            self.asked.append(("chat", seen))
            if "Write a reply" in last:
                return Reply("Dear editor, your report on the parliament was a pleasure to read.")
            return Reply(self.chat or self.label)
        self.asked.append(("task", seen))
        return Reply(json.dumps({"label": self.label}))

    def _judged(self, messages: Any) -> str:
        """Return that a letter is better than a label, and that others are equal."""
        delimiter, *parts = messages[-1]["content"].split("\n")
        first = parts[parts.index(f"{delimiter} FIRST") + 1]
        second = parts[parts.index(f"{delimiter} SECOND") + 1]
        if ("Dear" in first) == ("Dear" in second):
            return "equal"
        return "second_is_wrong" if "Dear" in first else "first_is_wrong"


class ReadingServer:
    """One gateway replica whose router reads too much."""

    def __init__(
        self,
        specs: dict[str, TaskSpec],
        database: Database,
        stack: Any,
        settings: EvidenceSettings = SETTINGS,
        *,
        target_error: float = RULES.target_error,
    ) -> None:
        grants = {"topic": Grant(result(specs["topic"]), "sha256:abc", None)}
        self.server = Server(specs, grants, frontier=stack)
        context = self.server.context
        self.database = database
        self.router = CarelessRouter()
        self.evidence: EvidenceService = build_evidence(
            settings, database, REFERENCE, Tenant, context.metrics.evidence, b"k" * 32
        )
        evidence, appender = self.evidence.evidence, self.evidence.appender
        recorder = ExitRecorder(self.server.ledger, self.server.exits)
        tasks = context.models.tasks
        readings = ReadingClaims(evidence, tasks, replace(RULES, target_error=target_error))

        def auditor(runners: AuditRunners) -> Auditor:
            self.auditor = Auditor(evidence, appender, recorder, tasks, runners)
            return self.auditor

        def reading(asked: Any, asked_chat: Any) -> ReadingAuditor:
            self.readings = ReadingAuditor(readings, appender, recorder, asked, asked_chat)
            return self.readings

        runners = build_runners(
            tasks, context.models.engines, {MODEL: ReplicaMeter(Replicas())}, stack,
            self.server.decisions, context.local_admission, context.frontier_admission,
            Audited(evidence, auditor, reading=reading),
        )  # fmt: skip
        policy = replace(
            context.path.policy,
            tiers=dict.fromkeys(("economy", "standard", "frontier"), (REFERENCE,)),
        )
        path = replace(context.path, runners=runners, policy=policy, router=self.router)
        object.__setattr__(context, "path", path)
        object.__setattr__(context, "evidence", self.evidence)
        keep_what_is_stored(context, database, settings, None)  # type: ignore[arg-type]

    async def post(self, text: str, model: str = "auto", **more: Any) -> Any:
        headers = more.pop("headers", {})
        body = {"model": model, "messages": [{"role": "user", "content": text}], **more}
        response = await self.server.post(CHAT, json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response

    async def ask(self, text: str, **more: Any) -> dict[str, Any]:
        """Return the answer to a chat, once its audits have ended."""
        response = await self.post(text, **more)
        await self.settle()
        found: dict[str, Any] = response.json()
        return found

    async def settle(self) -> None:
        """Let audits end, write them, fold them."""
        await self.auditor.settled()
        await self.readings.settled()
        await self.evidence.appender.flush()
        await self.evidence.worker.round()

    async def earn(self, *names: str) -> None:
        """Earn the claims: one chat over HTTP, and further rows like those that it leads to."""
        await self.ask(RIGHT.format("first"))
        for name in names or ("narrow_reading", "local_task"):
            first = self.audits(name)[-1]
            assert first.loss == 0.0
            rows = []
            for number in range(1, 131):
                at = first.drawn_at + timedelta(milliseconds=number)
                made = f"n{number}"
                row = replace(first, input=made, group=made, text=made, drawn_at=at, judged_at=at)
                rows.append(replace(row, label=None))
            if name == "local_task":
                # Its test is due after 100 examples, and they would not count for it.
                self.evidence.store.append(events=[opening(first.claim)])
            self.evidence.store.append(audits=rows)
        await self.settle()
        await self.settle()
        for name in names or ("narrow_reading", "local_task"):
            assert self.claim(name).state is ClaimState.HELD, self.claim(name).reason

    def claim(self, shortcut: str = "narrow_reading") -> Claim:
        (found,) = (one for one in self.evidence.snapshot.all() if one.shortcut == shortcut)
        return found

    def audits(self, shortcut: str = "narrow_reading") -> list[Audit]:
        rows = self.evidence.store.rows_after(0)
        name = self.claim(shortcut).id
        return [row for row in rows if isinstance(row, Audit) and row.claim == name]


@asynccontextmanager
async def readings(
    specs: dict[str, TaskSpec],
    provider: ProviderServer,
    database: Database,
    reference: Reference,
    settings: EvidenceSettings = SETTINGS,
    **more: Any,
) -> AsyncIterator[ReadingServer]:
    provider.script.answer = reference
    async with frontier_kit.frontier(frontier_kit.settings(provider)) as stack:
        found = ReadingServer(specs, database, stack, settings, **more)
        await found.server.ready()
        await found.settle()
        try:
            yield found
        finally:
            await found.auditor.aclose()
            await found.readings.aclose()
