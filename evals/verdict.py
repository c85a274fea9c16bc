"""Pass, fail or inconclusive: what the bounds of a task's metrics say. Pure; rounds nothing."""

import math
from dataclasses import dataclass
from enum import StrEnum

from evals.paired import Difference


class Verdict(StrEnum):
    """What a gate says of one task."""

    PASS = "pass"  # noqa: S105  # not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its reason in words. more_examples: how many would decide; 0 where decided."""

    verdict: Verdict
    reason: str
    more_examples: int = 0


def judge(
    difference: Difference | None,
    candidate_lower: float | None,
    *,
    n: int,
    margin: float | None,
    floor: float,
) -> Judgement:
    """Return the verdict of one task.

    difference: candidate - baseline with its bounds; None where the metric could not be computed.
    candidate_lower: lower bound of the candidate's own metric. margin: largest acceptable loss;
    None where nobody has stated one, which is no permission. floor: lowest acceptable metric.
    All in the metric's units.
    """
    if difference is None or candidate_lower is None or math.isnan(difference.estimate):
        return Judgement(Verdict.FAIL, "the metric could not be computed")
    if margin is None:
        return Judgement(Verdict.FAIL, "no margin is stated for this precision")
    if difference.upper < -margin:
        return Judgement(
            Verdict.FAIL, f"worse by at least {-difference.upper:.4f}, and {margin} is acceptable"
        )
    if candidate_lower < floor:
        return Judgement(
            Verdict.FAIL, f"its own metric may be as low as {candidate_lower:.4f}, below {floor}"
        )
    if difference.lower >= -margin:
        return Judgement(
            Verdict.PASS, f"worse by at most {max(-difference.lower, 0.0):.4f} of {margin}"
        )
    return Judgement(
        Verdict.INCONCLUSIVE,
        f"the loss is between {-difference.upper:.4f} and {-difference.lower:.4f}, and {margin} is "
        "acceptable",
        examples_to_decide(difference, n, margin) - n,
    )


def examples_to_decide(difference: Difference, n: int, margin: float) -> int:
    """Return how many examples would decide if the estimate stayed as it is; at least n + 1.

    Bounds narrow with the square root of the number of examples. An estimate at the margin itself
    is never decided: the answer is then 100 times n.
    """
    distance = difference.estimate + margin
    half_width = (
        difference.estimate - difference.lower
        if distance > 0
        else difference.upper - difference.estimate
    )
    if abs(distance) * 10 < half_width:
        return 100 * n
    return max(math.ceil(n * (half_width / abs(distance)) ** 2), n + 1)
