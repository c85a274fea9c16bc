"""Every file that a command reads, with content of another kind: a documented exit status."""

from argparse import Action
from pathlib import Path

import pytest

from serving.cli import EXIT_DEFECT, main

from ..fuzz.cli import STATUSES, Program, programs
from .odd_files import write_odd_files

ENGINES = frozenset({"serve", "gate", "materialize", "quantize"})
"""They may start an engine or a worker; their files are in their own tests."""
OUTPUTS = frozenset({"out", "html", "export", "errors"})
"""Written, not read."""
UNREADABLE = ("binary", "deep.json", "digits", "list", "latin", "missing", "below")
GIVEN = {"rps": "1", "task": "topic", "url": "http://127.0.0.1:9", "artifact": "sha256-" + "0" * 64}


SHARED = {"config": "report", "tasks_dir": "tasks list"}
"""Read by one function for every command: one of them is enough."""


def is_read(program: Program, action: Action) -> bool:
    # `--state /` would write there.
    if action.type is not Path or action.dest in OUTPUTS | {"state"}:
        return False
    return SHARED.get(action.dest, program.name) == program.name


def arguments(program: Program, wanted: Action, odd: str, folder: Path) -> list[str]:
    """Return a call of a program with an odd file at one argument."""

    def value(action: Action) -> str:
        if action is wanted:
            return odd
        if action.choices:
            return str(next(iter(action.choices)))
        if action.type is Path:
            return str(folder / f"out-{action.dest}")
        return GIVEN.get(action.dest, "x")

    words = program.name.split()
    for action in program.valued:
        if action is wanted or action.required:
            words += [action.option_strings[-1], value(action)]
        elif action.dest == "state":
            words += ["--state", str(folder / "state")]
    needed = [a for a in program.positionals if a.nargs not in ("?", "*") or a is wanted]
    return [*words, *(value(action) for action in needed)]


CALLS = [
    (program, action)
    for program in programs()
    if program.name.split()[0] not in ENGINES
    for action in (*program.positionals, *program.valued)
    if is_read(program, action)
]


def test_the_arguments_of_this_test_are_those_of_the_program() -> None:
    found = {(program.name, action.dest) for program, action in CALLS}
    assert len(found) > 15
    assert {("savings", "requests"), ("router train", "logs"), ("k8s render", "settings")} < found


@pytest.mark.parametrize(
    ("program", "action"), CALLS, ids=[f"{program.name} {a.dest}" for program, a in CALLS]
)
def test_a_file_of_another_kind_ends_a_command_with_a_documented_status(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    program: Program,
    action: Action,
) -> None:
    monkeypatch.chdir(tmp_path)
    files = write_odd_files(tmp_path)
    if program.name == "router train":
        # It trains for seconds where it can read the file.
        files = [odd for odd in files if Path(odd).name in UNREADABLE]
    for odd in files:
        words = arguments(program, action, odd, tmp_path)
        try:
            status = main(words)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else EXIT_DEFECT
        told = capsys.readouterr()
        assert status in STATUSES, (words, told.err)
        assert status == 0 or told.err.strip() or told.out.strip(), words
