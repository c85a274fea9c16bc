"""`narrowgate evidence label`: people label audited inputs, in the terminal or by file."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.commands.json_lines import private_file, read_lines
from serving.commands.options import settings_from
from serving.host.numbers import refuse_outside, signed_integer

if TYPE_CHECKING:
    from serving.evidence.administration import Label
    from serving.evidence.kept_texts import KeptTexts

OPERATOR = "operator"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "file", type=Path, nargs="?", metavar="FILE",
        help="JSON Lines with input and label: an export that was filled in; asks in the terminal "
        "if absent",
    )  # fmt: skip
    parser.add_argument(
        "--export", type=Path, metavar="FILE", help="write texts to label into FILE instead"
    )
    parser.add_argument(
        "--person",
        default=OPERATOR,
        metavar="NAME",
        help="who labels, for the log and the agreement",
    )
    parser.add_argument(
        "--count", type=signed_integer, default=100, metavar="N", help="texts at most (100)"
    )


def run(args: argparse.Namespace, store: Any) -> int:
    """Export texts, import labels, or ask for them; print how many."""
    from serving.evidence.administration import label, sampled

    refuse_outside("--count", args.count, least=1)
    texts = texts_of(args, store)
    if args.export is not None:
        found = sampled(store, texts, args.claim, args.person, args.count)
        lines = [
            json.dumps({"input": one.audit.input, "text": one.text, "labels": one.labels,
                        "label": ""}, ensure_ascii=False) + "\n"
            for one in found
        ]  # fmt: skip
        with private_file(args.export) as file:
            file.writelines(lines)
        print(json.dumps({"texts": len(found)}) if args.json else f"{len(found)} texts to label")
        return 0
    if args.file is not None:
        count = label(store, texts, args.claim, _labels(args.file), args.person)
    else:
        count = _ask_for_labels(args, store, texts)
    print(json.dumps({"labels": count}) if args.json else f"{count} labels noted")
    return 0


def _ask_for_labels(args: argparse.Namespace, store: Any, texts: "KeptTexts | None") -> int:
    """Show texts one by one and note each label at once; return how many were noted."""
    from serving.contracts.errors import InvalidArgument
    from serving.evidence.administration import Label, label, sampled

    if not sys.stdin.isatty():
        raise InvalidArgument(
            "there is no terminal to ask in",
            field="FILE",
            fix="write the texts with --export FILE, fill in their labels, and name the file",
        )
    found = sampled(store, texts, args.claim, args.person, args.count)
    count = 0
    for number, one in enumerate(found, 1):
        print(f"\n[{number} of {len(found)}] {one.text}")
        print("  ".join(f"{n} {name}" for n, name in enumerate(one.labels, 1)))
        chosen = _chosen_label(one.labels)
        if chosen is None:
            break
        if chosen:
            item = Label(one.audit.input, chosen)
            count += label(store, texts, args.claim, [item], args.person)
    return count


def _chosen_label(labels: Sequence[str]) -> str | None:
    """Return a label by its number or name, an empty one to skip, None to end."""
    while True:
        typed = input("label (number or name; Enter skips, q ends): ").strip()
        if typed == "q":
            return None
        if typed.isdecimal() and 1 <= int(typed) <= len(labels):
            return labels[int(typed) - 1]
        if not typed or typed in labels:
            return typed
        print(f"{typed!r} is not a label")


def texts_of(args: argparse.Namespace, store: Any) -> "KeptTexts | None":
    """Return where texts are kept; None where the settings keep none."""
    from serving.evidence.service import kept_texts

    settings = settings_from(args)
    return kept_texts(settings.evidence, store.database, settings.state)


def _labels(file: Path) -> "list[Label]":
    """Return the labels that were filled in; rows whose label is empty were left out."""
    from serving.evidence.administration import Label

    rows = read_lines(file, ("input", "label"))
    return [Label(row["input"], row["label"]) for row in rows if row["label"]]
