"""Progress of long commands: shares, time left, step times, silence in a pipe."""

import json

import pytest

from serving.commands.progress import start_bar
from serving.contracts.model_status import Progress
from serving.host.progress import Bar, JsonLines, StepTimes


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_events_have_the_share_and_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with JsonLines(clock) as lines:
        lines.step("loading")
        lines.step("running", 0, 40)
        clock.now_s += 30.0
        lines.step("running", 10, 40, {"loss": 0.5, "shown": "for people"})
        lines.step("over", 50, 40)
    out, err = capsys.readouterr()
    assert out == ""
    loading, begun, later, over = (json.loads(line) for line in err.splitlines())
    assert loading == {
        "event": "step", "step": "loading", "share": None, "left_s": None, "done": 0, "total": 0,
    }  # fmt: skip
    assert (begun["share"], begun["left_s"]) == (0.0, None)
    assert (later["share"], later["left_s"], later["loss"]) == (0.25, 90.0, 0.5)
    assert "shown" not in later
    assert (over["share"], over["left_s"]) == (1.0, 0.0)


def test_a_bar_is_silent_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    with Bar() as bar:
        bar.step("loading")
        bar.step("running", 3, 4, {"shown": "three"})
    assert capsys.readouterr() == ("", "")


def test_a_start_writes_each_step_once_where_no_terminal_shows_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with start_bar() as show:
        show(Progress("starting Ray", 0.0, None))
        show(Progress("starting Ray", 0.05, 90.0))
        show(Progress("testing: topic", 0.5, 40.0))
        show(Progress("testing: ner", 0.6, 30.0))
        show(Progress("testing: topic", 0.7, 20.0))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["  0%  starting Ray", " 50%  testing: topic", " 60%  testing: ner"]


def test_a_step_takes_until_the_next_one_begins() -> None:
    clock, told = Clock(), []

    class Observer:
        def step(
            self, name: str, done: float = 0, total: float = 0, details: object = None
        ) -> None:
            told.append((name, done, total))

    steps = StepTimes(Observer(), clock)
    steps.step("load", 0, 2)
    clock.now_s += 5.0
    steps.step("run", 1, 2)
    clock.now_s += 2.0
    steps.step("load", 1, 2)
    clock.now_s += 1.0
    assert steps.seconds() == {"load": 6.0, "run": 2.0}
    assert told == [("load", 0, 2), ("run", 1, 2), ("load", 1, 2)]
