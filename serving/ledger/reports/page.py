"""The report as one HTML file without scripts and without references to other files."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from serving.contracts.report import Report
from serving.ledger.reports import formats, plots
from serving.reporting.page import Plot, page_environment

TEMPLATE = "report.html.j2"

SHOWN_DISCREPANCIES = 200


_FILTERS: Mapping[str, Callable[..., Any]] = {
    "usd": formats.usd,
    "dollars": formats.dollars,
    "share": formats.share,
    "visible": formats.visible,
    "milliseconds": formats.milliseconds,
    "price_name": formats.price_name,
    "tokens": formats.tokens,
    "bounds_saved": formats.bounds_saved,
}


def render_page(report: Report) -> str:
    """Return the report as a self-contained page; the same report gives the same string."""
    # Names of tenants, tasks and models may hold markup: only our own SVG is exempt from escaping.
    environment = page_environment("serving.ledger.reports", _FILTERS)
    return environment.get_template(TEMPLATE).render(
        report=report,
        totals=report.totals,
        savings=report.savings,
        idle=report.idle,
        local_share=formats.local_share(report),
        reconciled=formats.reconciled(report),
        since=formats.moment(report.since, report),
        until=formats.moment(report.until, report),
        plots=list(_plots(report)),
        shown_discrepancies=SHOWN_DISCREPANCIES,
        nothing=formats.NONE,
    )  # fmt: skip


def _plots(report: Report) -> Iterator[Plot]:
    periods = formats.by_period(report.days)
    if periods:
        yield Plot(
            title="Spend",
            svg=plots.spend_plot(periods),
            caption="Cost of the inputs of each day (of each month in longer reports) by model. "
            "The worst cases of calls without a known cost are included.",
        )
    for title, shares, none in (
        ("Routes", report.routes, "(open or unknown)"),
        ("Reasons", report.reasons, "(not routed)"),
    ):
        if shares:
            yield Plot(
                title=title,
                svg=plots.shares_plot(title, shares, none),
                caption="Shares and numbers of all inputs.",
            )
    if report.latency:
        yield Plot(
            title="Latency",
            svg=plots.latency_plot(report.latency),
            caption="Median (dot) and 95th percentile (tick) of closed inputs by route, ms.",
        )
