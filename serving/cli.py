"""The narrowgate program: finds the subcommands that packages contribute and runs one."""

import argparse
import json
import sys
from importlib.metadata import entry_points
from typing import Protocol

from serving.contracts.errors import EngineFailure, NarrowgateError, QuantizationFailed

GROUP = "narrowgate.commands"
EXIT_FAILED = 1
EXIT_USAGE = 2
# Of the errors, those that no other arguments would have avoided.
_RAN_AND_FAILED = (EngineFailure, QuantizationFailed)


class Command(Protocol):
    """What an entry point's module offers. Importing it must load nothing heavy."""

    HELP: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the subcommand's arguments."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Run and return the exit status."""
        ...


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, Command]]:
    """Return the parser of every subcommand that is installed, and the subcommands by name."""
    parser = argparse.ArgumentParser(
        prog="narrowgate",
        description="Serve narrow NLP tasks on local models, each behind its evaluation gate.",
    )
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands: dict[str, Command] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        command = entry.load()
        commands[entry.name] = command
        subparser = subcommands.add_parser(entry.name, help=command.HELP, description=command.HELP)
        subparser.add_argument(
            "--json", action="store_true", help="print one JSON document, errors included"
        )
        command.configure(subparser)
    return parser, commands


def main(argv: list[str] | None = None) -> int:
    """Run the program and return its exit status: 0 pass, 1 fail, 2 usage, 3 inconclusive."""
    parser, commands = build_parser()
    args = parser.parse_args(argv)
    try:
        return commands[args.command].run(args)
    except NarrowgateError as error:
        _report(error, as_json=args.json)
        return EXIT_FAILED if isinstance(error, _RAN_AND_FAILED) else EXIT_USAGE
    except BrokenPipeError:
        # The reader has gone (`narrowgate tasks | head`): nothing to report, nobody to tell.
        sys.stderr.close()
        return EXIT_FAILED


def _report(error: NarrowgateError, *, as_json: bool) -> None:
    if as_json:
        content = {
            "code": error.code, "message": error.message, "field": error.field, "fix": error.fix,
        }  # fmt: skip
        print(json.dumps({"error": content}))  # noqa: T201  # the program's output
        return
    lines = [f"narrowgate: {error.message}"]
    if error.field:
        lines.append(f"  at:  {error.field}")
    if error.fix:
        lines.append(f"  fix: {error.fix}")
    print("\n".join(lines), file=sys.stderr)  # noqa: T201  # the program's output


if __name__ == "__main__":
    sys.exit(main())
