"""The narrowgate program: finds the subcommands that packages contribute and runs one."""

import argparse
import json
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Protocol

from serving.contracts.errors import EngineFailure, NarrowgateError, QuantizationFailed

PROGRAM = "narrowgate"
DESCRIPTION = "Serve narrow NLP tasks on local models, each behind its evaluation gate."
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


def installed_commands() -> dict[str, Command]:
    """Return the subcommands that the installed packages contribute, by name."""
    entries = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    return {entry.name: entry.load() for entry in entries}


def narrowgate_parser() -> argparse.ArgumentParser:
    """Return the parser of the narrowgate program."""
    return build_parser(PROGRAM, DESCRIPTION, installed_commands())


def build_parser(
    program: str, description: str, commands: Mapping[str, Command]
) -> argparse.ArgumentParser:
    """Return the parser of a program with these subcommands."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in commands.items():
        subparser = subcommands.add_parser(name, help=command.HELP, description=command.HELP)
        subparser.add_argument(
            "--json", action="store_true", help="print one JSON document, errors included"
        )
        command.configure(subparser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run narrowgate and return its exit status: 0 pass, 1 fail, 2 usage, 3 inconclusive."""
    return run_program(PROGRAM, DESCRIPTION, installed_commands(), argv)


def run_program(
    program: str, description: str, commands: Mapping[str, Command], argv: list[str] | None = None
) -> int:
    """Parse the arguments, run one subcommand, report its error, return the exit status."""
    args = build_parser(program, description, commands).parse_args(argv)
    try:
        return commands[args.command].run(args)
    except NarrowgateError as error:
        _report(error, program, as_json=args.json)
        return EXIT_FAILED if isinstance(error, _RAN_AND_FAILED) else EXIT_USAGE
    except BrokenPipeError:
        # The reader has gone (`narrowgate tasks | head`): nothing to report, nobody to tell.
        sys.stderr.close()
        return EXIT_FAILED


def _report(error: NarrowgateError, program: str, *, as_json: bool) -> None:
    if as_json:
        content = {
            "code": error.code, "message": error.message, "field": error.field, "fix": error.fix,
        }  # fmt: skip
        print(json.dumps({"error": content}))  # noqa: T201  # the program's output
        return
    lines = [f"{program}: {error.message}"]
    if error.field:
        lines.append(f"  at:  {error.field}")
    if error.fix:
        lines.append(f"  fix: {error.fix}")
    print("\n".join(lines), file=sys.stderr)  # noqa: T201  # the program's output


if __name__ == "__main__":
    sys.exit(main())
