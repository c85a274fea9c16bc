"""`narrowgate cache evaluate`: what lookups by meaning would serve of a file, and how wrongly."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from serving.commands.json_lines import read_lines
from serving.commands.options import add_settings_options, settings_from
from serving.commands.progress import step

if TYPE_CHECKING:
    from serving.cache.evaluation.measure import Measured
    from serving.evidence.statistics.intervals import Interval

HELP = "measure lookups by meaning on a file of your questions"
_NOTE = (
    "Intervals are exact, 95 %. Labels of public question pairs are noisy: read some wrong hits "
    "before you trust a share below 8 %."
)


def configure_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `cache evaluate`."""
    parser.add_argument(
        "file", type=Path, metavar="FILE",
        help='JSON Lines: {"text", "answer"} in the order of a stream; with --pairs '
        '{"a", "b", "duplicate"}',
    )  # fmt: skip
    parser.add_argument(
        "--pairs", action="store_true", help="rows are pairs: may one get the other's answer?"
    )
    add_settings_options(parser)
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
    )


def evaluate(args: argparse.Namespace) -> int:
    """Measure and print. Raises InvalidArgument."""
    from serving.cache.evaluation.measure import (
        Question,
        measure_pairs,
        measure_stream,
        read_pairs,
    )
    from serving.embedding.embedder import build_embedder

    needed = ("a", "b") if args.pairs else ("text", "answer")
    rows = read_lines(args.file, needed)
    pairs = read_pairs(rows, str(args.file)) if args.pairs else []
    with step("embedding and comparing"):
        encode = build_embedder(settings_from(args).state).embed_all
        if args.pairs:
            found = measure_pairs(pairs, encode)
        else:
            stream = [Question(row["text"], row["answer"]) for row in rows]
            found = measure_stream(stream, encode)
    if getattr(args, "json", False):
        print(json.dumps({"rows": len(rows), "ways": [one.document() for one in found]}))
        return 0
    _print(found)
    return 0


def _print(found: "list[Measured]") -> None:
    print(f"{found[0].total:,} rows, {found[0].right:,} with the same answer as another")
    print(
        f"{'served by':<20} {'cosine':>6} {'hits':>6} {'wrong':>6}  {'wrong of hits':<22} "
        "served of same"
    )
    for one in found:
        print(
            f"{one.name:<20} {one.cosine:>6.2f} {one.hits:>6,} {one.wrong:>6,}  "
            f"{_share(one.wrong_share):<22} {_share(one.recall)}"
        )
    refused = found[0].refused
    if refused:
        reasons = sorted(refused.items(), key=lambda item: -item[1])
        print("refused: " + ", ".join(f"{reason} {count}" for reason, count in reasons))
    print(_NOTE)


def _share(interval: "Interval | None") -> str:
    if interval is None:
        return "-"
    return f"{interval.mean:.1%} ({interval.low:.1%}-{interval.high:.1%})"
