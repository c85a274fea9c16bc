"""Computes the cost of the chats directly and through the stack. Pure."""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from benchmarks.cost_arms import Arm, ChatResult
from benchmarks.cost_mix import KINDS
from benchmarks.load import percentile
from serving.contracts.answer import Usage
from serving.contracts.prices import PICODOLLAR

_HOUR_S = 3600
_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class LedgerTotals:
    """Totals of the routed arm from the run's own ledger, in US dollars.

    held_usd: worst cases of calls whose cost is not known. wasted_usd: the part of all that for
    which no client got an answer. ledger_saving: the share saved according to the ledger.
    """

    provider_usd: Decimal
    held_usd: Decimal
    local_usd: Decimal
    wasted_usd: Decimal
    ledger_saving: float | None
    discrepancies: int


@dataclass(frozen=True, slots=True)
class Costs:
    """Both arms in US dollars. idle_usd: the idle time of the replicas in the routed arm.

    saved, saved_with_idle: shares of direct_usd; None where that is 0.
    """

    direct_usd: Decimal
    provider_usd: Decimal
    held_usd: Decimal
    local_usd: Decimal
    idle_usd: Decimal
    saved: float | None
    saved_with_idle: float | None


def costs_of(
    direct_usd: Decimal, totals: LedgerTotals, replicas_hour_usd: Decimal, elapsed_s: float
) -> Costs:
    """Return the comparison.

    replicas_hour_usd: of all local replicas. elapsed_s: for which the routed arm kept them.
    """
    provisioned = replicas_hour_usd * Decimal(str(elapsed_s)) / _HOUR_S
    idle = max(Decimal(0), provisioned.quantize(PICODOLLAR) - totals.local_usd)
    paid = totals.provider_usd + totals.held_usd + totals.local_usd
    return Costs(
        direct_usd,
        totals.provider_usd,
        totals.held_usd,
        totals.local_usd,
        idle,
        _saved(direct_usd, paid),
        _saved(direct_usd, paid + idle),
    )


def _saved(direct_usd: Decimal, paid_usd: Decimal) -> float | None:
    return float(1 - paid_usd / direct_usd) if direct_usd else None


def saved_bounds(
    direct: Sequence[ChatResult], routed: Sequence[ChatResult], *, seed: int = 0
) -> tuple[float, float] | None:
    """Return 95 % bootstrap bounds of the share saved, over chats; None where nothing was paid.

    Both in the same order, with costs; without idle time.
    """
    draw = random.Random(seed)  # noqa: S311  # a bootstrap
    pairs = [(float(_usd(a)), float(_usd(b))) for a, b in zip(direct, routed, strict=True)]
    found = []
    for _ in range(_RESAMPLES):
        sample = draw.choices(pairs, k=len(pairs))
        if whole := sum(theirs for theirs, _ in sample):
            found.append(1 - sum(ours for _, ours in sample) / whole)
    if not found:
        return None
    return percentile(found, 0.025), percentile(found, 0.975)


def saved_at_equal_length(
    direct: Sequence[ChatResult],
    routed: Sequence[ChatResult],
    reference: Callable[[Usage], Decimal],
) -> float | None:
    """Return the share saved, had the reference model answered as long as the routed providers did.

    It leaves out what answers of another length cost or save, which is much with a fake
    provider. Both in the same order, with costs. Where the local model answered, the direct arm's
    own answer counts. None where nothing was paid.
    """
    whole = sum(
        (
            reference(ours.usage) if ours.route == "frontier" and ours.usage else _usd(theirs)
            for theirs, ours in zip(direct, routed, strict=True)
        ),
        Decimal(0),
    )
    return _saved(whole, paid_usd(routed))


def paid_usd(results: Iterable[ChatResult]) -> Decimal:
    """Return the total cost of the requests with a known cost."""
    return sum(map(_usd, results), Decimal(0))


def _usd(results: ChatResult) -> Decimal:
    return results.cost_usd or Decimal(0)


def break_even_per_s(costs: Costs, requests: int, hour_usd: Decimal) -> float | None:
    """Return from how many requests a second on a replica's hour is paid by what it saves.

    Of chats in this mix. None where providers were paid no less than directly.
    """
    saved_each = (costs.direct_usd - costs.provider_usd - costs.held_usd) / requests
    if saved_each <= 0:
        return None
    return float(hour_usd / _HOUR_S / saved_each)


def latency_ms(results: Iterable[ChatResult]) -> dict[str, float]:
    """Return p50 and p95 latency of answered requests; empty without any."""
    found = [item.latency_s for item in results if item.error is None]
    if not found:
        return {}
    return {"p50": percentile(found, 0.5) * 1000, "p95": percentile(found, 0.95) * 1000}


def tokens(results: Sequence[ChatResult]) -> dict[str, int]:
    """Return the tokens that the answers report."""
    usages = [item.usage for item in results if item.usage is not None]
    return {
        "input": sum(usage.uncached_input_tokens + usage.cache_read_tokens for usage in usages),
        "output": sum(usage.output_tokens + usage.reasoning_tokens for usage in usages),
    }


def by_kind(direct: Arm, routed: Arm) -> list[dict[str, Any]]:
    """Return requests, routes, cost and latency of both arms for each kind of chat."""
    rows = []
    for kind in KINDS:
        ours = [item for item in routed.results if item.kind == kind]
        theirs = [item for item in direct.results if item.kind == kind]
        rows.append(
            {
                "kind": kind,
                "requests": len(ours),
                "repeats": sum(item.repeat for item in ours),
                "routes": _tally(item.route or "none" for item in ours),
                "reasons": _tally(item.reason or item.error or "none" for item in ours),
                "direct_tokens": tokens(theirs),
                "routed_tokens": tokens(ours),
                "direct_usd": f"{paid_usd(theirs):f}",
                "routed_usd": f"{paid_usd(ours):f}",
                "direct_ms": latency_ms(theirs),
                "routed_ms": latency_ms(ours),
            }
        )
    return rows


def _tally(names: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name] = found.get(name, 0) + 1
    return dict(sorted(found.items()))
