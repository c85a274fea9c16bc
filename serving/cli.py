"""The narrowgate program: finds the subcommands that packages contribute and runs one."""

import argparse
import codecs
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Mapping
from contextlib import suppress
from functools import cache, partial
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any, NoReturn, Protocol

from serving.contracts.errors import (
    EngineFailure,
    InvalidRequest,
    NarrowgateError,
    QuantizationFailed,
)
from serving.contracts.no_telemetry import disable_telemetry

PROGRAM = "narrowgate"
DESCRIPTION = "Serve narrow NLP tasks on local models, each behind its evaluation gate."
GROUP = "narrowgate.commands"
EXIT_FAILED = 1
EXIT_USAGE = 2
# The numbers of sysexits.h: no verdict has them.
EXIT_DEFECT = 70
EXIT_SYSTEM = 74
# Commands whose statuses 0, 1 and 3 are verdicts: an error must not look like one.
_VERDICTS = frozenset({"gate", "k8s", "suite", "verify"})
_STATUSES = f"Exit status: 0 done, 1 failed, 2 wrong use, {EXIT_DEFECT} a defect of the program."
_ALL_STATUSES = (
    "Exit status: 0 done or pass, 1 fail, 2 wrong use, 3 inconclusive or not ended yet, "
    f"{EXIT_DEFECT} a defect of the program. COMMAND --help has those of one command."
)
_VERDICT_STATUSES = (
    f"Exit status: 0 pass, 1 fail, 2 wrong use or an error, 3 inconclusive, {EXIT_DEFECT} a defect "
    f"of the program, {EXIT_SYSTEM} an error of the operating system."
)
# Errors that other arguments would not have avoided.
_RAN_AND_FAILED = (EngineFailure, QuantizationFailed)

_PLAIN = {"–": "-", "—": "-", "─": "-", "━": "-", "│": "|", "…": "...", "’": "'", "×": "x"}  # noqa: RUF001
"""ASCII in place of the typographic characters that the program prints."""


class Command(Protocol):
    """The interface of an entry point's module. Importing it must load nothing heavy."""

    HELP: str

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the subcommand's arguments."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Run and return the exit status."""
        ...


@cache
def installed_commands() -> Mapping[str, Command]:
    """Return the subcommands that the installed packages contribute, by name."""
    entries = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    return {entry.name: entry.load() for entry in entries}


def narrowgate_parser() -> argparse.ArgumentParser:
    """Return the parser of the narrowgate program."""
    return build_parser(PROGRAM, DESCRIPTION, installed_commands())


def _path(text: str) -> Path:
    """Return a path. Raises ArgumentTypeError for a blank text, which means the current folder.

    A shell gives one where a variable is not set (`--state "$STATE"`).
    """
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is blank; write a path, or leave it out")
    return Path(text)


