"""A claim must pay for its comparisons: the rule, and two tenants over HTTP."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts.evidence import Audit, Claim, ClaimEvent, ClaimState, Scope
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.ledger import Tenant
from serving.contracts.ledger_settings import AuthSettings
from serving.contracts.report import ContextClaim
from serving.evidence.payback import LEAST_PAIRS, Comparisons, payback
from serving.evidence.standing import Situation, standing_of
from serving.ledger.access.keys import create_key
from serving.ledger.access.tenants import create_tenant
from serving.ledger.database import Database
from serving.ledger.reports.contexts import context_claims
from serving.ledger.reports.query import Scope as ReportScope

from ..provider.server import ProviderServer
from .context_claims_kit import FACTS, LAZY, RICH, ContextServer, Model, contexts
from .evidence_kit import AT
from .frontier_kit import FlatPrices, dollars_a_million
from .tiers_kit import JUDGE, LARGE

SETTINGS = EvidenceSettings()
SHADOW = Claim(
    "c", Scope("default", "context/m", {}, ("pruned_context",)), "pruned_context", "net_worse",
    0.1, "m", ClaimState.SHADOW, AT, shadow_loss=0.0, audits=60, progress=0.5, hypotheses=1,
)  # fmt: skip
HELD = replace(SHADOW, state=ClaimState.HELD, progress=1.0, shadow_loss=None, since_signal=500)
DAY = AT + timedelta(days=1)


def seen(saving: str, pair: str, inputs: float = 500.0, pairs: int = 100) -> Comparisons:
    """What a day's comparisons say, by the means of one of them."""
    return Comparisons(pairs, pairs * Decimal(saving), pairs * Decimal(pair), inputs, AT)


def pays(found: Comparisons, claim: Claim, settings: EvidenceSettings = SETTINGS) -> bool:
    expected = payback(found, claim, settings, DAY)
    assert expected is not None
    return expected.pays(claim)


def test_comparing_pays_by_price_and_by_traffic() -> None:
    assert pays(seen("0.002", "0.01"), SHADOW)
    # The same saving at a judge of a hundred times the price, or on a request a day.
    assert not pays(seen("0.002", "1"), SHADOW)
    assert not pays(seen("0.002", "0.01", inputs=1.0), SHADOW)
    # A longer time pays back more, and a shortcut that costs more than it saves never does.
    week, year = (SETTINGS.model_copy(update={"payback_days": days}) for days in (7.0, 365.0))
    slow = seen("0.002", "0.05", inputs=100.0)
    assert pays(slow, SHADOW, year)
    assert not pays(slow, SHADOW, week)
    assert not pays(seen("-0.0001", "0"), SHADOW, year)


def test_a_held_claim_pays_for_being_watched_alone() -> None:
    # 2 % of the answers are audited, which asks for the whole context's answer as well: of one
    # answer $0.00204 and $0.00184.
    assert not pays(seen("0.002", "0.1"), HELD)
    assert pays(seen("0.002", "0.09"), HELD)
    # At first it is a fifth of 500 answers.
    assert not pays(seen("0.002", "0.09"), replace(HELD, since_signal=0))


def test_what_was_spent_before_decides_nothing_and_few_pairs_do_not_either() -> None:
    found = seen("0.002", "1", pairs=LEAST_PAIRS - 1)
    assert payback(found, SHADOW, SETTINGS, DAY) is None
    for state in (ClaimState.NOT_EARNABLE, ClaimState.WITHDRAWN):
        ended = replace(SHADOW, state=state)
        assert payback(seen("0.002", "1"), ended, SETTINGS, DAY) is None
    # The last few pairs are worth their price where the first would not be.
    dear = seen("0.002", "0.12")
    assert not pays(dear, replace(SHADOW, progress=0.0))
    assert pays(dear, replace(SHADOW, progress=0.99, audits=600)) == pays(dear, HELD)


def test_a_slowed_claim_resumes_with_some_margin() -> None:
    claims = (SHADOW, replace(SHADOW, is_slowed=True))
    found = [[pays(seen("0.002", f"{n / 1000}"), claim) for n in range(1, 200)] for claim in claims]
    before, after = map(sum, found)
    assert 0 < after < before < 199


@given(
    st.decimals(-1, 1, places=4), st.decimals(0, 1, places=4), st.floats(0.0, 1e6),
    st.sampled_from([SHADOW, HELD, replace(SHADOW, is_slowed=True)]),
)  # fmt: skip
def test_a_dearer_comparison_never_pays_where_a_cheaper_one_does_not(
    saving: Decimal, pair: Decimal, inputs: float, claim: Claim
) -> None:
    cheap, dear = (seen(str(saving), str(usd), inputs) for usd in (pair, pair + 1))
    assert pays(cheap, claim) or not pays(dear, claim)


def test_a_slowed_claim_that_the_sample_has_earned_serves_nothing() -> None:
    situation = Situation("auto", True, True, True, "strict", None)
    assert standing_of("c", HELD, situation).mode == "claim"
    assert standing_of("c", replace(HELD, is_slowed=True), situation).mode == "shadow"


PRICES = FlatPrices(
    {
        LARGE: dollars_a_million("1", "0.1", "1", "1", "5"),
        # Five times what the model costs whose answers it compares.
        JUDGE: dollars_a_million("5", "0.5", "5", "5", "25"),
    }
)
SAMPLE_OF_NONE = RICH.model_copy(update={"sample_rate": 0.0})
LONG = FACTS * 12


