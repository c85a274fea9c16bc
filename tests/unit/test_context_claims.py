"""Context pruning under its claim, over HTTP: compared, earned, watched, suspended, withdrawn."""

import json
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from pydantic import ValidationError

from serving.context.lazy import LazyPruner
from serving.contracts.context_settings import ContextSettings
from serving.contracts.evidence import ClaimEvent, ClaimState
from serving.contracts.ledger import Tenant
from serving.contracts.ledger_settings import AuthSettings
from serving.contracts.routing import Decision
from serving.contracts.settings import Settings
from serving.evidence.administration import listed
from serving.ledger.access.keys import create_key
from serving.ledger.access.tenants import create_tenant
from serving.ledger.database import Database

from ..provider.script import Fault, Reply, Seen, ToolCall
from ..provider.server import ProviderServer
from .context_claims_kit import LAZY, ON, Model, contexts
from .tiers_kit import LARGE, MIDDLE, PRICES


@pytest.fixture
def model(provider: ProviderServer) -> Model:
    # Not in a test's loop: the SDKs take seconds to import, and the vectors one to load.
    import serving.frontier.anthropic_api
    import serving.frontier.openai_api  # noqa: F401

    LAZY.get()
    found = Model()
    provider.script.answer = found
    return found


async def test_pruning_is_earned_beside_the_clients_own_answers_and_then_used(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    async with contexts(provider, database) as server:
        stated = await server.ask(0)
        assert (stated["outcome"], stated["guarantee"]["evidence"]) == ("not_earned", "none")
        assert stated["tokens_after"] == stated["tokens_before"] > 0
        await server.settle()
        # Behind the request, the other answer and the judge in both orders.
        assert model.asked == ["whole", "pruned", "judge", "judge"]
        (row,) = server.audits()
        assert (row.origin, row.loss, row.cost_usd, row.judge_usd) == (
            "shadow", 0.5, Decimal("0.75"), Decimal("0.75"),
        )  # fmt: skip
        assert [page.exit.reason for page in server.audited.pages if page.exit] == [
            "explore", "judge", "judge",
        ]  # fmt: skip
        assert server.metric("narrowgate_context_comparisons_total", verdict="same") == 1
        assert server.metric("narrowgate_contexts_total", outcome="not_earned") == 1
        claim = await server.earn()
        assert claim.scope.subject == f"context/{LARGE}"
        assert [found["scope"]["subject"] for found in listed(server.evidence.store)] == [
            f"context/{LARGE}"
        ]
        stated = await server.ask(200)
        assert (stated["outcome"], stated["guarantee"]["claim"]) == ("pruned", claim.id)
        assert stated["guarantee"]["target_error"] == 0.1
        row_ = server.server.ledger.pages[-1].exit
        assert row_ is not None
        assert (row_.claim, row_.evidence) == (claim.id, "traffic")
        # The reference cost is that of the whole context; what was removed is avoided.
        assert row_.usage is not None
        assert row_.reference_usage is not None
        removed = row_.reference_usage.uncached_input_tokens - row_.usage.uncached_input_tokens
        assert 0 < removed <= stated["tokens_before"] - stated["tokens_after"]
        assert row_.avoided_usd == removed * PRICES[LARGE].uncached_input


async def test_a_context_that_is_missed_is_never_pruned(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    model.loses = True
    async with contexts(provider, database) as server:
        for number in range(80):
            assert (await server.ask(number))["outcome"] == "not_earned"
            if number % 6 == 5:
                await server.settle()
                if server.claim().state is ClaimState.NOT_EARNABLE:
                    break
        assert server.claim().state is ClaimState.NOT_EARNABLE
        model.loses = False
        assert (await server.ask(99))["outcome"] == "not_earned"


async def test_pruning_that_becomes_worse_ends(
    provider: ProviderServer,
    database: Database,
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.pipeline.paired_auditor._AUDITED_AT_FIRST", 1.0)
    async with contexts(provider, database) as server:
        claim = await server.earn()
        model.asked.clear()
        await server.ask(1)
        # Of the pruned answer, which the client got, the whole context's is made and judged.
        assert model.asked == ["pruned", "whole", "judge", "judge"]
        model.loses = True
        for number in range(2, 60):
            await server.post(number)
            if number % 6 == 5:
                await server.settle()
        assert {row.origin for row in server.audits()} == {"shadow", "accepted"}
        assert server.claim().state in (ClaimState.SUSPENDED, ClaimState.NOT_EARNABLE)
        events = server.evidence.store.rows_after(0)
        kinds = [row.kind for row in events if isinstance(row, ClaimEvent)]
        assert "suspended" in kinds
        assert (await server.ask(99))["outcome"] == "not_earned"
        assert server.claim().id == claim.id


async def test_a_claim_survives_a_restart_and_ends_where_a_person_withdraws_it(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    async with contexts(provider, database) as server:
        claim = await server.earn()
        # Nothing but the database is shared.
        async with contexts(provider, database) as restarted:
            assert (await restarted.ask(1))["guarantee"]["claim"] == claim.id
            event = ClaimEvent(claim.id, "withdrawn", "a test", "operator", claim.since, 0)
            server.evidence.store.append(events=[event])
            await server.settle()
            await restarted.settle()
            for replica in (server, restarted):
                stated = await replica.ask(2)
                assert stated["outcome"] in ("no_claim", "not_earned")
                assert model.asked[-1] == "whole"


async def test_one_tenants_claim_prunes_nothing_of_another(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    async with contexts(provider, database, auth=AuthSettings()) as server:
        keys = {}
        for name in ("acme", "globex"):
            create_tenant(database, Tenant(name))
            key = create_key(database, name).text.get_secret_value()
            keys[name] = {"authorization": f"Bearer {key}"}
        await server.directory.refresh()
        await server.earn(headers=keys["acme"])
        assert (await server.ask(1, headers=keys["acme"]))["outcome"] == "pruned"
        assert (await server.ask(1, headers=keys["globex"]))["outcome"] == "not_earned"
        # Globex breaks its own claim and leaves acme's alone.
        model.loses = True
        await server.many(12, 20, headers=keys["globex"])
        assert (await server.ask(2, headers=keys["acme"]))["outcome"] == "pruned"
        assert {row.tenant for row in server.audits()} == {"acme", "globex"}


@pytest.mark.parametrize(
    "more",
    [
        {"headers": {"x-narrowgate-quality": "reference"}},
        {"headers": {"x-narrowgate-audit": "never"}},
        {"headers": {"x-narrowgate-deterministic": "true"}},
        {"n": 2},
        {"options": {"context_mode": "off"}},
    ],
    ids=str,
)
async def test_what_may_not_be_compared_is_sent_whole_under_a_held_claim(
    provider: ProviderServer, database: Database, model: Model, more: dict[str, Any]
) -> None:
    async with contexts(provider, database) as server:
        await server.earn()
        assert (await server.ask(1))["outcome"] == "pruned"
        model.asked.clear()
        await server.post(2, **more)
    assert model.asked == ["whole"]


async def test_without_a_judge_nothing_is_pruned(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    async with contexts(provider, database, judge=None) as server:
        for _ in range(3):
            assert (await server.ask())["outcome"] == "no_claim"
    assert model.asked == ["whole"] * 3


async def test_where_pruning_removes_nothing_there_is_nothing_to_compare(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    async with contexts(provider, database, config=ON.model_copy(update={"min_tokens": 5000})) as s:
        assert (await s.ask())["outcome"] == "not_earned"
        await s.settle()
        assert s.audits() == []
    assert model.asked == ["whole"]


async def test_a_mode_that_the_client_names_prunes_without_a_claim_and_counts_no_saving(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    async with contexts(provider, database) as server:
        stated = await server.ask(0, options={"context_mode": "threshold"})
        await server.settle()
        assert (stated["outcome"], stated["guarantee"]["evidence"]) == ("pruned", "none")
        row = server.server.ledger.pages[-1].exit
        assert row is not None
        assert (row.claim, row.reference_usage, row.avoided_usd) == (None, None, None)
        assert server.audits() == []
    assert model.asked == ["pruned"]


async def test_a_client_may_ask_for_auto_where_the_settings_are_off(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    config = ON.model_copy(update={"mode": "off"})
    async with contexts(provider, database, config=config) as server:
        assert "narrowgate" not in (await server.post(0)).json()
        await server.earn(options={"context_mode": "auto"})
        stated = await server.ask(1, options={"context_mode": "auto"})
        assert stated["outcome"] == "pruned"


@pytest.mark.parametrize("nonsense", ["Both are wonderful.", '{"verdict": "FIRST wins"}', ""])
async def test_a_judges_nonsense_earns_nothing(
    provider: ProviderServer, database: Database, model: Model, nonsense: str
) -> None:
    model.judges = nonsense or " "
    async with contexts(provider, database) as server:
        await server.many(6)
        assert [(row.verdict, row.loss) for row in server.audits()] == [("missing", 1.0)] * 6
        assert server.claim().state is ClaimState.SHADOW


async def test_whether_both_answers_decline_is_for_the_judge_to_see(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    model.declines = True
    async with contexts(provider, database) as server:
        await server.many(1)
        # Equal by rule: no judge is asked, and the pair is a tie.
        assert [(row.verdict, row.loss) for row in server.audits()] == [("same", 0.5)]
    assert model.asked == ["whole", "pruned"]


async def test_a_comparison_of_unknown_cost_counts_at_its_worst_case(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    async with contexts(provider, database) as server:
        # The client's own answer and the pruned one; then the judge takes the request and hangs up.
        provider.script.next(None, None, Fault("hang_up"), Fault("hang_up"))
        await server.post()
        await server.settle()
        (row,) = server.audits()
        calls = [call for page in server.audited.pages for call in page.calls]
        known = sum((call.cost_usd for call in calls if call.cost_usd is not None), Decimal(0))
        assert row.cost_usd is not None
        assert row.cost_usd > known
        assert server.evidence.evidence.counts.judged_here[1] == row.cost_usd


async def test_audits_of_a_provider_that_is_down_count_neither_way(
    provider: ProviderServer,
    database: Database,
    model: Model,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.pipeline.paired_auditor._AUDITED_AT_FIRST", 1.0)
    async with contexts(provider, database) as server:
        claim = await server.earn()
        provider.script.on("judge", Fault("status", 503))
        assert (await server.ask(1))["outcome"] == "pruned"
        await server.settle()
        last = server.audits()[-1]
        assert (last.origin, last.verdict, last.loss) == ("accepted", "dropped", None)
        assert server.metric("narrowgate_context_comparisons_total", verdict="dropped") == 1
        assert server.claim().state is ClaimState.HELD
        assert server.claim().observed_error == claim.observed_error


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_another_model_than_the_claims_gets_the_whole_context(
    provider: ProviderServer, database: Database, model: Model, is_streamed: bool
) -> None:
    async with contexts(provider, database) as server:
        path = server.server.context.path
        tiers = dict.fromkeys(("economy", "standard", "frontier"), (LARGE, MIDDLE))
        policy = replace(path.policy, tiers=tiers)
        object.__setattr__(server.server.context, "path", replace(path, policy=policy))
        server.server.router.decision = Decision(None, 0.99, None, "frontier", "scripted")
        await server.earn(model="auto")
        assert (await server.ask(1, model="auto"))["outcome"] == "pruned"
        provider.script.on("large", Fault("status", 503))
        model.asked.clear()
        # A request that held the place of its first call would find none for the second.
        server.server.context.frontier_admission._max_concurrent = 1
        response = await server.post(2, model="auto", stream=is_streamed)
        text = response.text
        if is_streamed:
            text = next(line[6:] for line in text.splitlines() if line.startswith("data: {"))
        stated = json.loads(text)["narrowgate"]["context"]
        assert (stated["outcome"], stated["guarantee"]["evidence"]) == ("fallback", "none")
        assert model.asked == ["whole"]
        row = server.server.ledger.pages[-1].exit
        assert row is not None
        assert (row.model, row.claim, row.reference_usage) == (MIDDLE, None, None)
        assert [attempt.model for attempt in row.attempts] == [LARGE] * len(row.attempts)
        assert row.attempts


async def test_a_stream_is_compared_once_it_has_ended(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    async with contexts(provider, database) as server:
        await server.post(0, stream=True)
        await server.settle()
        assert model.asked == ["whole", "pruned", "judge", "judge"]
        assert [row.verdict for row in server.audits()] == ["same"]
        await server.earn()
        response = await server.post(1, stream=True)
        lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: {")]
        events = [json.loads(line) for line in lines]
        assert events[0]["narrowgate"]["context"]["guarantee"]["claim"] == server.claim().id
        assert not any("narrowgate" in event for event in events[1:])
        row = server.server.ledger.pages[-1].exit
        assert row is not None
        assert row.claim == server.claim().id
        assert row.avoided_usd


async def test_an_answer_that_was_cut_is_not_compared_and_a_call_of_a_tool_is(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    tool = {"type": "function", "function": {"name": "book", "parameters": {"type": "object"}}}

    def called(seen: Seen) -> Reply:
        model(seen)
        if seen.model == "judge":
            return Reply('{"verdict": "equal"}')
        seats = "a" * len(model.asked)
        return Reply(calls=(ToolCall("book", {"seats": seats}),), finish="tool_calls")

    async with contexts(provider, database) as server:
        await server.post(0, max_tokens=2)
        await server.settle()
        assert server.audits() == []
        provider.script.answer = called
        await server.post(1, tools=[tool])
        await server.settle()
        assert [row.verdict for row in server.audits()] == ["same"]


def test_another_pruner_or_kind_of_context_is_another_claim() -> None:
    versions = {
        LazyPruner(ON).version,
        LazyPruner(ON.model_copy(update={"tools": ("search",)})).version,
        LazyPruner(ON.model_copy(update={"min_tokens": 11})).version,
    }
    assert len(versions) == 3
    assert LazyPruner(ON).version == LAZY.version


def test_settings_under_which_no_claim_could_be_kept_are_refused() -> None:
    judge = "anthropic/claude-haiku-5-5"
    with pytest.raises(ValidationError, match=r"set context\.judge"):
        ContextSettings(mode="auto")
    with pytest.raises(ValidationError, match=r"context\.judge: 'nobody/judge' names no provider"):
        Settings.model_validate({"context": {"judge": "nobody/judge"}})
    context = {"mode": "auto", "judge": judge, "target_error": 0.1}
    with pytest.raises(ValidationError, match="needs claims"):
        Settings.model_validate({"context": context, "evidence": {"enabled": False}})
    others = {"tiers": {"mode": "on", "target_error": 0.2}}
    with pytest.raises(ValidationError, match=r"is 0\.3, above evidence\.max_total_error"):
        Settings.model_validate({"context": context, **others})
    assert Settings.model_validate({"context": context}).context.judge == judge
