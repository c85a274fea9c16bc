"""Measures a context model on pairs: tokens removed, answers kept, time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.context.fitting import parts_of
from serving.context.pairs import Pair, holds
from serving.context.pruning import Pruner
from serving.contracts.text_length import quarter_tokens
from serving.reporting.intervals import clopper_pearson

_LONG_TOKENS = 4000
_LONG_RUNS = 21


@dataclass(frozen=True, slots=True)
class Row:
    """One setting's figures. keep: share of tokens asked for; None is the certified threshold.

    removed: share of all context tokens. answers_kept: share of the reachable answers, with its
    two-sided 95 % Clopper-Pearson interval. p50_ms, p99_ms: of one pruning.
    """

    keep: float | None
    removed: float
    answers_kept: float
    interval: tuple[float, float]
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The figures of one set of pairs.

    unreachable: pairs whose whole context lacks the answer; left out. tokens: least, median and
    most of a context. long_p50_ms: of pruning a context of 4,000 tokens by the threshold.
    """

    name: str
    pairs: int
    unreachable: int
    tokens: tuple[int, int, int]
    rows: tuple[Row, ...]
    long_p50_ms: float


def evaluate(
    name: str, pairs: Sequence[Pair], pruner: Pruner, keeps: Sequence[float]
) -> Evaluation:
    """Return the figures at the certified threshold and at each share to keep. Blocking.

    Raises ValueError where no answer is reachable.
    """
    reachable = [pair for pair in pairs if pair.is_reachable]
    if not reachable:
        raise ValueError("no context holds its answer")
    lengths = sorted(sum(quarter_tokens(t) for _, t in pair.documents) // 4 for pair in reachable)
    rows = [_row(reachable, pruner, keep) for keep in (None, *keeps)]
    return Evaluation(
        name, len(reachable), len(pairs) - len(reachable),
        (lengths[0], lengths[len(lengths) // 2], lengths[-1]), tuple(rows),
        _long_ms(reachable, pruner),
    )  # fmt: skip


def _row(pairs: Sequence[Pair], pruner: Pruner, keep: float | None) -> Row:
    kept = before = after = 0
    seconds: list[float] = []
    for pair in pairs:
        parts = parts_of(pair)
        began = time.perf_counter()
        pruned = pruner.prune(pair.question, parts, keep)
        seconds.append(time.perf_counter() - began)
        before += pruned.tokens_before
        after += pruned.tokens_after
        kept += all(holds(need, pruned.texts) for need in pair.needs)
    share = round(kept / len(pairs), 4)
    p50, p99 = (round(1000 * float(np.quantile(seconds, q)), 2) for q in (0.5, 0.99))
    exact = clopper_pearson(kept, len(pairs))
    interval = round(exact.low, 4), round(exact.high, 4)
    return Row(keep, round(1 - after / before, 4), share, interval, p50, p99)


def _long_ms(pairs: Sequence[Pair], pruner: Pruner) -> float:
    """Return the median time for a context of 4,000 tokens, joined from several pairs'."""
    parts = []
    for part in (part for pair in pairs for part in parts_of(pair)):
        parts.append(part)
        if sum(quarter_tokens(p.text) for p in parts) // 4 >= _LONG_TOKENS:
            break
    seconds = []
    for _ in range(_LONG_RUNS):
        began = time.perf_counter()
        pruner.prune(pairs[0].question, parts)
        seconds.append(time.perf_counter() - began)
    return round(1000 * float(np.median(seconds)), 2)