@pytest.fixture
def model(provider: ProviderServer) -> Model:
    # Not in a test's loop: the SDKs take seconds to import, and the vectors one to load.
    import serving.frontier.anthropic_api
    import serving.frontier.openai_api  # noqa: F401

    LAZY.get()
    found = Model()
    provider.script.answer = found
    return found


async def tenants(server: ContextServer) -> dict[str, dict[str, str]]:
    """Return the headers of two tenants."""
    keys = {}
    for name in ("acme", "globex"):
        create_tenant(server.database, Tenant(name))
        key = create_key(server.database, name).text.get_secret_value()
        keys[name] = {"authorization": f"Bearer {key}"}
    await server.directory.refresh()
    return keys


def events(server: ContextServer, claim: Claim) -> list[str]:
    rows = server.evidence.store.rows_after(0, claim.id)
    return [row.kind for row in rows if isinstance(row, ClaimEvent) and row.kind != "tested"]


async def test_pruning_that_saves_little_is_given_up_and_where_it_pays_it_is_earned(
    provider: ProviderServer, database: Database, model: Model
) -> None:
    async with contexts(
        provider, database, auth=AuthSettings(), prices=PRICES, rules=SAMPLE_OF_NONE
    ) as server:
        keys = await tenants(server)
        # One comparison over HTTP for each, and further rows like it.
        await server.post(0, headers=keys["acme"], facts=LONG)
        await server.post(0, headers=keys["globex"])
        await server.settle()
        for row in server.audits():
            server.evidence.store.append(audits=list(copies(row, LEAST_PAIRS)))
        await server.settle()
        acme, globex = server.claim("acme"), server.claim("globex")
        rows = {row.claim: row for row in server.audits()}
        # 500 removed tokens at $1 a million, beside a judge that reads them twice at $5.
        assert rows[acme.id].avoided_usd > Decimal("0.0003")  # type: ignore[operator]
        assert rows[globex.id].avoided_usd < Decimal("0.0001")  # type: ignore[operator]
        assert (acme.is_slowed, globex.is_slowed) == (False, True)
        assert (events(server, acme), events(server, globex)) == ([], ["slowed"])
        assert globex.reason.startswith("within 30 days comparing is expected to cost $")
        subject = f"context/{LARGE}"
        assert server.metric("narrowgate_claim_slowed", claim=globex.id, task=subject) == 1
        assert server.metric("narrowgate_claim_slowed", claim=acme.id, task=subject) == 0
        assert server.metric("narrowgate_claim_transitions_total", task=subject, kind="slowed") == 1
        # From here on a sample is compared, which is of none here; the others go on.
        model.asked.clear()
        await server.many(4, 200, headers=keys["globex"])
        assert model.asked == ["whole"] * 4
        await server.many(1, 300, headers=keys["acme"], facts=LONG)
        assert model.asked[4:] == ["whole", "pruned", "judge", "judge"]
        server.evidence.store.append(audits=list(copies(server.audits()[-1], LEAST_PAIRS)))
        await server.settle()
        assert server.claim("acme").state is ClaimState.HELD
        stated = await server.ask(400, headers=keys["acme"], facts=LONG)
        assert stated["outcome"] == "pruned"
        stated = await server.ask(400, headers=keys["globex"])
        assert stated["outcome"] == "not_earned"
        found = {one.tenants: one for one in reported(database)}
        assert found["globex"].standing == "shadow, slowed"
        assert found["acme"].standing == "held"


def reported(database: Database) -> tuple[ContextClaim, ...]:
    with database.read() as connection:
        return context_claims(connection, ReportScope(AT, AT + timedelta(days=3650), None))


async def test_a_held_claim_ends_where_its_audits_become_too_dear_and_resumes_where_they_pay(
    provider: ProviderServer, database: Database, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.pipeline.paired_auditor._AUDITED_AT_FIRST", 1.0)
    prices = FlatPrices(PRICES)
    async with contexts(provider, database, prices=prices, rules=SAMPLE_OF_NONE) as server:
        claim = await server.earn(facts=LONG)
        assert (await server.ask(1, facts=LONG))["outcome"] == "pruned"
        prices[JUDGE] = dollars_a_million("200", "0.5", "5", "5", "25")
        await server.many(6, 12, facts=LONG)
        assert {row.origin for row in server.audits()} == {"shadow", "accepted"}
        ended = server.claim()
        assert (ended.id, ended.state, ended.is_slowed) == (claim.id, ClaimState.SUSPENDED, True)
        assert events(server, claim) == ["earned", "slowed"]
        assert (await server.ask(50, facts=LONG))["outcome"] == "not_earned"
        # Cheaper comparisons, of which the sample tells: comparing goes on, and it is earned again.
        cheap = [row for row in server.audits() if row.origin == "shadow"][-1]
        server.evidence.store.append(audits=list(copies(cheap, 1400)))
        await server.settle()
        assert not server.claim().is_slowed
        assert events(server, claim)[:3] == ["earned", "slowed", "resumed"]


def copies(row: Audit, count: int) -> Iterator[Audit]:
    for number in range(count):
        name = f"{row.input}-{number}"
        at = row.drawn_at + timedelta(milliseconds=200 + number)
        yield replace(row, input=name, group=name, text=name, drawn_at=at, judged_at=at)
