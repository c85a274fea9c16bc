"""Differences on the same examples: known values, symmetry, and the error rates they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.paired import accuracy_difference, bootstrap_interval

counts = st.tuples(st.integers(0, 60), st.integers(0, 30), st.integers(0, 30), st.integers(0, 60))


def answers(both: int, gained: int, lost: int, neither: int):  # type: ignore[no-untyped-def]
    baseline = [True] * both + [False] * gained + [True] * lost + [False] * neither
    candidate = [True] * both + [True] * gained + [False] * lost + [False] * neither
    return np.array(baseline, dtype=bool), np.array(candidate, dtype=bool)


@pytest.mark.parametrize("table", [(40, 3, 5, 2), (100, 12, 4, 30), (250, 1, 9, 40)])
def test_at_the_lower_bound_the_score_test_turns(table: tuple[int, int, int, int]) -> None:
    # The likelihood is maximised by search here, not by the formula.
    _, gained, lost, _ = table
    n, z = sum(table), 1.6448536269514722
    difference = accuracy_difference(*answers(*table)).lower
    loss = np.linspace(max(0.0, -difference) + 1e-9, (1 - difference) / 2 - 1e-9, 400_001)
    likelihood = (
        gained * np.log(loss + difference)
        + lost * np.log(loss)
        + (n - gained - lost) * np.log(1 - 2 * loss - difference)
    )
    best = float(loss[likelihood.argmax()])
    variance = n * (2 * best + difference * (1 - difference))
    assert (gained - lost - n * difference) / variance**0.5 == pytest.approx(z, abs=1e-4)


@given(counts)
def test_bounds_enclose_and_swapping_the_models_mirrors_them(
    table: tuple[int, int, int, int],
) -> None:
    if sum(table) == 0:
        return
    baseline, candidate = answers(*table)
    found = accuracy_difference(baseline, candidate)
    mirrored = accuracy_difference(candidate, baseline)
    assert -1 <= found.lower <= found.estimate <= found.upper <= 1
    assert mirrored.lower == pytest.approx(-found.upper, abs=1e-8)
    assert mirrored.upper == pytest.approx(-found.lower, abs=1e-8)


@given(counts)
def test_more_of_the_same_narrows(table: tuple[int, int, int, int]) -> None:
    if sum(table) == 0:
        return
    once = accuracy_difference(*answers(*table))
    thrice = accuracy_difference(*answers(*(3 * count for count in table)))
    assert thrice.upper - thrice.lower <= once.upper - once.lower + 1e-9


def test_an_identical_copy_is_bounded_by_the_number_of_examples() -> None:
    z = 1.6448536269514722
    for n in (20, 100, 312):
        found = accuracy_difference(*answers(n, 0, 0, 0))
        assert found.lower == pytest.approx(-(z**2) / (n + z**2), abs=1e-6)
    assert accuracy_difference(*answers(312, 0, 0, 0)).lower > -0.02
    assert accuracy_difference(*answers(20, 0, 0, 0)).lower < -0.02


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        accuracy_difference(np.ones(3, dtype=bool), np.ones(4, dtype=bool))
    with pytest.raises(ValueError, match="cannot be paired"):
        accuracy_difference(np.ones(0, dtype=bool), np.ones(0, dtype=bool))


@pytest.mark.parametrize(
    ("n", "margin", "flips"), [(300, 0.02, 0.10), (300, 0.05, 0.2), (150, 0.03, 0.08)]
)
def test_a_candidate_at_the_margin_passes_in_at_most_five_percent(
    n: int, margin: float, flips: float
) -> None:
    random = np.random.default_rng(7)
    trials = 2500
    # A loss exactly as large as the margin: the least favourable candidate that must not pass.
    lost, gained = (flips + margin) / 2, (flips - margin) / 2
    passed = 0
    for draw in random.multinomial(n, [1 - lost - gained, gained, lost], size=trials):
        passed += accuracy_difference(*answers(draw[0], draw[1], draw[2], 0)).lower >= -margin
    rate = passed / trials
    print(f"n={n} margin={margin} flips={flips}: false passes {rate:.4f}")
    # Three standard errors of the simulation above the level.
    assert rate <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5


def test_the_bootstrap_repeats_with_its_seed_and_keeps_pairs() -> None:
    random = np.random.default_rng(0)
    baseline = random.random(200) < 0.7
    candidate = baseline.copy()
    candidate[:10] = ~candidate[:10]

    def gain(chosen):  # type: ignore[no-untyped-def]
        return candidate[chosen].mean(axis=-1) - baseline[chosen].mean(axis=-1)

    one = bootstrap_interval(gain, 200, seed=3, resamples=2000)
    assert one == bootstrap_interval(gain, 200, seed=3, resamples=2000)
    assert one != bootstrap_interval(gain, 200, seed=4, resamples=2000)
    # Unpaired resampling of two accuracies near 0.7 would give bounds some 0.075 away.
    assert one.upper - one.lower < 0.07
    score = accuracy_difference(baseline, candidate)
    assert one.lower == pytest.approx(score.lower, abs=0.01)
    assert one.upper == pytest.approx(score.upper, abs=0.01)


def test_the_bootstrap_of_identical_copies_is_as_wide_as_their_number_allows() -> None:
    for n in (20, 312):
        found = bootstrap_interval(zero, n, seed=0, resamples=50)
        same = accuracy_difference(*answers(n, 0, 0, 0))
        assert found.lower == pytest.approx(same.lower, abs=1e-6)
        assert found.upper == pytest.approx(same.upper, abs=1e-6)
    with pytest.raises(ValueError, match="no examples to resample"):
        bootstrap_interval(zero, 0, seed=0)
    assert bootstrap_interval(zero, 1, seed=0).estimate == 0.0


def zero(chosen):  # type: ignore[no-untyped-def]
    return np.zeros(chosen.shape[:-1])


@pytest.mark.parametrize("n", [2, 20, 312])
def test_the_bootstrap_draws_one_resample_after_the_other(n: int) -> None:
    values = np.random.default_rng(1).normal(size=n)
    random = np.random.default_rng(3)
    means = [values[random.integers(0, n, size=n)].mean() for _ in range(500)]
    found = bootstrap_interval(
        lambda chosen: values[chosen].mean(axis=-1), n, seed=3, resamples=500
    )
    least = 1.6448536269514722**2 / (n + 1.6448536269514722**2)
    lower, upper = np.quantile(means, [0.05, 0.95])
    assert found.lower == pytest.approx(min(lower, values.mean() - least), abs=1e-12)
    assert found.upper == pytest.approx(max(upper, values.mean() + least), abs=1e-12)


def test_by_the_bootstrap_a_candidate_at_the_margin_passes_in_at_most_five_percent() -> None:
    random = np.random.default_rng(5)
    n, margin, flips, trials = 300, 0.03, 0.10, 600
    lost, gained = (flips + margin) / 2, (flips - margin) / 2
    passed = 0
    for number, draw in enumerate(
        random.multinomial(n, [1 - lost - gained, gained, lost], size=trials)
    ):
        change = np.repeat([0.0, 1.0, -1.0], draw)
        found = bootstrap_interval(
            lambda chosen, change=change: change[chosen].mean(axis=-1), n, seed=number,
            resamples=400,
        )  # fmt: skip
        passed += found.lower >= -margin
    print(f"bootstrap, n={n} margin={margin}: false passes {passed / trials:.4f}")
    assert passed / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
