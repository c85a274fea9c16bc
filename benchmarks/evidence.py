"""`python -m benchmarks evidence`: are claims kept, how soon are they earned, what do they cost?"""

import argparse
import json
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from serving.commands.progress import step

HELP = "run labelled texts through the folds of evidence, in several orders of arrival"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="JSONL files of your own, with id, text and label"
    )
    parser.add_argument("--state", type=Path, default=Path(".narrowgate"), help="keeps the vectors")
    parser.add_argument("--runs", type=int, default=40, help="streams of every measurement (40)")
    parser.add_argument("--target", type=float, default=0.15, help="target error (0.15)")
    parser.add_argument(
        "--stack", metavar="URL", help="running stack whose local model is asked about the texts"
    )
    parser.add_argument("--task", default="topic", help="its task with the texts' labels (topic)")
    parser.add_argument("--rows", type=int, default=4000, help="shipped texts (4000)")


def run(args: argparse.Namespace) -> int:
    """Measure and report. Exit status 0; figures are reported, not judged."""
    from benchmarks import evidence_goals as goals
    from benchmarks.evidence_outputs import recorded_where_it_fits
    from benchmarks.evidence_streams import ORDERS, sources
    from benchmarks.machine import machine

    record = None
    if args.stack:
        record = partial(recorded_where_it_fits, args.stack, args.task, args.state)
    with step("computing vectors"):
        found = list(sources(args.data, args.state, args.rows, record))
    report: dict[str, Any] = {
        "machine": machine(), "runs": args.runs, "target": args.target,
        "with_outputs_of_the_local_model": [s.name for s in found if s.outputs is not None],
    }  # fmt: skip
    kept = report["error_among_accepted"] = []
    for source in found:
        for order in ORDERS:
            with step(f"{source.name}, {order}"):
                kept.append(goals.kept_target(source, order, args.runs, args.target))
    with step("shifts"):
        report["shift"] = [goals.shifted(source, args.runs, args.target) for source in found]
    with step("stationary streams"):
        report["false_suspensions"] = goals.false_suspensions(args.target, 200, 10_000)
    with step("thresholds for each label"):
        report["label_thresholds"] = [
            goals.label_thresholds(source, min(args.runs, 20), args.target, 600) for source in found
        ]
    report["audit_cost_share"] = goals.audit_cost_share(200_000)
    report["request_path_us"] = goals.request_path_us(20_000)
    print(json.dumps(report, indent=2, default=_document))
    return 0


def _document(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} cannot be written as JSON")
