"""`narrowgate report`: spending, savings, and the reconciliation of the ledger."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from serving.commands.options import add_settings_options, settings_from
from serving.host.safe_write import replace_named, replaceable_file

if TYPE_CHECKING:
    from serving.contracts.report import Report
    from serving.contracts.settings import Settings

HELP = "show what requests cost and saved, and reconcile the ledger"

_TIMEOUT_S = 600.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    parser.add_argument(
        "--since", metavar="WHEN",
        help="2026-11-01, 2026-11-01T09:30, 7d or 24h (the first of this month)",
    )  # fmt: skip
    parser.add_argument("--until", metavar="WHEN", help="the same, exclusive (now)")
    parser.add_argument("--tenant", metavar="NAME", help="only this tenant's requests")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write an HTML page with plots"
    )


def run(args: argparse.Namespace) -> int:
    """Print the report; return 1 if the reconciliation finds discrepancies."""
    page = None if args.html is None else replaceable_file(args.html, "--html")
    report = _read(args, settings_from(args))
    if page is not None:
        from serving.ledger.reports.page import render_page

        replace_named(page, render_page(report).encode(), "--html")
    if args.json:
        print(report.model_dump_json())
    else:
        from rich.console import Console

        from serving.ledger.reports.text import print_report

        print_report(report, Console(highlight=False))
    assert report.reconciliation is not None
    return 1 if report.reconciliation.discrepancies else 0


def _read(args: argparse.Namespace, settings: "Settings") -> "Report":
    from datetime import UTC, datetime
    from zoneinfo import ZoneInfo

    from serving.contracts.report_window import parse_window
    from serving.ledger.database import ledger_url
    from serving.ledger.reports.build import build_report
    from serving.ledger.reports.query import Scope
    from serving.ledger.reports.written import written_ledger

    zone = ZoneInfo(settings.ledger.time_zone)
    window = parse_window(args.since, args.until, zone, datetime.now(UTC))
    scope = Scope(window.since, window.until, args.tenant)
    with written_ledger(ledger_url(settings.ledger), settings.state) as database:
        return build_report(database, scope, zone, timeout_s=_TIMEOUT_S)
