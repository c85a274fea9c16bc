"""Shares of replicas' time: they add up to the time that replicas were busy."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts.settings import Replicas
from serving.pipeline.replica_meter import MeterEntry, ReplicaMeter


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


STEPS = st.lists(
    st.tuples(st.floats(0.001, 10.0), st.one_of(st.integers(1, 8), st.none())), max_size=40
)


@given(STEPS)
def test_shares_add_up_to_the_time_in_which_a_replica_was_busy(
    steps: list[tuple[float, int | None]],
) -> None:
    clock = Clock()
    meter = ReplicaMeter(Replicas(), clock=clock)
    inside: list[tuple[int, MeterEntry]] = []
    shared = busy = 0.0
    for seconds, inputs in steps:
        if inputs is not None:
            inside.append((inputs, meter.enter(inputs)))
        elif inside:
            number, entry = inside.pop(0)
            shared += number * entry.leave()
        clock.now_s += seconds
        busy += seconds if inside else 0.0
    for number, entry in inside:
        shared += number * entry.leave()
    assert shared == pytest.approx(busy)


def test_a_batch_costs_what_a_lone_input_does() -> None:
    clock = Clock()
    meter = ReplicaMeter(Replicas(), clock=clock)
    lone = meter.enter(1)
    clock.now_s += 2.0
    assert lone.leave() == 2.0
    batch = meter.enter(32)
    clock.now_s += 2.0
    assert batch.leave() == pytest.approx(2.0 / 32)


def test_leaving_twice_is_leaving_once() -> None:
    clock = Clock()
    meter = ReplicaMeter(Replicas(), clock=clock)
    entry, other = meter.enter(1), meter.enter(1)
    clock.now_s += 4.0
    assert entry.leave() == 2.0
    clock.now_s += 4.0
    assert entry.leave() == 2.0
    assert other.leave() == 6.0


def test_idle_time_is_nobodys() -> None:
    clock = Clock()
    meter = ReplicaMeter(Replicas(), clock=clock)
    meter.enter(1).leave()
    clock.now_s += 100.0
    entry = meter.enter(1)
    clock.now_s += 1.0
    assert entry.leave() == 1.0


@pytest.mark.parametrize(("inputs", "busy"), [(1, 1), (2, 2), (8, 2), (20, 2), (30, 3), (1000, 4)])
def test_replicas_are_those_that_autoscaling_aims_at(inputs: int, busy: int) -> None:
    clock = Clock()
    replicas = Replicas(min=2, max=4, target_ongoing_requests=10)
    meter = ReplicaMeter(replicas, clock=clock)
    entry = meter.enter(inputs)
    clock.now_s += 1.0
    assert inputs * entry.leave() == pytest.approx(busy)


def test_gateways_together_take_what_one_would() -> None:
    clock = Clock()
    replicas = Replicas(min=3, max=3)
    one = ReplicaMeter(replicas, clock=clock).enter(12)
    halves = [ReplicaMeter(replicas, gateways=2, clock=clock).enter(6) for _ in range(2)]
    clock.now_s += 5.0
    assert sum(6 * half.leave() for half in halves) == pytest.approx(12 * one.leave())


@given(st.lists(st.integers(1, 100), min_size=2, max_size=6, unique=True))
def test_more_company_never_makes_an_input_dearer(numbers: list[int]) -> None:
    shares = []
    for inputs in sorted(numbers):
        clock = Clock()
        entry = ReplicaMeter(Replicas(min=1, max=1), clock=clock).enter(inputs)
        clock.now_s += 1.0
        shares.append(entry.leave())
    assert all(more <= less for less, more in pairwise(shares))
