"""Cascades over HTTP: earned by judged answers, kept or escalated, watched, and off by default."""

import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from serving.contracts.evidence import Audit, Candidate, ClaimState
from serving.contracts.tiers_settings import TiersSettings
from serving.ledger.database import Database
from serving.ledger.schema import calls, exits

from ..provider.script import Fault, Reply, Seen
from ..provider.server import ProviderServer
from .frontier_kit import FlatPrices, dollars_a_million
from .tiers_kit import JUDGE, LARGE, ON, PRICES, SMALL, KnownQuality, TierServer, tiered

QUESTION = "Write a poem, number {}"
CASCADE: TiersSettings = ON.model_copy(update={"cascade": "on"})
TWO_TIERS = FlatPrices({model: PRICES[model] for model in (LARGE, SMALL, JUDGE)})
CLAIM = "cluster/0/economy/cascade"


class HardQuestions(KnownQuality):
    """A cheap model that cannot answer some questions: then each of its answers is another one.

    logprobs: of its words where it is right, and where it is wrong; None for a provider without.
    always_wrong: it agrees with itself, and is wrong.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logprobs: tuple[float, float] | None = None
        self.always_wrong = False
        self._draw = random.Random(1)  # noqa: S311  # words of a fake

    def __call__(self, seen: Seen) -> Reply:
        found = super().__call__(seen)
        if seen.model != "small":
            return found
        if self.always_wrong:
            return Reply("This is the wrong answer to it and so on", logprob=-0.01)
        is_hard = hard(str(seen.body["messages"][-1]["content"]))
        logprob = None if self.logprobs is None else self.logprobs[is_hard]
        if not is_hard:
            return replace(found, logprob=logprob)
        words = " ".join("".join(self._draw.choices("abcdefgh", k=6)) for _ in range(40))
        return Reply(f"This is the wrong answer: {words}", logprob=logprob)


def hard(text: str) -> bool:
    """Return whether the cheap model cannot answer: two of five questions."""
    return int(re.findall(r"\d+", text)[-1]) % 5 < 2


@pytest.fixture
def quality(provider: ProviderServer) -> HardQuestions:
    found = HardQuestions()
    provider.script.answer = found
    return found


@asynccontextmanager
async def cascaded(
    provider: ProviderServer,
    database: Database,
    state: Path,
    prices: FlatPrices = TWO_TIERS,
    **changed: Any,
) -> AsyncIterator[TierServer]:
    """Yield a replica whose cascade is held: by 300 rows of a check that tells right from wrong."""
    logprobs = changed.pop("logprobs", False)
    settings = CASCADE.model_copy(update=changed)
    async with tiered(
        provider, database, state, settings, prices=prices, gives_logprobs=lambda model: logprobs
    ) as server:
        for number in range(100):
            # Its claim is opened once the traffic is read from the ledger.
            await server.ask(QUESTION.format(number))
            await server.settle()
            if CLAIM in server.claims():
                break
        rows = [_row(server, number) for number in range(600)]
        for part in (rows[:150], rows[150:]):
            server.evidence.store.append(part)
            await server.evidence.worker.round()
        claim = server.claims()[CLAIM]
        assert claim.state is ClaimState.HELD, claim
        server.planner.refresh(server.database, server.evidence.store)
        await server.settle()
        provider.script.seen.clear()
        yield server


def _row(server: TierServer, number: int) -> Audit:
    claim, is_hard = server.claims()[CLAIM], number % 5 < 2
    at = claim.since + timedelta(seconds=number)
    candidate = Candidate("model", 0.2 if is_hard else 0.9, float(is_hard))
    return Audit(
        claim.id, f"i{number}", f"g{number}", f"t{number}", "shadow", 1.0,
        "different" if is_hard else "same", candidate.loss, claim.reference, (candidate,),
        drawn_at=at, judged_at=at,
    )  # fmt: skip


def models(provider: ProviderServer) -> list[str]:
    return [seen.model for seen in provider.script.seen]


async def test_a_cascade_is_earned_where_its_tier_is_not_and_keeps_what_is_right(
    provider: ProviderServer, database: Database, state: Path, quality: HardQuestions
) -> None:
    async with tiered(provider, database, state, CASCADE, prices=TWO_TIERS) as server:
        kept: list[str] = []
        for number in range(700):
            answer = await server.ask(QUESTION.format(number))
            if number % 25 == 24:
                await server.settle()
            cascade = answer["narrowgate"]["tier"].get("cascade")
            if cascade is not None and cascade["kept"]:
                kept.append(answer["choices"][0]["message"]["content"])
            if len(kept) >= 12:
                break
        await server.settle()
        claims = server.claims()
    # Two of five answers are wrong: the tier itself is given up.
    assert claims["cluster/0/economy"].state is ClaimState.NOT_EARNABLE
    held = claims[CLAIM]
    assert held.state is ClaimState.HELD, held
    assert held.action is not None
    assert len(kept) == 12
    assert all("right answer" in text for text in kept)


async def test_a_sure_answer_is_kept_and_an_unsure_one_goes_to_the_reference(
    provider: ProviderServer, database: Database, state: Path, quality: HardQuestions
) -> None:
    async with cascaded(provider, database, state) as server:
        easy = await server.ask(QUESTION.format(9))
        assert models(provider)[:2] == ["small", "small"]
        assert easy["model"] == SMALL
        stated = easy["narrowgate"]["tier"]
        assert stated["cascade"]["kept"] is True
        assert stated["cascade"]["confidence"] >= server.claims()[CLAIM].action.threshold  # type: ignore[union-attr]
        assert stated["cascade"]["delay_s"] > 0.0
        assert stated["guarantee"]["claim"] == server.claims()[CLAIM].id
        await server.settle()
        provider.script.seen.clear()
        difficult = await server.ask(QUESTION.format(10))
        assert models(provider) == ["small", "small", "large"]
        assert difficult["model"] == LARGE
        assert difficult["narrowgate"]["tier"]["cascade"]["kept"] is False
        assert "guarantee" not in difficult["narrowgate"]["tier"]
        metrics = (await server.server.client.get("/metrics")).text
    labels = 'cluster="poem",outcome="cascade_{}",tier="economy"'
    for outcome in ("kept", "escalated"):
        assert f"narrowgate_tier_requests_total{{{labels.format(outcome)}}} 1.0" in metrics
    with database.read() as connection:
        served = connection.execute(
            select(exits).where(exits.c.endpoint == "chat").order_by(exits.c.opened_at)
        ).all()[-2:]
        paid = connection.execute(select(calls.c.exit_id, calls.c.model)).all()
    assert [row.reason for row in served] == ["cascade", "out_of_scope"]
    assert [row.claim for row in served] == [stated["guarantee"]["claim"], None]
    by_exit = [sorted(m for e, m in paid if e == row.id) for row in served]
    # Every call is in the cost of its request.
    assert by_exit == [[SMALL, SMALL], [LARGE, SMALL, SMALL]]
    assert served[1].cost_usd > served[0].cost_usd > 0


async def test_off_by_default_and_for_what_cannot_be_checked(
    provider: ProviderServer, database: Database, state: Path, quality: HardQuestions
) -> None:
    assert TiersSettings().cascade == "off"
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    async with cascaded(provider, database, state) as server:
        for more in (
            {"temperature": 0}, {"seed": 1}, {"tools": tools}, {"stream": True},
            {"headers": {"x-narrowgate-max-cost-usd": "1"}},
            {"headers": {"x-narrowgate-quality": "reference"}},
        ):  # fmt: skip
            await server.settle()
            provider.script.seen.clear()
            await server.ask(QUESTION.format(9), **more)
            assert models(provider)[0] == "large", more
    async with tiered(provider, database, state, ON, prices=TWO_TIERS) as off:
        provider.script.seen.clear()
        answer = await off.ask(QUESTION.format(9))
        assert models(provider)[0] == "large"
        assert "cascade" not in answer["narrowgate"]["tier"]


async def test_a_stream_waits_for_the_check_where_the_setting_says_so(
    provider: ProviderServer, database: Database, state: Path, quality: HardQuestions
) -> None:
    async with cascaded(provider, database, state, cascade_streams=True) as server:
        for number, kept in ((9, "true"), (10, "false")):
            found = await server.ask(QUESTION.format(number), stream=True)
            assert ("right answer" in found["text"]) is True
            assert f'"kept":{kept}' in found["text"].replace(": ", ":")
            assert found["text"].rstrip().endswith("data: [DONE]")


async def test_a_cascade_that_costs_more_than_the_reference_is_not_taken(
    provider: ProviderServer, database: Database, state: Path, quality: HardQuestions
) -> None:
    dear = FlatPrices(
        {**{m: TWO_TIERS[m] for m in (LARGE, JUDGE)},
         SMALL: dollars_a_million("4", "0.4", "4", "4", "20")}
    )  # fmt: skip
    async with cascaded(provider, database, state, prices=dear) as server:
        # Two calls at four fifths of the price.
        answer = await server.ask(QUESTION.format(9))
        assert models(provider)[0] == "large"
        assert "cascade" not in answer["narrowgate"]["tier"]


@pytest.mark.parametrize("fault", ["down", "slow"])
async def test_a_cheaper_tier_that_fails_leaves_the_answer_to_the_reference(
    provider: ProviderServer, database: Database, state: Path, quality: HardQuestions, fault: str
) -> None:
    async with cascaded(provider, database, state, cascade_wait_s=1.0) as server:
        bad = Fault("status", 503) if fault == "down" else Fault("hang")
        provider.script.on("small", bad)
        answer = await server.ask(QUESTION.format(9))
        assert answer["model"] == LARGE
        assert answer["narrowgate"]["tier"]["cascade"]["kept"] is False
        await server.settle()
        assert server.claims()[CLAIM].state is ClaimState.HELD
        metrics = (await server.server.client.get("/metrics")).text
    assert 'outcome="cascade_failed",tier="economy"} 1.0' in metrics


async def test_log_probabilities_take_one_call_and_stay_from_the_client(
    provider: ProviderServer, database: Database, state: Path, quality: HardQuestions
) -> None:
    quality.logprobs = (-0.05, -2.5)
    async with cascaded(provider, database, state, logprobs=True) as server:
        easy = await server.ask(QUESTION.format(9), temperature=0)
        assert models(provider)[0] == "small"
        assert models(provider).count("small") == 1
        assert easy["model"] == SMALL
        assert easy["narrowgate"]["tier"]["cascade"]["confidence"] == pytest.approx(0.951, abs=1e-3)
        assert easy["choices"][0]["logprobs"] is None
        await server.settle()
        provider.script.seen.clear()
        assert (await server.ask(QUESTION.format(10)))["model"] == LARGE
        assert models(provider) == ["small", "large"]


async def test_a_provider_without_log_probabilities_is_checked_by_two_answers(
    provider: ProviderServer, database: Database, state: Path, quality: HardQuestions
) -> None:
    quality.logprobs = (-0.05, -2.5)
    async with cascaded(provider, database, state, logprobs=True) as server:
        cascades = server.planner.cascades
        assert cascades is not None
        quality.logprobs = None
        first = await server.ask(QUESTION.format(9))
        assert models(provider) == ["small", "large"]
        assert first["model"] == LARGE
        # One answer without them takes the cascade from nobody.
        quality.logprobs = (-0.05, -2.5)
        assert (await server.ask(QUESTION.format(10)))["narrowgate"]["tier"]["cascade"]
        cascades.gave_no_logprobs(SMALL, is_refusal=True)
        assert cascades.check_of(SMALL) == "logprobs"
        quality.logprobs = None
        number = 11
        while cascades.check_of(SMALL) == "logprobs":
            assert number < 11 + 40
            assert (await server.ask(QUESTION.format(number)))["model"] == LARGE
            number += 1
        assert number >= 11 + 20
        # What was earned was of the other check.
        await server.settle()
        assert "cascade" not in (await server.ask(QUESTION.format(9)))["narrowgate"]["tier"]


async def test_a_cheap_model_that_is_sure_and_wrong_loses_its_cascade(
    provider: ProviderServer, database: Database, state: Path, quality: HardQuestions
) -> None:
    quality.always_wrong = True
    async with cascaded(provider, database, state) as server:
        for number in range(300):
            await server.ask(QUESTION.format(number))
            if number % 10 == 9:
                await server.settle()
            if server.claims()[CLAIM].state is ClaimState.SUSPENDED:
                break
        assert server.claims()[CLAIM].state is ClaimState.SUSPENDED
        audits = [row for row in server.audits() if row.origin == "accepted"]
        assert {row.loss for row in audits} == {1.0}
        assert (await server.ask(QUESTION.format(9)))["model"] == LARGE
