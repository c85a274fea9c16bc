"""Formats the cost benchmark's report: both arms, the mix, and the assumptions."""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from benchmarks.cost_arms import MAX_TOKENS, Arm
from benchmarks.cost_figures import (
    Costs,
    LedgerTotals,
    break_even_per_s,
    by_kind,
    costs_of,
    latency_ms,
    paid_usd,
    saved_at_equal_length,
    saved_bounds,
    tokens,
)
from benchmarks.cost_mix import REPEATED, SHARES
from serving.contracts.answer import Usage

if TYPE_CHECKING:
    from serving.contracts.settings import Settings

A10G_HOUR_USD = Decimal("1.006")
"""Of one GPU with its machine, on demand, at a large cloud (g5.xlarge)."""

_MICRODOLLAR = Decimal("1e-6")


def document(
    settings: "Settings", direct: Arm, routed: Arm, totals: LedgerTotals, args: argparse.Namespace
) -> dict[str, Any]:
    """Return the whole report as one document. Reads the price table, blocking."""
    from benchmarks.machine import machine

    hour_usd = sum(
        ((model.replica_hour_usd or Decimal(0)) * model.replicas.min for model in settings.models),
        Decimal(0),
    )
    reference = _reference(settings)
    direct = _priced(direct, reference)
    costs = costs_of(paid_usd(direct.results), totals, hour_usd, routed.elapsed_s)
    requests = len(routed.results)
    return {
        "machine": machine(),
        "workload": {
            "requests": requests,
            "mix": dict(SHARES),
            "repeated": REPEATED,
            "clients": args.clients,
            "seed": args.seed,
            "max_tokens": MAX_TOKENS,
            "reference_model": settings.ledger.reference_model,
            "tiers": {tier: list(names) for tier, names in settings.frontier.tiers.items()},
            "local_models": [model.source for model in settings.models],
            "replicas_hour_usd": _usd(hour_usd),
        },
        "direct": _arm(direct),
        "routed": {
            **_arm(routed),
            "failed": sum(item.error is not None for item in routed.results),
            "wasted_usd": _usd(totals.wasted_usd),
            "discrepancies": totals.discrepancies,
            "saved_by_ledger": totals.ledger_saving,
        },
        "costs": {
            **_costs(costs),
            "saved_bounds": saved_bounds(direct.results, routed.results),
            "saved_at_equal_length": saved_at_equal_length(
                direct.results, routed.results, reference
            ),
        },
        "break_even_per_s": {
            f"{_usd(price)} an hour": break_even_per_s(costs, requests, price)
            for price in (hour_usd, A10G_HOUR_USD)
        },
        "kinds": by_kind(direct, routed),
        "assumed": list(_assumptions(settings, hour_usd)),
    }


def _reference(settings: "Settings") -> Callable[[Usage], Decimal]:
    """Return the function from a usage to its price at the reference model."""
    from serving.ledger.pricing.book import PriceBook
    from serving.ledger.pricing.cost import Pricing

    book = PriceBook.load(settings.ledger.prices_file)
    return Pricing(book, {}, settings.ledger.reference_model).reference


def _priced(direct: Arm, reference: Callable[[Usage], Decimal]) -> Arm:
    """Return the arm with what each request cost at the reference model."""
    priced = (
        replace(item, cost_usd=reference(item.usage)) if item.usage is not None else item
        for item in direct.results
    )
    return Arm(tuple(priced), direct.elapsed_s)


def _arm(arm: Arm) -> dict[str, Any]:
    return {
        "elapsed_s": arm.elapsed_s,
        "tokens": tokens(arm.results),
        "ms": latency_ms(arm.results),
    }


def _costs(costs: Costs) -> dict[str, Any]:
    return {
        "direct_usd": _usd(costs.direct_usd),
        "provider_usd": _usd(costs.provider_usd),
        "held_usd": _usd(costs.held_usd),
        "local_usd": _usd(costs.local_usd),
        "idle_usd": _usd(costs.idle_usd),
        "saved": costs.saved,
        "saved_with_idle": costs.saved_with_idle,
    }


def _usd(amount: Decimal) -> str:
    return f"{amount:f}"


