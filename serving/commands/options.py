"""Arguments that several subcommands share."""

import argparse
import re
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.contracts.settings import Settings


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """Add --config, --host, --port, --state and --tasks-dir."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (YAML)")
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=whole_number, help="port to listen on (8000)")
    parser.add_argument("--state", type=Path, metavar="DIR", help="folder for everything written")
    parser.add_argument("--tasks-dir", type=Path, metavar="DIR", help="folder with task files")


def whole_number(text: str) -> int:
    """Return a whole number. Raises ArgumentTypeError for anything but the digits 0 to 9."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number in the digits 0 to 9")
    return int(text)


def decimal_number(text: str) -> Decimal:
    """Return a number such as 12 or 0.25. Raises ArgumentTypeError for any other notation."""
    if not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 12 or 0.25")
    return Decimal(text)


def settings_from(args: argparse.Namespace) -> "Settings":
    """Return the settings merged from the arguments, the environment and the file."""
    # Imported here: `narrowgate --help` imports every subcommand and must not load pydantic.
    from serving.contracts.settings_sources import load_settings

    names = ("host", "port", "state", "tasks_dir")
    given = {name: getattr(args, name) for name in names}
    mode = getattr(args, "auth", None)
    return load_settings(args.config, {**given, "auth": mode and {"mode": mode}})
