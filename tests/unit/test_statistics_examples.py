"""Which audited inputs count for earning: one of a group, a text once, in bounded memory."""

from collections.abc import Sequence

import numpy as np
import pytest

from serving.evidence.statistics.examples import (
    Counted,
    CountedExamples,
    Example,
    Outcome,
    RecentNames,
)


def _example(
    name: str, group: str | None = None, text: str | None = None, at_s: float = 0.0, loss: float = 0
) -> Example:
    outcomes = {"model": Outcome(0.9, float(loss))}
    return Example(name, group or name, text or name, at_s, 1.0, outcomes)


def _ended(fold: CountedExamples) -> list[Counted]:
    """Return what counts of the open groups once they are complete."""
    return fold.add(10_000, Example("later", "later", "later", 1e9, None, {}))


def _counted(examples: Sequence[Example], window_s: float = 10.0) -> list[Counted]:
    fold = CountedExamples(window_s)
    found = [one for at, example in enumerate(examples, 1) for one in fold.add(at, example)]
    return found + _ended(fold)


def _names(examples: Sequence[Example], window_s: float = 10.0) -> list[str]:
    return [one.example.input for one in _counted(examples, window_s)]


def test_one_input_of_a_group_counts() -> None:
    burst = [_example(f"b{at}", "burst", at_s=at / 10) for at in range(50)]
    alone = [_example(f"a{at}", at_s=20.0 + at) for at in range(3)]
    names = _names([*burst, *alone])
    assert len(names) == 4
    assert names[1:] == ["a0", "a1", "a2"]


def test_which_input_of_a_group_counts_depends_neither_on_order_nor_on_loss() -> None:
    burst = [_example(f"b{at}", "burst", loss=at % 2) for at in range(20)]
    assert _names(burst) == _names(burst[::-1])
    places = [
        int(_names([_example(f"{run}-{at}", "burst") for at in range(10)])[0].split("-")[1])
        for run in range(500)
    ]
    # Each of ten places 50 times, give or take five standard deviations of 6.7.
    assert np.abs(np.bincount(places, minlength=10) - 50).max() < 34


def test_a_group_that_was_counted_does_not_count_again() -> None:
    late = _example("late", "burst", at_s=100.0)
    assert _names([_example("b", "burst"), _example("x", at_s=50.0), late]) == ["b", "x"]


def test_a_group_stays_open_while_its_inputs_go_on() -> None:
    fold = CountedExamples(10.0)
    for at in range(100):
        assert fold.add(at + 1, _example(f"c{at}", "conversation", at_s=9.0 * at)) == []
    (one,) = fold.add(101, _example("x", at_s=902.0))
    assert one.example.group == "conversation"
    assert one.at_s == pytest.approx(891.0)
    assert fold.grouped == 99


def test_a_text_counts_once() -> None:
    flood = [_example(f"f{at}", text="same", at_s=60.0 * at) for at in range(30)]
    fold = CountedExamples(10.0)
    found = [one for at, example in enumerate(flood, 1) for one in fold.add(at, example)]
    assert len(found + _ended(fold)) == 1
    assert fold.repeated == 29


def test_a_text_in_two_open_groups_counts_once() -> None:
    fold = CountedExamples(10.0)
    fold.add(1, _example("a", text="same"))
    fold.add(2, _example("b", text="same", at_s=1.0))
    assert [one.example.input for one in _ended(fold)] == ["a"]
    assert fold.repeated == 1


def test_an_input_that_no_coin_drew_does_not_count() -> None:
    labelled = Example("a", "a", "a", 0.0, None, {})
    assert _names([labelled, _example("b")]) == ["b"]


def test_a_clock_that_goes_back_reopens_nothing_and_shortens_nothing() -> None:
    rows = [_example("a", at_s=100.0), _example("b", at_s=50.0), _example("c", at_s=200.0)]
    assert [one.at_s for one in _counted(rows)] == [100.0, 100.0, 200.0]


def test_a_suspension_forgets_open_groups_and_their_later_inputs() -> None:
    fold = CountedExamples(10.0)
    fold.add(1, _example("a", "burst"))
    fold.clear()
    fold.add(2, _example("b", "burst", at_s=1.0))
    assert _ended(fold) == []


def test_memory_is_bounded_and_the_latest_names_are_known() -> None:
    names = RecentNames(capacity=100)
    for number in range(1000):
        names.add(str(number))
        assert len(names) <= 200
    assert all(str(number) in names for number in range(900, 1000))
    assert "1000" not in names
    assert "0" not in names


def test_a_name_that_goes_on_being_seen_stays_known() -> None:
    names = RecentNames(capacity=100)
    for number in range(1000):
        names.add(str(number))
        names.add("often")
        assert "often" in names


def test_open_groups_are_bounded() -> None:
    fold = CountedExamples(1e9)
    counted = [
        one for at in range(10_100) for one in fold.add(at + 1, _example(str(at), at_s=float(at)))
    ]
    assert [one.position for one in counted] == list(range(1, 101))


def test_equal_rows_give_an_equal_state() -> None:
    rng = np.random.default_rng(4)
    rows = [
        _example(str(at), str(rng.integers(40)), str(rng.integers(200)), float(rng.integers(900)))
        for at in range(1000)
    ]
    first, second = CountedExamples(10.0), CountedExamples(10.0)
    assert [first.add(at, row) for at, row in enumerate(rows)] == [
        second.add(at, row) for at, row in enumerate(rows)
    ]
    assert first == second
