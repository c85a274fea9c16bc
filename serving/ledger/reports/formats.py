"""Formats of a report's numbers and names, in text and HTML. Pure."""

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from serving.contracts.report import Day, OutputBoundReport, PriceSpend, Report, Spend
from serving.reporting import amounts
from serving.reporting.amounts import dollars as dollars
from serving.reporting.amounts import usd as usd

NONE = "–"  # noqa: RUF001  # an en dash stands for a missing value

DAYS_APART = 62
"""Longest window in days that is shown by day; longer ones are shown by month."""


def share(value: float | None) -> str:
    """Return a share in [0, 1] as a percentage."""
    return NONE if value is None else f"{value:.1%}"


def tokens(value: float | None) -> str:
    """Return a mean number of tokens."""
    return NONE if value is None else f"{value:,.0f}"


def bounds_saved(found: OutputBoundReport) -> str:
    """Return what directives save of the output, as a sentence."""
    if found.saved is None:
        return "not known yet what the directive saves: both arms need answers"
    return (
        f"the directive saves {found.saved:.1%} of the visible output "
        f"({share(found.saved_lower)} to {share(found.saved_upper)})"
    )


def visible(name: str | None) -> str:
    """Return a name with a replacement for every character that is not printable."""
    if name is None:
        return NONE
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name)


def milliseconds(us: int) -> str:
    """Return a time with one decimal, ms."""
    return f"{us / 1000:,.1f}"


def moment(at: datetime, report: Report) -> str:
    """Return a moment in the report's time zone, to the minute."""
    return amounts.moment(at, ZoneInfo(report.time_zone))


def price_name(line: PriceSpend) -> str:
    """Return the model, tier and length of a price version, and the start of its id."""
    over = f"over {line.over_input_tokens:,} tokens" if line.over_input_tokens else None
    parts = (line.model, line.service_tier, over, f"({line.name[:12]})" if line.name else None)
    return " ".join(part for part in parts if part) or NONE


def local_share(report: Report) -> float | None:
    """Return the share of answered inputs that a local model answered."""
    local = sum(part.answered for part in report.paths if part.name == "local")
    return local / report.totals.answered if report.totals.answered else None


def reconciled(report: Report) -> str:
    """Return the result of the reconciliation as a sentence."""
    found = report.reconciliation
    if found is None:
        return "not reconciled"
    n = len(found.discrepancies)
    return f"{found.rows:,} rows reconciled, {n:,} {'discrepancy' if n == 1 else 'discrepancies'}"


def by_period(days: Iterable[Day]) -> dict[str, list[Spend]]:
    """Return the calls by model of every day from the first to the last, or of every month.

    A period without inputs has an empty list. Names are ISO dates, 2026-11-23 or 2026-11.
    """
    known = {day.day: day for day in days}
    if not known:
        return {}
    first, last = min(known), max(known)
    length = 7 if (last - first).days >= DAYS_APART else 10
    found: dict[str, list[Spend]] = {}
    for n in range((last - first).days + 1):
        at: date = first + timedelta(days=n)
        models = found.setdefault(at.isoformat()[:length], [])
        if at in known:
            models += known[at].models
    return found
