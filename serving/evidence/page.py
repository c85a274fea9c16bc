"""A claim as one HTML file without scripts and without references to other files."""

from collections.abc import Mapping
from typing import Any

from serving.evidence.administration import ClaimDetails
from serving.evidence.plots import course_plot
from serving.reporting.amounts import moment
from serving.reporting.page import Plot, page_environment

TEMPLATE = "page.html.j2"


def render_claim(details: ClaimDetails) -> str:
    """Return a claim's page; the same evidence gives the same string."""
    claim, periods = details.claim, details.periods
    plot = Plot(
        svg=course_plot(f"Course of claim {claim.id}", periods, claim.target_error),
        caption="The line is the share of audited accepted answers that differ from the "
        "reference, since the claim was earned. The band is its 95 % confidence sequence: it "
        "covers the true error at all times together. It begins anew with every earning.",
    )
    template = page_environment("serving.evidence", _FILTERS).get_template(TEMPLATE)
    return template.render(
        claim=claim, document=details.document(), periods=periods, events=details.events, plot=plot
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _between(interval: tuple[float, float] | list[float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.1%} to {interval[1]:.1%}"


_FILTERS: Mapping[str, Any] = {
    "share": _share,
    "between": _between,
    "moment": lambda at: "-" if at is None else f"{moment(at, has_seconds=True)} UTC",
}
