"""The HTTP application with tiers earned per cluster: real stores, ledger and provider."""

import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.contracts.answer import Usage
from serving.contracts.evidence import Audit, Claim
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.ledger import Tenant
from serving.contracts.ledger_settings import LedgerSettings
from serving.contracts.prices import TokenPrices
from serving.contracts.routing import Decision, Tier
from serving.contracts.settings import Replicas
from serving.contracts.tiers_settings import TiersSettings
from serving.evidence.service import EvidenceService, build_evidence
from serving.ledger.build import build_ledger
from serving.ledger.database import Database
from serving.ledger.pricing.cost import Price, Priced
from serving.pipeline.admission import AdmissionQueue
from serving.pipeline.build import Tiering, build_runners
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.plan import free_form_bounds
from serving.pipeline.replica_meter import ReplicaMeter
from serving.pipeline.runner import Runner
from serving.pipeline.tier_auditor import TierAuditor
from serving.tiers.clusters import Clustering
from serving.tiers.planner import TierPlanner

from ..provider.script import Reply, Seen
from ..provider.server import ProviderServer
from . import frontier_kit
from .chat_kit import CHAT
from .frontier_kit import FlatPrices, dollars_a_million
from .ledger_kit import Noted
from .scripted import MODEL, Server

LARGE, MIDDLE, SMALL = "openai/large", "openai/middle", "openai/small"
JUDGE = "other/judge"
TIERS: dict[Tier, tuple[str, ...]] = {
    "economy": (SMALL,), "standard": (MIDDLE,), "frontier": (LARGE,),
}  # fmt: skip
PRICES = FlatPrices(
    {
        LARGE: dollars_a_million("5", "0.5", "5", "5", "25"),
        MIDDLE: dollars_a_million("3", "0.3", "3", "3", "15"),
        SMALL: dollars_a_million("1", "0.1", "1", "1", "5"),
        JUDGE: dollars_a_million("1", "0.1", "1", "1", "5"),
    }
)
EARLY = EvidenceSettings(
    min_span_h=0.0, group_window_s=0.0, max_snapshot_age_s=600.0, providers=("openai", "other"),
    max_usd_a_day=Decimal(1000),
)  # fmt: skip
ON = TiersSettings(
    mode="on", judge=JUDGE, explore_usd_a_day=Decimal(100_000), again_share=0.0,
    payback_days=365.0,
)  # fmt: skip
TOPICS = ("poem", "code", "morals")

_SECTION = re.compile(r"^\S{32} (FIRST|SECOND)\n(.*?)\n\S{32} END", re.DOTALL | re.MULTILINE)


async def embed(text: str) -> NDArray[np.float32]:
    """Return a vector of the text's words."""
    vector = np.zeros(64, np.float32)
    for word in re.findall(r"[a-z]+", text.casefold()):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
        vector += np.random.default_rng(seed).normal(size=64).astype(np.float32)
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm else vector


class KnownQuality:
    """The provider's models: how often each errs by topic, and a judge that sees it.

    wrong: share of wrong answers by (model, topic). prefers_first: the judge finds the second
    answer weaker where both are right. nonsense: it answers without the schema.
    """

    def __init__(self, wrong: dict[tuple[str, str], float] | None = None) -> None:
        self.wrong = wrong or {}
        self.prefers_first = False
        self.prefers_long = False
        self.nonsense = False
        self.judged: list[str] = []
        self._rng = np.random.default_rng(1)
        self._number = 0

    def __call__(self, seen: Seen) -> Reply:
        messages = seen.body["messages"]
        if seen.model == "judge":
            return Reply(self._judge(str(messages[-1]["content"])))
        self._number += 1
        asked = str(messages[-1]["content"])
        topic = next((topic for topic in TOPICS if topic in asked), "")
        is_wrong = self._rng.random() < self.wrong.get((seen.model, topic), 0.0)
        quality = "wrong" if is_wrong else "right"
        words = "and so on " * (20 if seen.model == "small" else 5)
        # In letters: by rule, short texts with other numbers are different answers.
        name = "".join(chr(ord("a") + int(digit)) for digit in str(self._number))
        return Reply(f"This is the {quality} answer {name} to it {words}")

    def _judge(self, content: str) -> str:
        self.judged.append(content)
        if self.nonsense:
            return "Both are nice, but SECOND is wonderful."
        parts = dict(_SECTION.findall(content))
        first, second = ("wrong answer" in parts[name] for name in ("FIRST", "SECOND"))
        verdict = "equal"
        if first != second:
            verdict = "first_is_wrong" if first else "second_is_wrong"
        elif self.prefers_first:
            verdict = "second_is_weaker"
        elif self.prefers_long and len(parts["FIRST"]) != len(parts["SECOND"]):
            is_longer = len(parts["FIRST"]) > len(parts["SECOND"])
            verdict = "second_is_weaker" if is_longer else "first_is_weaker"
        return f'{{"verdict": "{verdict}"}}'