def _assumptions(settings: "Settings", hour_usd: Decimal) -> Iterator[str]:
    yield (
        "tokens are those of a model of 135 million parameters behind every provider: "
        "truly generated and counted, but a frontier model answers at another length, and better"
    )
    yield (
        f"the direct arm asks {settings.ledger.reference_model} with max_tokens {MAX_TOKENS} and "
        "no other bound; a client that sets none would get longer answers. The routed arm sends "
        "the same limit"
    )
    repeats = "answered from the cache" if settings.cache.enabled else "paid in full"
    yield (
        f"equal chats are paid in full in the direct arm and {repeats} in the routed arm "
        "(cache.enabled); the fake provider has no prompt cache"
    )
    yield "answers are not judged: the quality of the cheaper tiers' answers may be lower"
    yield (
        f"local replicas cost {_usd(hour_usd)} dollars an hour (models.replica_hour_usd); idle is "
        "what they cost while the routed arm ran, less what requests were charged. An hour at P "
        "dollars and N requests/s adds P / 3600 / N to a request"
    )


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Return the report for people."""
    about, load = found["machine"], found["workload"]
    yield "machine: " + ", ".join(f"{key} {value}" for key, value in about.items())
    yield (
        f"workload: {load['requests']} chats an arm, {load['clients']} in flight, seed "
        f"{load['seed']}; "
        + ", ".join(f"{share:.0%} {kind}" for kind, share in load["mix"].items())
        + f"; {load['repeated']:.0%} of them repeats; arms in turn"
    )
    yield from _money_lines(found)
    for name in ("direct", "routed"):
        arm = found[name]
        yield (
            f"{name}: {arm['tokens']['input']} tokens in, {arm['tokens']['output']} out; "
            f"{_ms(arm['ms'])}; {arm['elapsed_s']:.0f} s"
        )
    for kind in found["kinds"]:
        routes, reasons = (
            ", ".join(f"{count} {name}" for name, count in kind[field].items())
            for field in ("routes", "reasons")
        )
        yield (
            f"{kind['kind']}: {kind['requests']} chats, {kind['repeats']} of them repeats; "
            f"{routes} ({reasons}); direct ${_short(kind['direct_usd'])}, "
            f"{_ms(kind['direct_ms'])}; routed ${_short(kind['routed_usd'])}, "
            f"{_ms(kind['routed_ms'])}"
        )
    yield from (f"assumed: {text}" for text in found["assumed"])


def _money_lines(found: Mapping[str, Any]) -> Iterator[str]:
    costs, routed = found["costs"], found["routed"]
    names = {
        "direct_usd": f"direct, at {found['workload']['reference_model']}",
        "provider_usd": "routed: providers",
        "held_usd": "routed: held for calls of unknown cost",
        "local_usd": "routed: local replicas' busy time",
        "idle_usd": "routed: local replicas' idle time",
    }
    for field, name in names.items():
        yield f"{name:<44} ${_short(costs[field])}"
    bounds = costs["saved_bounds"]
    within = (
        "" if bounds is None else f" (95 % bounds over chats: {' to '.join(map(_share, bounds))})"
    )
    yield (
        f"{'saved':<44} {_share(costs['saved'])}{within}; with idle "
        f"{_share(costs['saved_with_idle'])}"
    )
    equal = _share(costs["saved_at_equal_length"])
    yield f"{'saved, had answers been of equal length':<44} {equal}"
    for price, rate in found["break_even_per_s"].items():
        word = "never" if rate is None else f"from {rate:.3g} requests/s of this mix on"
        yield f"{'a replica pays for itself':<44} {word}, at ${price}"
    yield (
        f"of that wasted ${_short(routed['wasted_usd'])}; failed chats: "
        f"{routed['failed']}; discrepancies in the ledger: {routed['discrepancies']}; saved by the "
        f"ledger's own estimate: {_share(routed['saved_by_ledger'])}"
    )


def _short(amount: str) -> str:
    return f"{Decimal(amount).quantize(_MICRODOLLAR):f}"


def _share(share: float | None) -> str:
    return "nothing to compare" if share is None else f"{share:.1%}"


def _ms(latency: Mapping[str, float]) -> str:
    if not latency:
        return "none answered"
    return f"p50 {latency['p50']:.0f} ms, p95 {latency['p95']:.0f} ms"
