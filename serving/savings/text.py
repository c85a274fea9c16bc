"""The audit as text, for terminals of 80 columns, and as a JSON document."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from serving.reporting.amounts import dollars
from serving.savings.audit import Audit
from serving.savings.estimate import Lever, Saving

NAMES: dict[Lever, str] = {
    "exact_cache": "exact cache",
    "local_tasks": "local narrow tasks",
    "context_pruning": "context pruning",
    "prompt_caching": "prompt caching",
    "output_bounds": "output bounds",
    "tiers": "cheaper tiers",
}
BASIS: dict[Lever, str] = {
    "exact_cache": "measured on the log: equal requests, by the rules of the cache",
    "local_tasks": "tasks found by the shipped detector; coverage and price assumed",
    "context_pruning": "measured with the certified threshold; the share that is earned assumed",
    "prompt_caching": "replayed with the shipped planner at the log's times; hits assumed",
    "output_bounds": "assumed: the share of visible output saved",
    "tiers": "assumed: the share that earns the next cheaper model",
}


def document(audit: Audit) -> dict[str, Any]:
    """Return the audit for JSON; amounts are numbers of US dollars."""
    found = asdict(audit)
    found["logged_usd"] = None if audit.logged_usd is None else float(audit.logged_usd)
    for name in ("since", "until"):
        at = getattr(audit, name)
        found[name] = None if at is None else at.isoformat()
    found["levers"] = [
        {**asdict(one), "basis": BASIS[one.lever]} for one in audit.levers
    ]  # fmt: skip
    return found


def lines(audit: Audit) -> Iterator[str]:
    """Yield the lines of the text."""
    when = ""
    if audit.since is not None and audit.until is not None:
        when = f", {audit.since:%Y-%m-%d %H:%M} to {audit.until:%Y-%m-%d %H:%M} UTC"
    yield f"{audit.calls:,} calls in {audit.conversations:,} conversations{when}"
    logged = "" if audit.logged_usd is None else f" (the log says ${audit.logged_usd:,.4f})"
    yield f"bill at list prices  {usd(audit.bill_usd)}{logged}"
    yield ""
    yield f"{'':<20}{'saves':>12}{'share':>8}   {'95 % interval':<23}{'assumptions low..high'}"
    for one in audit.levers:
        yield _row(NAMES[one.lever], one.saving)
    yield _row("all together", audit.total)
    yield ""
    for one in audit.levers:
        yield f"{NAMES[one.lever]}: {one.requests:,} calls; {BASIS[one.lever]}"
    yield ""
    yield "Each lever saves what those above it leave, so that the rows add up."
    if audit.total.interval is None:
        yield "Fewer than 10 conversations: no interval."
    if not audit.is_timed:
        yield "Calls without a time: the cache's age limit and prompt caching are not replayed."
    yield "Idle local replicas are not included. Nothing was sent anywhere."
    yield ""
    yield "assumed (low saving / central / high), --assume NAME=VALUE:"
    for name, value in audit.assumptions.items():
        yield f"  {name} {value.low:g} / {value.central:g} / {value.high:g}: {value.what}"
        yield f"      {value.source}"
    yield ""
    for bill in audit.models:
        cheaper = f", next cheaper: {bill.cheaper}" if bill.cheaper else ""
        yield f"{visible(bill.model)}: {bill.calls:,} calls, {usd(bill.usd)}{cheaper}"
    for problem in audit.problems:
        shown = ", ".join(map(str, problem.lines))
        more = ", ..." if problem.count > len(problem.lines) else ""
        yield f"{problem.count:,} x {visible(problem.what)} (lines {shown}{more})"
        if problem.fix is not None:
            yield f"      fix: {visible(problem.fix)}"


def _row(name: str, saving: Saving) -> str:
    interval = "-" if saving.interval is None else _range(saving.interval)
    return (
        f"{name:<20}{usd(saving.usd):>12}{saving.share:>8.1%}   {interval:<23}{_range(saving.span)}"
    )


def _range(ends: tuple[float, float]) -> str:
    return f"{usd(ends[0])} .. {usd(ends[1])}"


def usd(amount: float) -> str:
    """Return an amount with two decimals, or four below ten dollars."""
    return dollars(amount, four_decimals_below=10)


def visible(name: str) -> str:
    """Return a name with a replacement for every character that is not printable."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)
