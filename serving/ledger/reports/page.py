"""The report as one HTML file that loads nothing and runs nothing."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from serving.contracts.report import Report
from serving.ledger.reports import plots, words

TEMPLATE = "report.html.j2"

SHOWN_DISCREPANCIES = 200


@dataclass(frozen=True, slots=True)
class Plot:
    """An <svg> element and how to read it."""

    title: str
    svg: str
    caption: str

    @property
    def width_pt(self) -> float:
        """Return the width the plot was drawn for."""
        found = re.search(r' width="([\d.]+)pt"', self.svg)
        assert found is not None
        return float(found[1])


def render_page(report: Report) -> str:
    """Return the report as a self-contained page; the same report gives the same string."""
    return _environment().get_template(TEMPLATE).render(
        report=report,
        totals=report.totals,
        savings=report.savings,
        idle=report.idle,
        local_share=words.local_share(report),
        reconciled=words.reconciled(report),
        since=words.moment(report.since, report),
        until=words.moment(report.until, report),
        plots=list(_plots(report)),
        shown_discrepancies=SHOWN_DISCREPANCIES,
        nothing=words.NONE,
    )  # fmt: skip


def _environment() -> Environment:
    # Names of tenants, tasks and models may hold markup: only our own SVG is exempt from escaping.
    environment = Environment(
        autoescape=True,
        loader=PackageLoader("serving.ledger.reports", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "usd": words.usd,
        "dollars": words.dollars,
        "share": words.share,
        "visible": words.visible,
        "milliseconds": words.milliseconds,
        "price_name": words.price_name,
    }
    return environment


def _plots(report: Report) -> Iterator[Plot]:
    periods = words.by_period(report.days)
    if periods:
        yield Plot(
            "Spend",
            plots.spend_plot(periods),
            "What inputs of each day (each month, in longer reports) cost by model, worst cases "
            "of calls without a known cost included.",
        )
    for title, shares, none in (
        ("Routes", report.routes, "(open or unknown)"),
        ("Reasons", report.reasons, "(not routed)"),
    ):
        if shares:
            yield Plot(
                title,
                plots.shares_plot(title, shares, none),
                "Shares and numbers of all inputs.",
            )
    if report.latency:
        yield Plot(
            "Latency",
            plots.latency_plot(report.latency),
            "Median (dot) and 95th percentile (tick) of closed inputs by route, ms.",
        )
