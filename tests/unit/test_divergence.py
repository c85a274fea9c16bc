"""KL, agreement and perplexity, against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.compare.divergence import kl_kept, summarize


def distributions(seed: int, positions: int, tokens: int, sharpness: float):  # type: ignore[no-untyped-def]
    random = np.random.default_rng(seed)
    logits = sharpness * random.normal(size=(2, positions, tokens))
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@given(seed=st.integers(0, 1000), sharpness=st.floats(0.1, 8.0))
def test_with_all_tokens_kept_it_is_the_definition(seed: int, sharpness: float) -> None:
    base, mine = distributions(seed, 5, 40, sharpness)
    exact = np.sum(np.exp(base) * (base - mine), axis=1)
    assert kl_kept(base, mine) == pytest.approx(exact, abs=1e-9)


@given(seed=st.integers(0, 1000), kept=st.integers(1, 39))
def test_lumping_tokens_never_raises_it_and_never_makes_it_negative(seed: int, kept: int) -> None:
    base, mine = distributions(seed, 5, 40, 3.0)
    order = np.argsort(-base, axis=1)[:, :kept]
    lumped = kl_kept(np.take_along_axis(base, order, 1), np.take_along_axis(mine, order, 1))
    exact = np.sum(np.exp(base) * (base - mine), axis=1)
    assert np.all(lumped >= 0)
    assert np.all(lumped <= exact + 1e-9)


def test_equal_distributions_do_not_diverge() -> None:
    base, _ = distributions(0, 5, 40, 30.0)
    assert kl_kept(base[:, :7], base[:, :7]) == pytest.approx(0.0, abs=1e-12)


def test_a_candidate_that_rules_a_token_out_diverges_far_and_finitely() -> None:
    base = np.log(np.array([[0.5, 0.5]]))
    mine = np.array([[np.log(1.0 - 1e-30), -700.0]])
    assert 300 < kl_kept(base, mine)[0] < 1000


def test_the_summary() -> None:
    kl = np.linspace(0.0, 1.0, 101)
    found = summarize(kl, np.array([True] * 100 + [False]), np.full(101, np.log(32.0)))
    assert found.positions == 101
    assert found.kl_mean == pytest.approx(0.5)
    assert found.kl_p99 == pytest.approx(0.99)
    assert found.agreement == pytest.approx(100 / 101)
    assert found.perplexity == pytest.approx(32.0)
