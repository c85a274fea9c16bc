"""The HTTP application with context pruning under its claim: compared, earned, used."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

from benchmarks.replay_ledger import PricedLedger
from serving.context.lazy import LazyPruner
from serving.context.pruning import MARKER
from serving.contracts.context_settings import ContextSettings
from serving.contracts.evidence import Audit, Claim, ClaimState
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.ledger import Tenant
from serving.contracts.ledger_settings import AuthSettings
from serving.evidence.service import EvidenceService, build_evidence
from serving.frontier.failures import may_fall_back
from serving.gateway.access import Access
from serving.gateway.metrics import Metrics
from serving.ledger.access.directory import Directory
from serving.ledger.database import Database
from serving.pipeline.context_auditor import ContextAuditor
from serving.pipeline.context_pruning import ContextPruning
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.paired_auditor import Comparison
from serving.pipeline.pruned import Pruning

from ..provider.script import Reply, Seen
from ..provider.server import ProviderServer
from .chat_kit import CHAT
from .frontier_kit import FlatPrices, frontier, settings
from .memory_ledger import MemoryLedger
from .scripted import Recorded, Server
from .tiers_kit import EARLY, JUDGE, LARGE, PRICES

ON = ContextSettings(mode="auto", judge=JUDGE, target_error=0.1, min_tokens=10)
LAZY = LazyPruner(ON)
OPEN = AuthSettings(mode="off")
RICH = EARLY.model_copy(update={"shadow_judge_max_usd_a_day": Decimal(1_000_000)})
FACTS = (
    "The quay is 410 metres long. A cold store keeps herring. The harbour master is Ragna Tveit. "
    "Boats were pulled up the beach by oxen. The council postponed its decision in March. "
)
ANSWER = "The loaf is done when its core has reached 97 degrees."
_SECTION = re.compile(r"^\S{32} (FIRST|SECOND)\n(.*?)\n\S{32} END", re.DOTALL | re.MULTILINE)


class Model:
    """The provider's models. loses: whether an answer from a pruned context is wrong."""

    def __init__(self) -> None:
        self.loses = False
        self.declines = False
        self.judges: str | None = None
        self.asked: list[str] = []

    def __call__(self, seen: Seen) -> Reply:
        text = json.dumps(seen.body["messages"])
        if seen.model == "judge":
            self.asked.append("judge")
            return Reply(self.judges or self._verdict(seen))
        is_pruned = MARKER in text
        self.asked.append("pruned" if is_pruned else "whole")
        if self.declines:
            return Reply("I am sorry, the context does not say so.")
        found = "wrong" if is_pruned and self.loses else "right"
        kind = "pruned" if is_pruned else "whole"
        return Reply(f"This is the {found} answer from a {kind} context for {len(self.asked)}.")

    def _verdict(self, seen: Seen) -> str:
        parts = dict(_SECTION.findall(str(seen.body["messages"][-1]["content"])))
        wrong = [name for name in ("FIRST", "SECOND") if "wrong answer" in parts[name]]
        return json.dumps({"verdict": f"{wrong[0].lower()}_is_wrong" if wrong else "equal"})


