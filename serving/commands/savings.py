"""`narrowgate savings`: what each lever would have saved on a log of requests, offline."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from serving.commands.options import add_settings_options, settings_from
from serving.commands.progress import step

if TYPE_CHECKING:
    from serving.contracts.settings import Settings
    from serving.savings.audit import Audit, Auditing

HELP = "show what each lever would have saved on a log of requests; sends nothing"
_SHOWN_EVERY = 100


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    parser.add_argument(
        "--requests", type=Path, required=True, metavar="FILE",
        help="JSON Lines, plain or gzip, as gateways export them (docs/savings.md)",
    )  # fmt: skip
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write an HTML page with plots"
    )
    parser.add_argument(
        "--prices", type=Path, metavar="FILE", help="prices (YAML), before the built-in table's"
    )
    parser.add_argument(
        "--provider", metavar="NAME", help="provider of models that the log names without one"
    )
    parser.add_argument(
        "--context-tool", action="append", default=[], metavar="NAME",
        help="a tool whose results are context, such as search; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--assume", action="append", default=[], metavar="NAME=VALUE",
        help="your own value of an assumption, such as local_coverage=0.3; the report lists all; "
        "may be repeated",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the audit. Exit status 0; figures are reported, not judged."""
    from serving.host.safe_write import replace_named, replaceable_file
    from serving.savings.text import document, lines

    # Before the work: a log takes minutes.
    page = None if args.html is None else replaceable_file(args.html, "--html")
    found = _audited(args)
    if page is not None:
        from serving.savings.page import render_page

        replace_named(page, render_page(found).encode(), "--html")
    if args.json:
        print(json.dumps(document(found)))
    else:
        for line in lines(found):
            print(line)
    return 0


def _audited(args: argparse.Namespace) -> "Audit":
    from serving.savings.audit import audit
    from serving.savings.log_file import opened_log

    auditing = _auditing(args, _settings(args))
    with step("reading the log") as show, opened_log(args.requests) as log:

        def progress(done: int) -> None:
            if done % _SHOWN_EVERY == 0:
                show(f"{done:,} lines")

        return audit(log, auditing, progress)


def _settings(args: argparse.Namespace) -> "Settings":
    settings = settings_from(args)
    context = settings.context
    tools = (*context.tools, *args.context_tool)
    return settings.model_copy(update={"context": context.model_copy(update={"tools": tools})})


def _auditing(args: argparse.Namespace, settings: "Settings") -> "Auditing":
    from serving.embedding.embedder import build_embedder
    from serving.ledger.pricing.book import PriceBook
    from serving.routing.router import build_router
    from serving.savings.assumptions import Assumptions
    from serving.savings.audit import Auditing
    from serving.savings.detection import RememberingEmbedder, Unobserved
    from serving.tasks.catalog import load_specs

    given = {}
    for text in args.assume:
        name, _, value = text.partition("=")
        given[name] = value
    assumptions = Assumptions().with_values(given)
    book = PriceBook.load(args.prices or settings.ledger.prices_file)
    embedder = RememberingEmbedder(build_embedder(settings.state))
    specs = load_specs(settings.tasks_dir)
    router = build_router(settings.routing, specs, embedder, Unobserved())
    return Auditing(settings, book, router, assumptions, args.provider)
