"""Tests of a mean loss by betting: valid at every time, in natural logarithms.

For losses in [0, 1] with mean `target`, a bet of size `stake` multiplies its capital by
1 + stake (target - loss), which is 1 on average. Capital that never borrows is an e-process: the
probability that it ever reaches B is at most 1 / B (Ville). Waudby-Smith and Ramdas, "Estimating
means of bounded random variables by betting" (2024). The stakes are those of the likelihood ratio
of a Bernoulli loss with an expected error against the target; the test is valid for any loss in
[0, 1] and whatever error is expected.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PRIOR_OBSERVATIONS = 30.0
"""Examples that the expected error is worth in the running estimate.

At 10 claims came 6 to 22 % later on recorded outputs of topic heads, at a target of 15 %.
"""


def stake(expected: Floats, target: float) -> Floats:
    """Return the bet that a likelihood ratio of `expected` against `target` makes.

    expected: any shape, above 0. Positive below the target (a bet on small losses), negative above
    it. In (-1 / target, 1 / (1 - target)) wherever expected is in (0, 1).
    """
    bet: Floats = (target - expected) / (target * (1.0 - target))
    return bet


@dataclass(frozen=True, slots=True)
class Capital:
    """The e-process of one hypothesis "the mean loss is at least `target`".

    expected: the mean loss that is hoped for, in (0, 1). log_e: natural logarithm of the capital.
    losses: sum over the `count` examples so far.
    """

    target: float
    expected: float
    log_e: float = 0.0
    losses: float = 0.0
    count: int = 0

    def __post_init__(self) -> None:
        for name in ("target", "expected"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in (0, 1), not {getattr(self, name)!r}")

    @property
    def estimate(self) -> float:
        """Return the mean loss, drawn towards the expected one."""
        prior = PRIOR_OBSERVATIONS
        return (prior * self.expected + self.losses) / (prior + self.count)

    def after(self, loss: float) -> "Capital":
        """Return the process with one more example. Raises ValueError outside [0, 1]."""
        if not 0.0 <= loss <= 1.0:
            raise ValueError(f"a loss must be in [0, 1], not {loss!r}")
        target = self.target
        # No bet where the estimate is not below the target.
        bet = (target - min(self.estimate, target)) / (target * (1.0 - target))
        return Capital(
            target,
            self.expected,
            self.log_e + math.log1p(bet * (target - loss)),
            self.losses + loss,
            self.count + 1,
        )


def bernoulli_divergence(error: float, target: float) -> float:
    """Return KL(error || target) in nats: what one example adds to log e when bets are ideal."""
    parts = [(error, target), (1.0 - error, 1.0 - target)]
    return sum(p * math.log(p / q) for p, q in parts if p > 0.0)


def examples_needed(error: float, target: float, bar: float) -> float:
    """Return how many accepted examples reach the bar on average when bets are ideal.

    bar: of the e-value, above 1. Infinite where the error is not below the target.
    """
    return math.inf if error >= target else math.log(bar) / bernoulli_divergence(error, target)
