"""`narrowgate prompt-lint`: find what prevents recorded prompts from being cached."""

import argparse
import json
from pathlib import Path
from typing import Any

from serving.commands.options import add_settings_options, settings_from
from serving.contracts.file_lines import file_lines
from serving.contracts.plain_file import read_plain_text

HELP = "find and show what changes inside the static part of recorded prompts"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    parser.add_argument(
        "file", type=Path, metavar="FILE",
        help='JSON Lines of requests in order: {"messages": ...} or {"body": {"messages": ...}}',
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print each finding with its text before and after; exit status 1 for any."""
    from serving.frontier.prefix_lint import PrefixLinter
    from serving.frontier.prompt_cache import split_prompt

    settings = settings_from(args).frontier.prompt_cache
    linter = PrefixLinter(settings.tracked_prefixes)
    marked = 0
    for body in _bodies(args.file):
        prefixes = split_prompt(body, settings.marker).prefixes
        marked += bool(prefixes)
        for position, prefix in enumerate(prefixes):
            linter.observe("recorded", position, prefix.digest[:12], prefix.text)
    rows = [
        {
            "breakpoint": warning.position + 1,
            "kind": warning.kind,
            "at_char": warning.start,
            "before": warning.before,
            "after": warning.after,
        }
        for warning in linter.warnings
    ]
    if args.json:
        print(json.dumps({"marked_requests": marked, "unstable": rows}))
    else:
        print(f"{marked} requests have a marker ({settings.marker})")
        for row in rows:
            print(
                f"breakpoint {row['breakpoint']}: a {row['kind']} changes at character "
                f"{row['at_char']}: {row['before']!r} -> {row['after']!r}; "
                "move it behind the marker"
            )
    return 1 if rows else 0


def _bodies(path: Path) -> list[dict[str, Any]]:
    """Return the recorded bodies. Raises InvalidRequest, which names the line at fault."""
    from serving.contracts.errors import InvalidRequest

    try:
        lines = file_lines(read_plain_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{str(path)!r} cannot be read: {error}", field="file") from error
    bodies = [_body(line) for line in lines]
    if None in bodies:
        raise InvalidRequest(
            f"line {bodies.index(None) + 1} of {str(path)!r} is not a request with messages",
            field="file",
            fix='write each line as {"messages": [{"role": "user", "content": "..."}]}',
        )
    return [body for body in bodies if body is not None]


def _body(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    body = row.get("body", row) if isinstance(row, dict) else None
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        return None
    return body
