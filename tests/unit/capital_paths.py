"""The capital of many streams at once, for tests that simulate thousands of them."""

import numpy as np

from serving.evidence.statistics.betting import PRIOR_OBSERVATIONS, Floats, stake


def capital_path(losses: Floats, target: float, expected: float) -> Floats:
    """Return log capital after each example, as `Capital` computes it.

    losses: (..., n) in [0, 1], one stream a row. Returns (..., n).
    """
    before = np.cumsum(losses, axis=-1) - losses
    seen = np.arange(losses.shape[-1])
    estimate = (PRIOR_OBSERVATIONS * expected + before) / (PRIOR_OBSERVATIONS + seen)
    bets = stake(np.minimum(estimate, target), target)
    path: Floats = np.cumsum(np.log1p(bets * (target - losses)), axis=-1)
    return path
