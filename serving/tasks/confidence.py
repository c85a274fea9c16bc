"""Raw confidence of generated text."""

import math
from collections.abc import Sequence


def sequence_confidence(token_logprobs: Sequence[float]) -> float:
    """Return the geometric mean of the tokens' probabilities, in [0, 1].

    token_logprobs: natural log, one for each generated token. Returns 0.0 where there are none.
    The mean makes short and long outputs comparable. Source: length-normalised sequence
    probability, Malinin and Gales, "Uncertainty Estimation in Autoregressive Structured
    Prediction", 2021.
    """
    if not token_logprobs:
        return 0.0
    return min(1.0, math.exp(sum(token_logprobs) / len(token_logprobs)))
