"""How large a share is audited, what a day's audits cost, and how far targets are stacked."""

import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.evidence.statistics.audit_rate import (
    AuditSchedule,
    affordable_rate,
    allowed_shortcuts,
    budget_by_now,
    is_drawn,
)
from serving.evidence.statistics.intervals import clopper_pearson

BUSY = 1e6
"""Accepted inputs a day at which min_audits_a_day does not count."""


@pytest.mark.parametrize(
    ("accepted", "rate"),
    [(0, 0.2), (500, 0.2), (1000, 0.1), (2500, 0.04), (5000, 0.02), (10**6, 0.02)],
)
def test_the_rate_falls_with_the_inverse_to_its_floor(accepted: int, rate: float) -> None:
    assert AuditSchedule().rate(accepted, BUSY) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("a_day", "rate"), [(0.0, 0.02), (2000.0, 0.02), (400.0, 0.05), (20.0, 1.0), (3.0, 1.0)]
)
def test_little_traffic_is_audited_often_enough_a_day(a_day: float, rate: float) -> None:
    assert AuditSchedule().rate(10**6, a_day) == pytest.approx(rate)
    assert AuditSchedule().rate(0, a_day) == pytest.approx(max(rate, 0.2))


@given(st.integers(0, 10**7), st.floats(0.0, 1e9))
def test_a_rate_is_a_share_and_never_below_the_floor(accepted: int, a_day: float) -> None:
    schedule = AuditSchedule()
    assert schedule.floor(a_day) <= schedule.rate(accepted, a_day) <= 1.0
    assert schedule.rate(accepted + 1, a_day) <= schedule.rate(accepted, a_day)


@pytest.mark.parametrize("accepted", [0, 100, 500, 3000, 20_000])
def test_the_expected_audits_are_the_sum_of_the_rates(accepted: int) -> None:
    schedule = AuditSchedule()
    expected = sum(schedule.rate(one, BUSY) for one in range(1, accepted + 1))
    assert schedule.audits(accepted) == pytest.approx(expected, rel=1e-3)


def test_the_coin_is_fair() -> None:
    rng = random.Random(1)  # noqa: S311  # a simulation
    drawn = sum(is_drawn(rng.random(), 0.2) for _ in range(20_000))
    interval = clopper_pearson(drawn, 20_000, 0.9999)
    assert interval.low <= 0.2 <= interval.high


def test_the_coin_of_a_raised_rate_draws_what_a_lower_one_did() -> None:
    assert not is_drawn(0.0, 0.0)
    assert is_drawn(0.999, 1.0)
    assert [is_drawn(0.1, rate) for rate in (0.05, 0.1, 0.2)] == [False, False, True]


@pytest.mark.parametrize(
    ("elapsed_s", "usd"),
    [(0, "0.2"), (3600, "0.4"), (43_200, "2.6"), (82_800, "4.8"), (86_399, "4.8")],
)
def test_the_budget_of_a_day_is_paced(elapsed_s: int, usd: str) -> None:
    assert budget_by_now(Decimal("4.8"), elapsed_s) == Decimal(usd)


def test_a_time_before_midnight_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        budget_by_now(Decimal(1), -1)


@pytest.mark.parametrize(
    ("avoided", "audit", "rate"),
    [(0.01, 0.01, 0.02), (0.01, 0.001, 0.2), (0.0, 0.01, 0.0), (1.0, 0.0, 1.0)],
)
def test_audits_cost_at_most_a_share_of_what_they_let_avoid(
    avoided: float, audit: float, rate: float
) -> None:
    assert affordable_rate(avoided, audit, 0.02) == pytest.approx(rate)


def test_targets_are_stacked_up_to_the_cap() -> None:
    assert allowed_shortcuts([0.15, 0.05, 0.05], 0.25) == 3
    assert allowed_shortcuts([0.15, 0.15], 0.25) == 1
    assert allowed_shortcuts([0.3], 0.25) == 0
