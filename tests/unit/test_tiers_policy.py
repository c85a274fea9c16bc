"""Which tier serves a cluster, which is explored, and whether that pays back."""

import math
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from serving.contracts.evidence import Claim, ClaimState, Scope
from serving.contracts.prices import TokenPrices
from serving.evidence.payback import chance, pairs_left
from serving.tiers.policy import (
    AuditShares,
    Prospect,
    Rung,
    Traffic,
    allot,
    ladder,
    place_of,
    prospect,
)

AT = datetime(2026, 11, 2, tzinfo=UTC)


def rung(tier: str, input_usd: str, output_usd: str) -> Rung:
    price = Decimal(input_usd) / 1_000_000
    prices = TokenPrices(price, price, price, price, Decimal(output_usd) / 1_000_000)
    return Rung(tier, f"fake/{tier}", prices)  # type: ignore[arg-type]


FRONTIER = rung("frontier", "5", "25")
STANDARD = rung("standard", "3", "15")
ECONOMY = rung("economy", "1", "5")
TRAFFIC = Traffic(requests=1000, days=10.0, input_tokens=300.0, output_tokens=500.0)


def claim(state: ClaimState, **changes: object) -> Claim:
    base = Claim(
        "c", Scope("default", "cluster/0/economy"), "cheaper_tier", "net_worse", 0.1, "fake/f",
        state, AT,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


HELD, SHADOW = claim(ClaimState.HELD), claim(ClaimState.SHADOW)


def test_the_ladder_holds_what_is_cheaper_whatever_the_lengths() -> None:
    mixed = rung("standard", "6", "10")
    assert ladder(FRONTIER, (ECONOMY, STANDARD, FRONTIER)) == (STANDARD, ECONOMY)
    assert ladder(FRONTIER, (mixed, ECONOMY)) == (ECONOMY,)
    assert ladder(ECONOMY, (STANDARD, FRONTIER)) == ()


@pytest.mark.parametrize(
    ("claims", "serving", "still_open"),
    [
        ([None, None], None, (0, 1)),
        ([HELD, SHADOW], 0, (1,)),
        ([SHADOW, HELD], 1, ()),
        ([HELD, claim(ClaimState.NOT_EARNABLE)], 0, ()),
        ([claim(ClaimState.SUSPENDED), claim(ClaimState.WITHDRAWN)], None, (0,)),
        ([HELD, claim(ClaimState.SUSPENDED)], 0, (1,)),
        ([], None, ()),
    ],
)
def test_the_cheapest_held_tier_serves_and_cheaper_ones_stay_open(
    claims: list[Claim | None], serving: int | None, still_open: tuple[int, ...]
) -> None:
    found = place_of(claims)
    assert (found.serving, found.open) == (serving, still_open)


def found(claimed: Claim | None = None, traffic: Traffic = TRAFFIC) -> Prospect:
    return prospect("c", traffic, (FRONTIER, None, ECONOMY), ECONOMY.prices, claimed, 0.1)


def test_a_prospect_counts_the_cheaper_answer_and_both_orders_of_judging() -> None:
    one = found()
    # 300 x $1 + 500 x $5, and twice (300 + 1,000 + 350) x $1 + 20 x $5, for a million tokens.
    assert one.pair_usd == pytest.approx(0.0028 + 0.0035)
    assert one.saving_usd == pytest.approx(0.014 - 0.0028)
    beside = prospect("c", TRAFFIC, (FRONTIER, STANDARD, ECONOMY), ECONOMY.prices, None, 0.1)
    assert beside.pair_usd == pytest.approx(one.pair_usd + 0.014)
    assert beside.saving_usd == pytest.approx(0.0084 - 0.0028)


def test_a_small_cluster_does_not_pay_back_and_a_large_one_does() -> None:
    small, large = found(traffic=replace(TRAFFIC, requests=30)), found()
    assert small.net_usd(30.0) < 0.0 < large.net_usd(30.0)
    assert small.payback_days() > 30.0 > large.payback_days()
    assert allot([small], Decimal(5), 30.0) == {}
    assert allot([large], Decimal(5), 30.0)["c"].share == 1.0
    nothing = replace(large, saving_usd=0.0)
    assert nothing.payback_days() == math.inf


def test_the_budget_goes_to_the_most_profitable_first() -> None:
    large = replace(found(), cluster="large", requests_a_day=500.0)
    middle = replace(found(), cluster="middle", requests_a_day=200.0)
    shares = allot([middle, large], Decimal("3.2"), 30.0)
    assert shares["large"].share == 1.0
    assert 0.0 < shares["middle"].share < 0.1
    assert allot([middle, large], Decimal(0), 30.0) == {}


def test_one_tier_of_a_cluster_is_explored_at_a_time() -> None:
    economy = found()
    standard = replace(economy, tier="standard", saving_usd=economy.saving_usd / 2)
    shares = allot([standard, economy], Decimal(50), 30.0)
    assert {name: one.tier for name, one in shares.items()} == {"c": "economy"}


def test_evidence_moves_the_chance_and_shortens_the_way() -> None:
    good = replace(SHADOW, shadow_loss=0.01, audits=60, progress=0.6)
    bad = replace(SHADOW, shadow_loss=0.3, audits=60)
    few_bad = replace(SHADOW, shadow_loss=0.15, audits=20)
    assert chance(bad, 0.1) < 0.2 < chance(few_bad, 0.1) < 0.6 < chance(good, 0.1)
    assert pairs_left(good, 0.1) < pairs_left(None, 0.1) < 400
    # A good tier is not abandoned for twenty unlucky pairs; a bad one is, after sixty.
    assert found(few_bad).net_usd(30.0) > 0.0
    assert found(bad).net_usd(30.0) < found(few_bad).net_usd(30.0)


def test_a_held_tier_is_watched_for_a_share_of_what_it_saves() -> None:
    shares = AuditShares(of_saving=0.1, floor=0.02, high=0.2, first=500)
    late, early = (replace(SHADOW, since_signal=count) for count in (500, 499))
    assert shares.rate(0.0112, 0.0175, late) == pytest.approx(0.064)
    assert shares.rate(0.0112, 0.0175, early) == pytest.approx(0.128)
    assert shares.rate(0.0001, 0.0175, late) == 0.02
    assert shares.rate(1.0, 0.0175, late) == 0.2
    assert shares.rate(1.0, 0.0, late) == 0.2


@pytest.mark.parametrize(
    ("settled", "changed", "is_settled"),
    [
        (100, {}, True),
        (0, {}, False),
        (100, {"audits": 99}, False),
        (100, {"since_signal": 499}, False),
        (100, {"alarm_progress": 0.51}, False),
        (100, {"observed_error": 0.08}, False),
    ],
)
def test_a_quiet_watch_needs_the_floor_alone_until_something_changes(
    settled: int, changed: dict[str, float], is_settled: bool
) -> None:
    shares = AuditShares(of_saving=0.1, floor=0.02, high=0.2, first=500, settled=settled)
    quiet = replace(SHADOW, since_signal=500, audits=100, alarm_progress=0.5, observed_error=0.07)
    found = shares.rate(0.0112, 0.0175, replace(quiet, **changed))  # type: ignore[arg-type]
    assert (found == 0.02) == is_settled
    assert is_settled or found >= 0.064
