"""The benchmark's arithmetic."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load import LoadResult
from benchmarks.stack_report import Cell, Rounds, percentile, row
from benchmarks.texts import texts


@given(st.lists(st.floats(0, 10), min_size=1, max_size=50), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_percentile_is_a_value_that_its_share_does_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values)
    assert sum(value < found for value in values) < share * len(values)


def test_ratios_are_taken_within_a_round() -> None:
    rounds = Rounds(Cell("sentiment", 16, 10))
    for stack_s, bare_s in ((1.0, 0.9), (2.0, 1.9), (1.0, 0.8)):
        rounds.stack.append(LoadResult((0.1,) * 10, stack_s))
        rounds.empty.append(LoadResult((0.002,) * 10, 0.02))
        rounds.bare_s.append([bare_s])
        rounds.constrained_s.append([2 * bare_s])
    figures = row(rounds)
    assert figures.stack_over_bare == pytest.approx(0.9)
    assert figures.scoring_over_constrained == pytest.approx(2.0)
    assert figures.stack_rps == pytest.approx(10.0)
    assert figures.added_ms is None


def test_added_latency_is_what_neither_engine_nor_handler_takes() -> None:
    rounds = Rounds(Cell("ner", 1, 2))
    rounds.stack.append(LoadResult((0.060, 0.062), 0.122))
    rounds.empty.append(LoadResult((0.002, 0.002), 0.004))
    rounds.bare_s.append([0.054, 0.056])
    assert row(rounds).added_ms == pytest.approx(4.0)


def test_inputs_are_distinct_and_repeatable() -> None:
    made = texts(200, seed=1)
    assert len(set(made)) == 200
    assert made == texts(200, seed=1)
    assert not set(made) & set(texts(200, seed=2))
