"""Brief answers under their claim, over HTTP: compared, earned, served, watched, suspended."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from serving.contracts.context import RequestContext
from serving.contracts.deadline import Deadline
from serving.contracts.evidence import Audit, Claim, ClaimState
from serving.contracts.frontier_settings import BoundSettings, FrontierSettings
from serving.contracts.ledger import Caller, Tenant
from serving.contracts.requests import ChatRequest, Message
from serving.contracts.routing import RequestOptions
from serving.contracts.settings import Settings
from serving.evidence.service import EvidenceService, build_evidence
from serving.gateway.metrics import Metrics
from serving.ledger.database import Database
from serving.pipeline.answer_lengths import AnswerLengths
from serving.pipeline.bounded import Learning
from serving.pipeline.brevity import BrevityAuditor
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.paired_auditor import Comparison
from serving.pipeline.plan import free_form_bounds

from ..provider.script import Reply, Seen
from ..provider.server import ProviderServer
from .chat_kit import CHAT
from .frontier_kit import frontier, settings
from .memory_ledger import MemoryLedger
from .scripted import Recorded, Server
from .tiers_kit import EARLY, JUDGE, LARGE, PRICES

DIRECTIVE = "Answer briefly: at most {words} words unless asked for more."
RICH = EARLY.model_copy(update={"shadow_judge_max_usd_a_day": Decimal(1_000_000)})
_SECTION = re.compile(r"^\S{32} (FIRST|SECOND)\n(.*?)\n\S{32} END", re.DOTALL | re.MULTILINE)


class Model:
    """The provider's models. loses: whether a brief answer lacks what was asked for."""

    def __init__(self) -> None:
        self.loses = False
        self.asked: list[str] = []

    def __call__(self, seen: Seen) -> Reply:
        text = json.dumps(seen.body["messages"])
        if seen.model == "judge":
            self.asked.append("judge")
            parts = dict(_SECTION.findall(str(seen.body["messages"][-1]["content"])))
            lacks = [name for name in ("FIRST", "SECOND") if "half of it" in parts[name]]
            verdict = f"{lacks[0].lower()}_is_weaker" if len(lacks) == 1 else "equal"
            return Reply(json.dumps({"verdict": verdict}))
        is_brief = "Answer briefly" in text
        self.asked.append("brief" if is_brief else "plain")
        held = "half of it" if is_brief and self.loses else "all of it"
        words = "few words" if is_brief else "very many words " * 20
        return Reply(f"An answer with {held} in {words} for {len(self.asked)}.".replace("0", "o"))


