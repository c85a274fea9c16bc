"""Consecutive inputs that depend on each other count as fewer, and blocks earn no claim early."""

import numpy as np
import pytest

from serving.evidence.statistics.dependence import LabelRuns
from serving.evidence.statistics.earning import Earning, EarningRules
from serving.evidence.statistics.examples import Example, Outcome
from serving.evidence.statistics.placement import Opening

TARGET = 0.15


def runs(labels: list[str]) -> LabelRuns:
    found = LabelRuns()
    for label in labels:
        found.add(label)
    return found


def chain(stay: float, n: int, seed: int = 1) -> list[str]:
    """Return labels of a chain that keeps its label with a probability, else draws one of four."""
    rng = np.random.default_rng(seed)
    labels = [int(rng.integers(4))]
    for _ in range(n - 1):
        labels.append(labels[-1] if rng.random() < stay else int(rng.integers(4)))
    return [str(label) for label in labels]


@pytest.mark.parametrize("stay", [0.5, 0.9])
def test_the_correlation_of_a_chain_is_its_probability_to_stay(stay: float) -> None:
    found = runs(chain(stay, 20_000))
    assert found.correlation == pytest.approx(stay, abs=0.03)
    assert found.independent_share == pytest.approx((1 - stay) / (1 + stay), abs=0.03)


def test_independent_inputs_count_nearly_all() -> None:
    shares = [runs(chain(0.0, 300, seed)).independent_share for seed in range(200)]
    assert np.mean(shares) > 0.99
    assert min(shares) > 0.8


def test_labels_that_are_unknown_or_one_alone_have_no_correlation() -> None:
    assert LabelRuns().independent_share == 1.0
    assert runs(["a"] * 50).independent_share == 1.0


@pytest.mark.parametrize(
    ("labels", "varied"),
    [
        (["a"] * 19, True),  # too few to say anything
        (["a"] * 50, False),
        (["a", "b"] * 25, True),
        (["a"] * 95 + ["b"] * 5, False),
        (["a"] * 200, True),  # so many that the traffic is like that
    ],
)
def test_labels_are_varied_where_the_commonest_would_err(labels: list[str], varied: bool) -> None:
    assert runs(labels).is_varied(TARGET, 200) is varied


def earning(labels: list[str], **rules: int) -> Earning:
    """Return what right answers to inputs with these labels earn."""
    found = Earning(EarningRules(TARGET, group_window_s=0.0, min_span_h=0.0, **rules))
    found.add(Opening("head@1", 0.5, 0.02, 0.9))
    for n, label in enumerate(labels):
        outcomes = {"head@1": Outcome(0.9, 0.0)}
        found.add(Example(f"i{n}", f"g{n}", f"t{n}", float(n), 1.0, outcomes, label=label))
    return found


def test_mixed_labels_earn_a_claim_and_blocks_of_a_hundred_do_not() -> None:
    mixed = earning(chain(0.0, 400))
    assert mixed.earned is not None
    blocks = earning([str(n // 100 % 4) for n in range(400)])
    assert blocks.earned is None
    # The first block in full, since nothing else was known then, and little of the others.
    assert blocks.hypotheses[0].seen < 120


def test_blocks_earn_a_claim_after_as_many_blocks_as_mixed_inputs_would_need() -> None:
    """Blocks of five are worth about a ninth of their inputs."""
    assert earning([label for label in chain(0.0, 60) for _ in range(5)]).earned is None
    assert earning([label for label in chain(0.0, 400) for _ in range(5)]).earned is not None


def test_a_first_block_of_one_label_earns_no_claim() -> None:
    assert earning(["a"] * 400).earned is None
    assert earning(["a"] * 1200).earned is not None


def test_examples_without_labels_all_count() -> None:
    found = Earning(EarningRules(TARGET, group_window_s=0.0, min_span_h=0.0))
    found.add(Opening("model", 0.5, 0.02, 0.9))
    for n in range(200):
        found.add(Example(f"i{n}", f"g{n}", f"t{n}", float(n), 1.0, {"model": Outcome(0.9, 0.0)}))
    assert found.earned is not None
    assert found.hypotheses[0].seen == 199
