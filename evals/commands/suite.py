"""`narrowgate suite`: check a suite, or make one from a public data set."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.host.numbers import signed_integer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from evals.suite_check import ErrorBound, SuiteReport
    from serving.contracts.task_spec import TaskSpec

HELP = "check a test suite, or make one from a public data set"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "action", choices=["check", "fetch", "list"],
        help="check a suite; fetch a public data set; list the known data sets",
    )  # fmt: skip
    parser.add_argument(
        "what", nargs="?", metavar="DIR|NAME",
        help="check: a suite's folder, a folder of suites, builtin or builtin-extended; "
        "fetch: a data set's name",
    )  # fmt: skip
    parser.add_argument("--revision", metavar="COMMIT", help="on the hub, 40 hex digits")
    parser.add_argument(
        "--file", type=Path, nargs="+", default=[], metavar="PATH",
        help="parquet, JSON, JSONL or CSV instead of the hub",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="the new suite's folder")
    parser.add_argument("--limit", type=signed_integer, metavar="N", help="examples to draw (all)")
    parser.add_argument("--seed", type=signed_integer, default=0, help="of the draw (0)")
    parser.add_argument("--task", metavar="NAME", help="check or fetch only for this task")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (YAML)")
    parser.add_argument("--tasks-dir", type=Path, metavar="DIR", help="folder with task files")


def run(args: argparse.Namespace) -> int:
    """Run the action and print its result; return 0 for fit suites, 1 for unfit ones."""
    from serving.contracts.errors import InvalidSuite

    if args.action == "list":
        return _list(as_json=args.json)
    if args.what is None:
        raise InvalidSuite(
            f"{args.action} needs an argument", field="what", fix="see narrowgate suite --help"
        )
    return _check(args) if args.action == "check" else _fetch(args)


def _list(*, as_json: bool) -> int:
    from evals.public_sets.catalog import SETS

    rows = [
        {"name": found.name, "task": found.task, "hub_id": found.hub_id, "split": found.split}
        for found in SETS.values()
    ]
    if as_json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(f"{row['name']:<12} {row['task']:<12} {row['hub_id']:<34} {row['split']}")
    return 0


def _check(args: argparse.Namespace) -> int:
    from evals.suite import named_suites
    from evals.suite_check import check
    from serving.contracts.errors import InvalidSuite

    suites = named_suites(args.what, _specs(args))
    reports = [check(suite) for suite in suites if args.task in (None, suite.name)]
    if not reports:
        raise InvalidSuite(f"{args.what!r} has no suite for task {args.task!r}", field="task")
    if args.json:
        print(json.dumps([as_document(report) for report in reports], ensure_ascii=False))
    else:
        print("\n\n".join(as_text(report) for report in reports))
    return 0 if all(report.fit for report in reports) else 1


def _fetch(args: argparse.Namespace) -> int:
    from evals.public_sets.catalog import SETS
    from evals.public_sets.fetch import fetch, origin_of, write_suite
    from evals.suite import load_suites
    from evals.suite_check import check
    from serving.contracts.errors import OutputInUse, UnknownTask
    from serving.host.numbers import MOST_SEED, refuse_outside
    from serving.host.safe_write import refuse_used_output

    refuse_outside("--limit", args.limit, least=1)
    refuse_outside("--seed", args.seed, least=0, most=MOST_SEED)
    if args.out is None:
        raise OutputInUse("--out is missing", field="out", fix="name a folder to write")
    # Checked first: fetching may take minutes.
    refuse_used_output(args.out)
    _without_progress_bars()
    draw = {"revision": args.revision, "files": args.file, "limit": args.limit, "seed": args.seed}
    origin = origin_of(args.what, **draw)
    task = args.task or SETS[args.what].task
    specs = _specs(args)
    if task not in specs:
        raise UnknownTask(f"no task {task!r}", field="task", fix="see narrowgate tasks")
    rows = fetch(args.what, specs[task], **draw)
    write_suite(rows, specs[task], args.out, origin)
    (suite,) = load_suites(args.out)
    report = check(suite)
    if args.json:
        print(json.dumps({"out": str(args.out), **as_document(report)}, ensure_ascii=False))
    else:
        print(f"{args.out}\n{as_text(report)}")
    return 0 if report.fit else 1


def _specs(args: argparse.Namespace) -> "Mapping[str, TaskSpec]":
    from serving.contracts.settings_sources import load_settings
    from serving.tasks.catalog import load_specs

    return load_specs(load_settings(args.config, {"tasks_dir": args.tasks_dir}).tasks_dir)


def _without_progress_bars() -> None:
    if not sys.stderr.isatty():
        from datasets import disable_progress_bars

        disable_progress_bars()


def as_document(report: "SuiteReport") -> dict[str, Any]:
    """Return a report as JSON values."""
    from dataclasses import asdict

    return {**asdict(report), "fit": report.fit}


def as_text(report: "SuiteReport") -> str:
    """Return a report as lines of text."""
    texts = "" if report.groups == report.examples else f" of {report.groups} texts"
    counts = ", ".join(f"{name} {count}" for name, count in report.counts.items())
    words = report.words
    reachable = [bound for bound in report.bounds if bound.reachable]
    best = reachable[0] if reachable else report.target
    losses = ", ".join(f"{r.margin:.3f} at {r.flips:.0%} flips" for r in report.resolutions)
    lines = [
        f"{report.name} ({report.source}): {'usable' if report.fit else 'NOT USABLE'}",
        f"  examples   {report.examples}{texts}; {counts}",
        f"  words      {words.fewest} to {words.most}, median {words.median:g}",
        f"  certifies  {_bound(report.target)} (the task's target)",
    ]
    if report.without_entities is not None:
        lines.insert(2, f"  empty      {report.without_entities:.0%} have no entity")
    if best.alpha < report.target.alpha:
        lines.append(f"             {_bound(best)} (the lowest that its size can certify)")
    lines.append(f"  decides    a loss of {losses}")
    lines += [f"  problem    {sentence}" for sentence in report.problems]
    lines += [f"  warning    {sentence}" for sentence in report.warnings]
    return "\n".join(lines)


def _bound(bound: "ErrorBound") -> str:
    if bound.coverage is None:
        return (
            f"no error of {bound.alpha:g}: {bound.needed} accepted texts are needed, more than its "
            "half has"
        )
    return (
        f"an error of {bound.alpha:g} with {bound.needed} accepted texts, all right "
        f"({bound.coverage:.0%} of its half)"
    )
