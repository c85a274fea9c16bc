"""Generated arguments for every subcommand: a documented exit status, never a traceback.

Each call runs in a folder of its own. Subcommands that could start an engine are left out.
"""

import contextlib
import io
import json
import string
import tempfile
from argparse import Action, ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from serving.cli import main as narrowgate
from serving.cli import narrowgate_parser

from .rounds import Checks, parser, run_rounds

STATUSES = {0, 1, 2, 3, 74}
"""Pass, fail, usage, inconclusive, operating system error. 70 is a defect of the program."""

FILES = {
    "empty": b"", "text.jsonl": b'{"text": "A fine day.", "label": "positive"}\n',
    "binary": bytes(range(256)), "list.yaml": b"- 1\n- 2\n", "settings.yaml": b"port: 0\n",
    "deep.json": b"[" * 5000, "task.yaml": b"name: x\nkind: classification\n",
    "key.pub": b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
}  # fmt: skip
"""Files of the folder that a call runs in; generated values name them."""

ODD = ["", " ", "-", "--", "0", "-1", "1e999", "nan", "inf", "x=nan", "topic=0.02", "topic=2",
       "2026-13-01", "7d", "-7d", "/dev/null", "..", "no/such/folder", "\udcff", "\x00", "é",
       "9" * 400,
       "sqlite:////dev/null/x", "postgresql://a:b@127.0.0.1:1/x", "bundled:none", "a/b", "%s",
       "{}"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Program:
    """One subcommand: positional arguments, options with a value, options without one."""

    name: str
    positionals: tuple[Action, ...]
    valued: tuple[Action, ...]
    switches: tuple[Action, ...]


def programs() -> list[Program]:
    """Return every subcommand of the narrowgate program."""
    found: list[Program] = []
    _collect("", narrowgate_parser(), found)
    return found


def _collect(name: str, parser: ArgumentParser, found: list[Program]) -> None:
    own = [action for action in parser._actions if action.dest != "help"]
    nested = [action for action in own if isinstance(action, _SubParsersAction)]
    for action in nested:
        for child, subparser in action.choices.items():
            _collect(f"{name} {child}".strip(), subparser, found)
    if not nested:
        found.append(
            Program(
                name,
                tuple(action for action in own if not action.option_strings),
                tuple(action for action in own if action.option_strings and action.nargs != 0),
                tuple(action for action in own if action.option_strings and action.nargs == 0),
            )
        )


def _values(action: Action) -> SearchStrategy[str]:
    choices = [str(choice) for choice in action.choices or ()]
    printable = st.text(st.sampled_from(string.printable), max_size=12)
    return st.one_of(
        st.sampled_from([*choices, *FILES, *ODD]),
        st.sampled_from([*choices, *FILES]),
        printable,
        st.integers().map(str),
    )


@st.composite
def calls(draw: st.DrawFn, found: list[Program]) -> list[str]:
    """A subcommand with a value for most positionals and some options, some of them twice."""
    program = draw(st.sampled_from(found))
    words = program.name.split()
    for action in program.positionals:
        if draw(st.integers(0, 9)):
            words.append(draw(_values(action)))
    for action in draw(st.lists(st.sampled_from([*program.valued, *program.switches]), max_size=4)):
        words.append(action.option_strings[-1])
        if action.nargs != 0:
            words.append(draw(_values(action)))
    return words


@contextmanager
def _folder() -> Iterator[None]:
    """Run in a folder that holds only FILES."""
    with tempfile.TemporaryDirectory(prefix="narrowgate-fuzz-") as name:
        for file, content in FILES.items():
            (Path(name) / file).write_bytes(content)
        with contextlib.chdir(name):
            yield


def check_call(words: list[str]) -> None:
    """Assert what holds for every call of the program."""
    out, err = io.StringIO(), io.StringIO()
    with _folder(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = narrowgate(words)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
    assert status in STATUSES, (status, words)
    text = out.getvalue() + err.getvalue()
    assert "Traceback (most recent call last)" not in text, words
    if status and "--json" in words:
        # The whole of standard output is one document.
        assert isinstance(json.loads(out.getvalue()), dict), out.getvalue()
    elif status:
        assert err.getvalue().strip() or out.getvalue().strip(), "it failed and said nothing"


ENGINES = frozenset({"serve", "gate", "quantize", "materialize"})
SLOW = frozenset({"router", "suite"})
"""Subcommands that work for seconds when their arguments are valid."""


def checks(left_out: frozenset[str] = frozenset()) -> Checks:
    """Return calls of the subcommands that start no engine, and what must hold for them."""
    heavy = ENGINES | left_out
    light = [program for program in programs() if program.name.split()[0] not in heavy]
    return [(calls(light), check_call)]


def main(argv: list[str] | None = None) -> None:
    """Run for --seconds."""
    args = parser(__doc__ or "").parse_args(argv)
    run_rounds("cli", checks(), args.seconds, args.seed)


if __name__ == "__main__":
    main()
