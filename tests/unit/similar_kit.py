"""The HTTP application with a cache that looks up by meaning, a judge, and claims."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx

from serving.cache.question_store import QuestionStore
from serving.cache.similar import SimilarEntries
from serving.contracts.evidence import Audit, Candidate, Claim, ClaimEvent, ClaimState
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.ledger import Tenant
from serving.embedding.encoder import DIMENSIONS
from serving.evidence.appender import EvidenceAppender
from serving.evidence.rulings import Evidence
from serving.evidence.snapshot import ClaimSnapshot
from serving.evidence.store import EvidenceStore
from serving.evidence.worker import EvidenceWorker
from serving.ledger.database import Database
from serving.pipeline.admission import AdmissionQueue, Admitted, one_call
from serving.pipeline.auditor import Embed
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.frontier_model import FrontierModelRunner
from serving.pipeline.hit_auditor import HitAuditor
from serving.pipeline.similar_chat import SimilarChats

from ..provider.script import Reply, Seen
from .cache_kit import Cached, cached
from .evidence_kit import AT, EARLY, Clock, Transitions
from .frontier_kit import OPENAI
from .scripted import Server

PAIR = ("How do I boil an egg?", "How can I boil an egg?")
OTHER = "How do I boil a potato?"


def judged_parts(seen: Seen) -> dict[str, str]:
    """Return the parts of a judge's prompt."""
    text = seen.body["messages"][-1]["content"]
    delimiter, _, rest = text.partition("\n")
    found = {}
    for name in ("QUESTION", "FIRST", "SECOND"):
        _, _, rest = rest.partition(f"{delimiter} {name}\n")
        found[name], _, rest = rest.partition(f"\n{delimiter} END {name}")
    return found


def is_judge(seen: Seen) -> bool:
    return "verdict" in json.dumps(seen.body.get("response_format") or {})


class Model:
    """What the provider answers: a text for each question, and a judge's verdicts on two of them.

    answers: by question; others get the question back. Two answers are equal to the judge where
    they are equal in `means`.
    """

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.means: Callable[[str], str] = lambda text: text
        self.judged = 0
        self.asked: list[str] = []

    def __call__(self, seen: Seen) -> Reply:
        if is_judge(seen):
            self.judged += 1
            parts = judged_parts(seen)
            same = self.means(parts["FIRST"]) == self.means(parts["SECOND"])
            is_first_stored = parts["FIRST"].startswith("stored")
            verdict = "equal" if same else f"{'first' if is_first_stored else 'second'}_is_wrong"
            return Reply(json.dumps({"verdict": verdict}))
        text = seen.body["messages"][-1]["content"]
        self.asked.append(text)
        return Reply(self.answers.get(text, f"About: {text}"))


class SimilarServer:
    """One gateway. cached: its cache. reference: None without a judge."""

    def __init__(
        self,
        found: Cached,
        database: Database,
        embed: Embed,
        evidence: EvidenceSettings = EARLY,
        reference: str | None = OPENAI,
        tenants: dict[str, Tenant] | None = None,
        again_share: float = 0.0,
    ) -> None:
        self.cached = found
        server = found.server
        self.store = EvidenceStore(database)
        self.snapshot = ClaimSnapshot(evidence.max_snapshot_age_s, Clock())
        self.worker = EvidenceWorker(
            self.store, evidence, self.snapshot, Transitions(), Clock(), lambda: AT
        )
        self.appender = EvidenceAppender(self.store, self.worker.wake)
        known = tenants or {}
        self.evidence = Evidence(
            evidence, self.snapshot, reference, lambda name: known.get(name, Tenant(name)),
            self.appender.open, b"k" * 32, now=lambda: AT,
        )  # fmt: skip
        metrics = server.context.metrics
        self.entries = SimilarEntries(QuestionStore(found.store), DIMENSIONS, 10.0)
        recorder = ExitRecorder(server.ledger, server.exits)
        asking: Any = Admitted(
            FrontierModelRunner(server.frontier), AdmissionQueue(8, 100), one_call
        )
        self.auditor = HitAuditor(
            self.evidence, self.appender, recorder, asking, self.entries, metrics.cache, again_share
        )
        path = server.context.path
        assert path.cache is not None
        self.chats = SimilarChats(
            path.cache, self.entries, metrics.cache, embed, ("encoder", "guards"), self.evidence,
            self.auditor,
        )  # fmt: skip
        # The part of a wired server that these tests replace.
        object.__setattr__(server.context, "path", replace(path, similar=self.chats))

    async def ask(self, text: str, **more: Any) -> httpx.Response:
        """Ask, then let what goes on behind the answer end."""
        response = await self.cached.chat(text, **more)
        await self.settle()
        return response

    async def settle(self) -> None:
        """Let audits end, write them, fold them; write entries."""
        # A refinement begins an audit: what is drawn must not be counted as dropped meanwhile.
        await asyncio.gather(*self.chats._changes)
        await self.auditor.settled()
        await self.cached.service.written()
        await self.appender.flush()
        await self.worker.round()

    @property
    def claim(self) -> Claim:
        (claim,) = self.snapshot.all()
        return claim

    def audits(self) -> list[Audit]:
        return [row for row in self.store.rows_after(0) if isinstance(row, Audit)]

    async def hold(self) -> Claim:
        """Have the claim earned: by one shadowed hit, and the rows of as many more as it takes."""
        await self.ask(PAIR[0])
        await self.ask(PAIR[1])
        self.store.append([_audit(self.claim, number) for number in range(120)])
        await self.worker.round()
        claim = self.claim
        assert claim.state is ClaimState.HELD, claim
        return claim

    async def suspend(self) -> None:
        event = ClaimEvent(self.claim.id, "suspended", "by a test", "narrowgate", AT, 0)
        self.store.append(events=[event])
        await self.worker.round()


def _audit(claim: Claim, number: int, loss: float = 0.0) -> Audit:
    return Audit(
        claim.id, f"i{number}", f"g{number}", f"t{number}", "shadow", 1.0,
        "different" if loss else "same", loss, claim.reference,
        (Candidate("model", 0.97, loss),), drawn_at=AT + timedelta(seconds=number),
        judged_at=AT + timedelta(seconds=number + 1), request_id=f"r{number}",
    )  # fmt: skip


@asynccontextmanager
async def similar(
    server: Server,
    database: Database,
    embed: Embed,
    evidence: EvidenceSettings = EARLY,
    reference: str | None = OPENAI,
    tenants: dict[str, Tenant] | None = None,
    again_share: float = 0.0,
    **settings: Any,
) -> AsyncIterator[SimilarServer]:
    """Give a server a cache that looks up by meaning."""
    async with cached(server, database, **settings) as found:
        made = SimilarServer(found, database, embed, evidence, reference, tenants, again_share)
        await made.worker.round()
        watch = asyncio.create_task(made.entries.watch())
        try:
            yield made
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            await made.auditor.aclose()
