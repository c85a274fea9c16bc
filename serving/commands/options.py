"""Arguments that several subcommands share."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from serving.host.numbers import whole_number

if TYPE_CHECKING:
    from serving.contracts.settings import Settings


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """Add --config, --state and --tasks-dir."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (YAML)")
    parser.add_argument(
        "--state", type=Path, metavar="DIR", help="folder for everything written (.narrowgate)"
    )
    parser.add_argument("--tasks-dir", type=Path, metavar="DIR", help="folder with task files")


def add_listen_options(parser: argparse.ArgumentParser) -> None:
    """Add --host and --port, for a subcommand that listens or prints the settings of one."""
    parser.add_argument("--host", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=whole_number, help="port to listen on (8000)")


def settings_from(args: argparse.Namespace) -> "Settings":
    """Return the settings merged from the arguments, the environment and the file."""
    # Imported here: `narrowgate --help` imports every subcommand and must not load pydantic.
    from serving.contracts.settings_sources import load_settings

    names = ("host", "port", "state", "tasks_dir")
    given = {name: getattr(args, name, None) for name in names}
    mode = getattr(args, "auth", None)
    return load_settings(args.config, {**given, "auth": mode and {"mode": mode}})