class KnownPrices:
    """Prices of the ledger: those of the planner."""

    def frontier(
        self, model: str, usage: Usage, service_tier: str | None, at: datetime | None = None
    ) -> Priced:
        prices: TokenPrices = PRICES[model]
        return Priced(prices.cost(usage), Price(model, "test", service_tier, 0, prices))

    def local(self, model: str, replica_s: float) -> Priced:
        raise AssertionError("no local model answers")

    def reference(self, usage: Usage, at: datetime | None = None) -> Decimal:
        return PRICES[LARGE].cost(usage)


class TierServer:
    """One gateway replica. rows: every audit so far."""

    def __init__(
        self,
        database: Database,
        ledger: Any,
        frontier: Any,
        clustering: Clustering,
        settings: TiersSettings,
        evidence: EvidenceSettings,
        prices: FlatPrices,
        tenant_of: Callable[[str], Tenant],
        gives_logprobs: Callable[[str], bool] = lambda model: False,
    ) -> None:
        self.server = Server({}, frontier=frontier)
        self.database = database
        context = self.server.context
        self.evidence: EvidenceService = build_evidence(
            evidence, database, LARGE, tenant_of, context.metrics.evidence, b"k" * 32
        )
        self.planner = TierPlanner(
            settings, clustering, TIERS, frontier.configured, prices, self.evidence.evidence,
            context.metrics.tiers, gives_logprobs,
        )  # fmt: skip
        recorder = ExitRecorder(ledger, self.server.exits)

        def auditor(reference: Runner[Any, Any], served: Runner[Any, Any]) -> TierAuditor:
            self.auditor = TierAuditor(
                self.planner, self.evidence.appender, recorder, reference, served, embed
            )
            return self.auditor

        runners = build_runners(
            {}, {}, {MODEL: ReplicaMeter(Replicas())}, frontier, self.server.decisions,
            context.local_admission, AdmissionQueue(16, 1000),
            tiering=Tiering(self.planner, auditor, embed),
        )  # fmt: skip
        self.server.router.decision = Decision(None, 0.99, None, "frontier", "scripted")
        bounds = free_form_bounds(frontier._settings)
        policy = replace(context.path.policy, tiers=TIERS, bounds=bounds)
        path = replace(context.path, runners=runners, policy=policy, recorder=recorder)
        object.__setattr__(context, "path", path)
        object.__setattr__(context, "evidence", self.evidence)

    async def ask(self, text: str, **more: Any) -> dict[str, Any]:
        headers = more.pop("headers", None)
        body = {"model": "auto", "messages": [{"role": "user", "content": text}], **more}
        response = await self.server.client.post(CHAT, json=body, headers=headers)
        assert response.status_code == 200, response.text
        if body.get("stream"):
            return {"text": response.text}
        found: dict[str, Any] = response.json()
        return found

    async def settle(self) -> None:
        """Let comparisons end, write and fold them, and plan anew."""
        await self.auditor.settled()
        await self.evidence.appender.flush()
        await self.evidence.worker.round()
        self.planner.refresh(self.database, self.evidence.store)

    def audits(self) -> list[Audit]:
        rows = self.evidence.store.rows_after(0)
        return [row for row in rows if isinstance(row, Audit)]

    def claims(self) -> dict[str, Claim]:
        """Return the claims by subject."""
        return {claim.scope.subject: claim for claim in self.evidence.snapshot.all()}


async def clusters() -> Clustering:
    centres = [await embed(f"write about {topic}") for topic in TOPICS]
    return Clustering.of(np.array(centres), TOPICS)


@asynccontextmanager
async def tiered(
    provider: ProviderServer,
    database: Database,
    state: Path,
    settings: TiersSettings = ON,
    evidence: EvidenceSettings = EARLY,
    prices: FlatPrices = PRICES,
    tenant_of: Callable[[str], Tenant] = Tenant,
    gives_logprobs: Callable[[str], bool] = lambda model: False,
    **more: Any,
) -> AsyncIterator[TierServer]:
    """Yield a replica, and let its comparisons end."""
    ledger = build_ledger(
        LedgerSettings(call_wait_s=10.0, commit_wait_s=10.0), state, KnownPrices(), Noted(),
        Decimal(0),
    )  # fmt: skip
    await ledger.start()
    try:
        async with frontier_kit.frontier(
            frontier_kit.settings(provider, tiers=TIERS, **more), prices=prices
        ) as stack:
            found = TierServer(
                database, ledger, stack, await clusters(), settings, evidence, prices, tenant_of,
                gives_logprobs,
            )  # fmt: skip
            try:
                yield found
            finally:
                await found.auditor.aclose()
    finally:
        await ledger.aclose()
