"""What learned output bounds did: answers by arm, how many were cut, how much was saved."""

import math

from scipy import special
from sqlalchemy import Connection, func, select

from serving.contracts.report import BoundedAnswers, OutputBoundReport
from serving.ledger.schema import answer_lengths as table

_Z = 1.96
_RATIO = 1.05  # serving.pipeline.answer_lengths: the width of a bucket
_CUT, _CONTINUED = -1, -2


def output_bounds(connection: Connection) -> OutputBoundReport | None:
    """Return the answers of all tenants, of scopes used within 30 days; None without any."""
    query = (
        select(table.c.arm, table.c.bucket, func.sum(table.c.answers))
        # Every answer is counted once by tenant and model, and once more by its instructions.
        .where(table.c.scope.startswith("w"))
        .group_by(table.c.arm, table.c.bucket)
    )
    counts: dict[str, dict[int, int]] = {"directed": {}, "plain": {}}
    for arm, bucket, answers in connection.execute(query):
        counts[arm][bucket] = int(answers)
    if not any(counts.values()):
        return None
    arms = tuple(_answers(arm, found) for arm, found in counts.items())
    return OutputBoundReport(arms=arms, **_saved(counts["directed"], counts["plain"]))


def _answers(arm: str, counts: dict[int, int]) -> BoundedAnswers:
    complete = sum(n for bucket, n in counts.items() if bucket >= 0)
    cut = counts.get(_CUT, 0)
    answers = complete + cut
    # Clopper and Pearson's one-sided bound.
    upper = float(special.betaincinv(cut + 1, answers - cut, 0.95)) if answers > cut else 1.0
    mean = _moments(counts)[0] if complete else None
    return BoundedAnswers(
        name=arm, answers=answers, continued=counts.get(_CONTINUED, 0), cut=cut,
        cut_upper=upper, mean_tokens=mean,
    )  # fmt: skip


def _moments(counts: dict[int, int]) -> tuple[float, float, int]:
    """Return mean, variance and number of the complete answers' lengths."""
    sizes = {_RATIO**bucket: n for bucket, n in counts.items() if bucket >= 0}
    total = sum(sizes.values())
    mean = sum(size * n for size, n in sizes.items()) / total
    variance = sum(n * (size - mean) ** 2 for size, n in sizes.items()) / max(1, total - 1)
    return mean, variance, total


def _saved(directed: dict[int, int], plain: dict[int, int]) -> dict[str, float | None]:
    """Return 1 - mean directed / mean plain, with 95 % bounds by the delta method on its log."""
    if not all(any(bucket >= 0 for bucket in arm) for arm in (directed, plain)):
        return {"saved": None, "saved_lower": None, "saved_upper": None}
    (a, va, na), (b, vb, nb) = _moments(directed), _moments(plain)
    error = _Z * math.sqrt(va / na / a**2 + vb / nb / b**2)
    log = math.log(a / b)
    return {
        "saved": 1 - a / b,
        "saved_lower": 1 - math.exp(log + error),
        "saved_upper": 1 - math.exp(log - error),
    }