class ContextServer:
    """One gateway replica with pruning under a claim. audited: rows of comparisons.

    prices: of calls; None has each cost 25 cents, for which comparing never pays: claims must not
    pay for it.
    """

    def __init__(
        self,
        stack: Any,
        database: Database,
        judge: str | None,
        config: ContextSettings,
        auth: AuthSettings,
        prices: FlatPrices | None,
        rules: EvidenceSettings,
    ) -> None:
        self.audited = MemoryLedger() if prices is None else PricedLedger(prices)
        self.prices = prices or PRICES
        self.database = database
        self._rules = rules
        self._judge = judge
        self._config = config
        self.directory = Directory(database, auth)
        self.server = Server(
            {}, frontier=stack, pruning=self._pruning, access=Access.of(self.directory, auth, 1)
        )

    def _pruning(self, metrics: Metrics) -> Pruning:
        self.evidence: EvidenceService = build_evidence(
            self._rules, self.database, LARGE, Tenant, metrics.evidence, b"k" * 32
        )
        is_priced = isinstance(self.audited, PricedLedger)
        self.evidence.worker.payback_every_s = 0.0 if is_priced else 1e9

        def auditor(asking: Any) -> ContextAuditor:
            recorder = ExitRecorder(self.audited, Recorded(metrics))
            comparison = Comparison(
                self.evidence.evidence, self.evidence.appender, recorder, asking, self._judge,
                self.prices, self._config.target_error, again_share=0.0, shadow_share=1.0,
            )  # fmt: skip
            self.auditor = ContextAuditor(comparison, LAZY.version, metrics)
            return self.auditor

        pruning = ContextPruning(self._config, LAZY.get, self.prices, "---", metrics)
        return Pruning(pruning, auditor, may_fall_back)

    async def post(self, number: int = 0, **more: Any) -> Any:
        headers = {"x-request-id": f"context-{number}", **more.pop("headers", {})}
        options = {"narrowgate": more.pop("options")} if "options" in more else {}
        facts = FACTS
        if "facts" in more:
            # Its beginning is another one each time: the provider caches equal ones.
            facts = f"This is report {number}. {more.pop('facts')}"
        text = f"<context>{facts}{ANSWER} {FACTS}</context> Which core temperature for {number}?"
        body = {"model": LARGE, "messages": [{"role": "user", "content": text}], **options, **more}
        response = await self.server.client.post(CHAT, json=body, headers=headers)
        assert response.status_code == 200, response.text
        await self.auditor.settled()
        return response

    async def ask(self, number: int = 0, **more: Any) -> dict[str, Any]:
        """Return what the answer says of its context."""
        found: dict[str, Any] = (await self.post(number, **more)).json()["narrowgate"]["context"]
        return found

    async def many(self, count: int, start: int = 0, **more: Any) -> None:
        """Send so many requests; fold after each dozen."""
        for number in range(start, start + count):
            await self.post(number, **more)
            if number % 12 == 11:
                await self.settle()
        await self.settle()

    async def settle(self) -> None:
        await self.auditor.settled()
        await self.evidence.appender.flush()
        await self.evidence.worker.round()

    async def earn(self, **more: Any) -> Claim:
        """Earn the claim: one comparison over HTTP, and further rows like it."""
        await self.post(0, **more)
        await self.settle()
        first = self.audits()[-1]
        rows = []
        for number in range(1, 111):
            name, at = f"n{number}", first.drawn_at + timedelta(milliseconds=number)
            rows.append(
                replace(first, input=name, group=name, text=name, drawn_at=at, judged_at=at)
            )
        self.evidence.store.append(audits=rows)
        await self.settle()
        (claim,) = (found for found in self.evidence.snapshot.all() if found.id == first.claim)
        assert claim.state is ClaimState.HELD, claim.reason
        return claim

    def audits(self) -> list[Audit]:
        return [row for row in self.evidence.store.rows_after(0) if isinstance(row, Audit)]

    def claim(self, tenant: str = "default") -> Claim:
        (claim,) = (one for one in self.evidence.snapshot.all() if one.scope.tenants == tenant)
        return claim

    def metric(self, name: str, **labels: str) -> float | None:
        return self.server.context.metrics.registry.get_sample_value(name, labels)


@asynccontextmanager
async def contexts(
    provider: ProviderServer,
    database: Database,
    judge: str | None = JUDGE,
    config: ContextSettings = ON,
    auth: AuthSettings = OPEN,
    prices: FlatPrices | None = None,
    rules: EvidenceSettings = RICH,
) -> AsyncIterator[ContextServer]:
    async with frontier(settings(provider), prices=prices or PRICES) as stack:
        found = ContextServer(stack, database, judge, config, auth, prices, rules)
        await found.directory.refresh()
        # The claims are known from here on.
        await found.settle()
        try:
            yield found
        finally:
            await found.auditor.aclose()