class BriefServer:
    """One gateway replica with learned bounds and their judge. audited: rows of comparisons."""

    def __init__(self, stack: Any, database: Database, judge: str | None) -> None:
        self.audited = MemoryLedger()
        self._database = database
        self._judge = judge
        self.server = Server({}, frontier=stack, learning=self._learning)
        judged = FrontierSettings(bounds=BoundSettings(learned=True, judge=JUDGE))
        path = self.server.context.path
        policy = replace(path.policy, bounds=free_form_bounds(judged))
        object.__setattr__(self.server.context, "path", replace(path, policy=policy))

    def _learning(self, metrics: Metrics) -> Learning:
        self.evidence: EvidenceService = build_evidence(
            RICH, self._database, LARGE, Tenant, metrics.evidence, b"k" * 32
        )
        # Each call costs 25 cents here, for which comparing never pays.
        self.evidence.worker.payback_every_s = 1e9

        def auditor(asking: Any) -> BrevityAuditor:
            recorder = ExitRecorder(self.audited, Recorded(metrics))
            comparison = Comparison(
                self.evidence.evidence, self.evidence.appender, recorder, asking, self._judge,
                PRICES, 0.1, again_share=0.0, shadow_share=1.0,
            )  # fmt: skip
            self.auditor = BrevityAuditor(comparison, DIRECTIVE)
            return self.auditor

        return Learning(AnswerLengths(None, metrics), 0.05, DIRECTIVE, auditor, b"k" * 16)

    async def ask(self, number: int, **more: Any) -> str:
        headers = {"x-request-id": f"brief-{number}", **more.pop("headers", {})}
        body = {
            "model": LARGE, "messages": [{"role": "user", "content": f"What is {number}?"}], **more,
        }  # fmt: skip
        response = await self.server.client.post(CHAT, json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response.text

    async def many(self, count: int, start: int = 0, **more: Any) -> None:
        """Send so many requests; fold after each dozen. Few calls may be in progress at once."""
        for number in range(start, start + count):
            await self.ask(number, **more)
            await self.auditor.settled()
            if number % 12 == 11:
                await self.settle()
        await self.settle()

    async def settle(self) -> None:
        await self.auditor.settled()
        await self.evidence.appender.flush()
        await self.evidence.worker.round()

    def audits(self) -> list[Audit]:
        return [row for row in self.evidence.store.rows_after(0) if isinstance(row, Audit)]

    def claim(self) -> Claim:
        (claim,) = self.evidence.snapshot.all()
        return claim


@asynccontextmanager
async def briefly(
    provider: ProviderServer, database: Database, judge: str | None = JUDGE
) -> AsyncIterator[BriefServer]:
    async with frontier(settings(provider), prices=PRICES) as stack:
        found = BriefServer(stack, database, judge)
        # The claims are known from here on.
        await found.settle()
        try:
            yield found
        finally:
            await found.auditor.aclose()


@pytest.fixture
def model(provider: ProviderServer) -> Model:
    found = Model()
    provider.script.answer = found
    return found


async def test_brevity_is_earned_beside_the_clients_own_answers_and_then_asked_for(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    async with briefly(provider, database) as server:
        assert "very many words" in await server.ask(0)
        await server.settle()
        # Behind the request, the other answer and the judge in both orders.
        assert model.asked == ["plain", "brief", "judge", "judge"]
        (row,) = server.audits()
        assert (row.origin, row.loss, row.cost_usd, row.judge_usd) == (
            "shadow", 0.5, Decimal("0.75"), Decimal("0.75"),
        )  # fmt: skip
        assert [page.exit.reason for page in server.audited.pages if page.exit] == [
            "explore", "judge", "judge",
        ]  # fmt: skip
        await server.many(110, 1)
        claim = server.claim()
        assert (claim.state, claim.scope.subject) == (ClaimState.HELD, f"brief/{LARGE}")
        answers = [await server.ask(number) for number in range(200, 230)]
        await server.settle()
        brief = [answer for answer in answers if "few words" in answer]
        # Half of them until the usual length is known without the directive.
        assert 5 < len(brief) < 25
        rows = [page.exit for page in server.server.ledger.pages[-30:] if page.exit]
        under = [row for row in rows if row.claim == claim.id]
        assert len(under) == len(brief)
        assert {row.evidence for row in under} == {"traffic"}


async def test_an_answer_that_loses_by_brevity_is_never_sent(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    model.loses = True
    async with briefly(provider, database) as server:
        for number in range(80):
            assert "all of it" in await server.ask(number)
            await server.auditor.settled()
            if number % 12 == 11:
                await server.settle()
        await server.settle()
        assert server.claim().state is ClaimState.NOT_EARNABLE


async def test_brevity_that_becomes_worse_ends(
    provider: ProviderServer,
    database: Database,
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.pipeline.paired_auditor._AUDITED_AT_FIRST", 1.0)
    async with briefly(provider, database) as server:
        await server.many(111)
        assert server.claim().state is ClaimState.HELD
        model.loses = True
        await server.many(108, 200)
        assert {row.origin for row in server.audits()} == {"shadow", "accepted"}
        assert server.claim().state in (ClaimState.SUSPENDED, ClaimState.NOT_EARNABLE)
        assert "all of it" in await server.ask(1000)


async def test_a_stream_is_compared_once_it_has_ended(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    async with briefly(provider, database) as server:
        await server.ask(0, stream=True)
        await server.settle()
        assert model.asked == ["plain", "brief", "judge", "judge"]
        assert [row.verdict for row in server.audits()] == ["same"]


@pytest.mark.parametrize(
    "headers",
    [
        {"x-narrowgate-quality": "reference"},
        {"x-narrowgate-audit": "never"},
        {"x-narrowgate-deterministic": "true"},
    ],
    ids=str,
)
async def test_what_may_not_be_compared_is_answered_whole(
    provider: ProviderServer, database: Database, model: Model, headers: dict[str, str]
) -> None:
    async with briefly(provider, database) as server:
        await server.many(3, headers=headers)
    assert model.asked == ["plain"] * 3


async def test_a_request_without_learned_bounds_is_not_asked_for_brevity_either(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    async with briefly(provider, database) as server:
        await server.many(1, stop=["never"])
        await server.many(1, n=2)
    assert model.asked == ["plain"] * 2


async def test_without_a_judge_nothing_is_asked_for_briefly(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    async with briefly(provider, database, judge=None) as server:
        await server.many(3)
    assert model.asked == ["plain"] * 3


async def test_a_judges_nonsense_earns_nothing(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    def answer(seen: Seen) -> Reply:
        return Reply("Both are wonderful.") if seen.model == "judge" else model(seen)

    provider.script.answer = answer
    async with briefly(provider, database) as server:
        await server.many(6)
        assert [(row.verdict, row.loss) for row in server.audits()] == [("missing", 1.0)] * 6


async def test_an_audits_own_call_is_not_compared_again(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    request = ChatRequest(LARGE, (Message("user", "What is it?"),))
    context = RequestContext("one", Caller("default"), RequestOptions(), Deadline.after(60.0))
    async with briefly(provider, database) as server:
        await server.settle()
        recorder = ExitRecorder(MemoryLedger(), Recorded(Metrics()))
        for endpoint, is_drawn in (("chat", True), ("audit", False)):
            async with recorder.open(context, endpoint) as record:  # type: ignore[arg-type]
                brevity = server.auditor.decide(request, LARGE, record)
                assert brevity.ruling is not None
                assert brevity.is_drawn == is_drawn, endpoint


def test_a_judge_without_a_directive_that_is_learned_is_refused() -> None:
    with pytest.raises(ValidationError, match="set learned: true and a directive"):
        BoundSettings(judge=JUDGE)
    with pytest.raises(ValidationError, match="set learned: true and a directive"):
        BoundSettings(judge=JUDGE, learned=True, directive=None)
    bounds = {"judge": "nobody/judge", "learned": True}
    with pytest.raises(ValidationError, match="'nobody/judge' names no provider"):
        Settings.model_validate({"frontier": {"bounds": bounds}})
    bounds["judge"] = "anthropic/claude-haiku-5-5"
    with pytest.raises(ValidationError, match="needs claims"):
        Settings.model_validate({"frontier": {"bounds": bounds}, "evidence": {"enabled": False}})
    assert Settings.model_validate({"frontier": {"bounds": bounds}}).frontier.bounds.judge