class _Parser(argparse.ArgumentParser):
    """Reads arguments of the type Path by `_path`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register("type", Path, _path)


class _RaisingParser(_Parser):
    """Raises InvalidRequest for wrong arguments, so that --json can report them as a document."""

    def error(self, message: str) -> NoReturn:
        """Raise InvalidRequest; argparse itself prints the usage and ends the process."""
        raise InvalidRequest(message, fix=f"{self.prog} --help lists the arguments")


def build_parser(
    program: str,
    description: str,
    commands: Mapping[str, Command],
    parser_class: type[argparse.ArgumentParser] = _Parser,
) -> argparse.ArgumentParser:
    """Return the parser of a program with these subcommands."""
    parser = parser_class(prog=program, description=description, epilog=_ALL_STATUSES)
    parser.add_argument("--version", action="version", version=f"{program} {version(PROGRAM)}")
    subcommands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in commands.items():
        subparser = subcommands.add_parser(name, help=command.HELP, description=command.HELP)
        subparser.add_argument(
            "--json", action="store_true", help="print one JSON document, errors included"
        )
        command.configure(subparser)
        _complete(subparser, _VERDICT_STATUSES if name in _VERDICTS else _STATUSES)
    return parser


def _complete(parser: argparse.ArgumentParser, statuses: str) -> None:
    """Add the exit statuses to a parser's help, and to its actions' help what the list says."""
    parser.epilog = parser.epilog or statuses
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for listed in action._choices_actions:
                nested = action.choices[listed.dest]
                nested.description = nested.description or listed.help
                _complete(nested, parser.epilog)


def main(argv: list[str] | None = None) -> int:
    """Run narrowgate and return its exit status.

    0 pass, 1 fail, 2 usage, 3 inconclusive, 70 a defect of the program; 74 for an operating system
    error of a command whose status 1 is a verdict.
    """
    return run_program(PROGRAM, DESCRIPTION, installed_commands(), argv)


def run_program(
    program: str, description: str, commands: Mapping[str, Command], argv: list[str] | None = None
) -> int:
    """Parse the arguments, run one subcommand, report its error, return the exit status.

    An operating system error (a full disk, a missing folder), text that is not UTF-8 and a defect
    of the program end as one sentence on stderr, or as a JSON document, and never as a traceback.
    """
    disable_telemetry()
    given = sys.argv[1:] if argv is None else argv
    report = partial(_report, program, as_json="--json" in given)
    judges = bool(_VERDICTS.intersection(given[:1]))
    failed, system_failed = (EXIT_USAGE, EXIT_SYSTEM) if judges else (EXIT_FAILED, EXIT_FAILED)
    _replace_unencodable_characters()
    try:
        try:
            _refuse_unusable(given)
            wanted = _RaisingParser if "--json" in given else _Parser
            # The arguments of all commands take longer to configure than most commands to run.
            called = {name: commands[name] for name in given[:1] if name in commands} or commands
            args = build_parser(program, description, called, wanted).parse_args(given)
            return commands[args.command].run(args)
        finally:
            # The interpreter flushes at exit, too late for an error to be reported.
            _flush_output()
    except NarrowgateError as error:
        report(error.code, error.message, error.field, error.fix)
        return failed if isinstance(error, _RAN_AND_FAILED) else EXIT_USAGE
    except BrokenPipeError:
        # The reader has closed the pipe (`narrowgate tasks | head`), which is not an error.
        _discard_output()
        return system_failed
    except OSError as error:
        reason = error.strerror or str(error)
        message = f"{error.filename!r}: {reason}" if error.filename else f"a write failed: {reason}"
        report("system_error", message, None, "check the path, its permissions and the free space")
        return system_failed
    except UnicodeError as error:
        report("not_utf8", f"a text is not UTF-8: {error}", None, "save the file as UTF-8")
        return EXIT_USAGE
    except Exception as error:  # noqa: BLE001  # the process's edge: Python's own status is 1
        report("defect", _defect(error), None, "report it with that file")
        return EXIT_DEFECT


def _defect(error: Exception) -> str:
    """Write the traceback to a temporary file and return the sentence that names it."""
    kept = "no file could be written"
    with suppress(OSError):
        handle, name = tempfile.mkstemp(prefix="narrowgate-defect-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
        kept = name
    return f"a defect of the program: {type(error).__name__}: {error} (traceback: {kept})"


def _refuse_unusable(arguments: list[str]) -> None:
    """Refuse arguments that are not UTF-8 or hold a NUL. Raises InvalidRequest.

    Python keeps bytes that are not UTF-8 as lone surrogates, which no database, file or terminal
    accepts. A caller in the same process can pass a NUL, which no path has.
    """
    for argument in arguments:
        if "\0" in argument:
            raise InvalidRequest(
                f"the argument {argument!r} holds the character NUL", fix="remove the character"
            )
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"the argument {argument!r} is not UTF-8", fix="write the argument in UTF-8"
            ) from error


def _plain_character(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in text), error.end


def _replace_unencodable_characters() -> None:
    """Replace characters that a terminal without UTF-8 cannot encode by plain ones."""
    codecs.register_error("narrowgate_plain", _plain_character)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="narrowgate_plain")


def _flush_output() -> None:
    # None where the caller closed the stream (`narrowgate config >&-`).
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _discard_output() -> None:
    """Redirect buffered output to the null device, so that the flush at exit cannot fail."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report(
    program: str, code: str, message: str, field: str | None, fix: str | None, *, as_json: bool
) -> None:
    if as_json:
        content = {"code": code, "message": message, "field": field, "fix": fix}
        try:
            print(json.dumps({"error": content}), flush=True)  # noqa: T201  # the program's output
        except OSError:
            _discard_output()
        else:
            return
    lines = [f"{program}: {message}"]
    if field:
        lines.append(f"  at:  {field}")
    if fix:
        lines.append(f"  fix: {fix}")
    with suppress(OSError):
        print("\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201  # as above
    try:
        _flush_output()
    except OSError:
        _discard_output()


if __name__ == "__main__":
    sys.exit(main())
