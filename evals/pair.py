"""Baseline and candidate on the same examples, in turns, so that both see the same machine.

The order is baseline, candidate, candidate, baseline, ...: what slows the machine down for a while
slows both.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar

import psutil

from evals.answers import Answered, read, works
from evals.subject import Subject, weight_bytes
from evals.suite import Example, Suite
from serving.contracts.answer import Prediction
from serving.contracts.engine import EngineOutput
from serving.contracts.settings import CpuAccelerator

P = ParamSpec("P")
R = TypeVar("R")
Side = Literal["baseline", "candidate"]
SIDES: tuple[Side, Side] = ("baseline", "candidate")

# Where both engines stay loaded, turns cost nothing; where not, every second turn is a load.
_TURNS_RESIDENT = 4
_TURNS_LOADING = 2
_WARM_UP = 8
# A loaded engine besides its weights and KV cache: interpreter, libraries, buffers.
_ENGINE_BYTES = int(1.5 * 2**30)


class Narrator(Protocol):
    """Shows how far a run is."""

    def step(self, sentence: str, done: int, total: int) -> None:
        """Show a step that has begun; done of total examples lie behind."""
        ...


@dataclass(frozen=True, slots=True)
class Turn:
    """How long each model took for the same examples, seconds in the engine."""

    examples: int
    baseline_s: float
    candidate_s: float

    @property
    def ratio(self) -> float:
        """Return the candidate's throughput, the baseline's being 1."""
        return self.baseline_s / self.candidate_s


Futile = Callable[[Suite, Answered, Answered], bool]


@dataclass(slots=True)
class _Record:
    """Outputs in the examples' order, and examples and seconds of each turn; by side and suite."""

    outputs: dict[tuple[Side, str], list[EngineOutput]]
    seconds: dict[tuple[Side, str], list[tuple[int, float]]]

    def turns(self, name: str) -> list[Turn]:
        pairs = zip(self.seconds["baseline", name], self.seconds["candidate", name], strict=True)
        return [Turn(examples, old, new) for (examples, old), (_, new) in pairs]


class Pair:
    """Two subjects and the suites they are tested on.

    futile: told what was seen of a suite after each turn, says whether to stop there. suites: by
    name, cut where they were stopped. turns: how long each took, by suite.
    """

    def __init__(
        self,
        subjects: Mapping[Side, Subject],
        suites: Sequence[Suite],
        narrator: Narrator,
        futile: Futile | None = None,
    ) -> None:
        self._subjects = subjects
        self.suites = {suite.name: suite for suite in suites}
        self._narrator = narrator
        self._futile = futile
        self._done = 0
        self._total = 2 * sum(len(suite.examples) for suite in suites)
        self._resident = _fit_together(list(subjects.values()))
        self._warm: set[Side] = set()
        self._answered: dict[tuple[Side, str], Answered] = {}
        self.turns: dict[str, list[Turn]] = {}

    @contextmanager
    def running(self) -> Iterator["Pair"]:
        """Stop both engines at the end."""
        try:
            yield self
        except BaseException:
            for subject in self._subjects.values():
                subject.close(broken_off=True)
            raise
        for subject in self._subjects.values():
            subject.close()

    def prediction(self, side: Side, name: str, index: int) -> Prediction:
        """Return a model's answer to an example; the first call runs every suite on both."""
        return self.answered(side, name).predictions[index]

    def answered(self, side: Side, name: str) -> Answered:
        """Return a model's answers to a suite."""
        if not self._answered:
            self.run()
        return self._answered[side, name]

    def call(
        self,
        side: Side,
        function: Callable[Concatenate[Any, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Call a function in a model's engine. Raises EngineFailure."""
        self._make_room(side)
        return self._subjects[side].call(function, *args, **kwargs)

    def measure_memory(self) -> None:
        """Stop both engines and note the most memory they held."""
        for subject in self._subjects.values():
            subject.unload()

    def run(self) -> None:
        """Run every suite on both models. Blocking, minutes. Raises EngineFailure, InvalidSuite."""
        record = _Record({}, {})
        count = _TURNS_RESIDENT if self._resident else _TURNS_LOADING
        active = list(self.suites.values())
        for turn in range(count):
            for side in SIDES if turn % 2 == 0 else reversed(SIDES):
                self._make_room(side)
                self._warm_up(side, active)
                for suite in active:
                    self._run_part(side, suite, (turn, count), record)
            if turn < count - 1:
                active = [suite for suite in active if not self._stop(suite, record)]
        for suite in self.suites.values():
            for side in SIDES:
                found = record.outputs[side, suite.name]
                self._answered[side, suite.name] = read(self._subjects[side], suite, found)
            self.turns[suite.name] = record.turns(suite.name)

    def _run_part(self, side: Side, suite: Suite, turn: tuple[int, int], record: "_Record") -> None:
        part = _part(suite.examples, *turn)
        self._narrator.step(f"{suite.name}: {side}", self._done, self._total)
        batch = self._subjects[side].run(works(self._subjects[side], suite, part))
        record.outputs.setdefault((side, suite.name), []).extend(batch.outputs)
        if part:
            record.seconds.setdefault((side, suite.name), []).append((len(part), batch.seconds))
        self._done += len(part)

    def _stop(self, suite: Suite, record: "_Record") -> bool:
        """Return whether the rest of a suite would change nothing; it is cut to what was run."""
        if self._futile is None:
            return False
        seen = suite.between(0, len(record.outputs["candidate", suite.name]))
        answered = {
            side: read(self._subjects[side], seen, record.outputs[side, suite.name])
            for side in SIDES
        }
        if not self._futile(seen, answered["baseline"], answered["candidate"]):
            return False
        self._total -= 2 * (len(suite.examples) - len(seen.examples))
        self.suites[suite.name] = seen
        return True

    def _warm_up(self, side: Side, suites: Sequence[Suite]) -> None:
        # What is set up at the first work of each kind must not count. Words in reverse order: the
        # prefix cache must not know the examples.
        if self._resident and side in self._warm:
            return
        self._warm.add(side)
        for suite in suites:
            task = self._subjects[side].task(suite.spec)
            requests = [
                replace(e.request, text=" ".join(reversed(e.request.text.split())))
                for e in suite.examples[:_WARM_UP]
            ]
            self._subjects[side].run([task.plan(request) for request in requests])

    def _make_room(self, side: Side) -> None:
        if not self._resident:
            for other in SIDES:
                if other != side:
                    self._subjects[other].unload()


def _part(examples: Sequence[Example], turn: int, count: int) -> Sequence[Example]:
    size = len(examples)
    return examples[size * turn // count : size * (turn + 1) // count]


def _fit_together(subjects: Sequence[Subject]) -> bool:
    needed = 0
    for subject in subjects:
        accelerator = subject.settings.accelerator
        if not isinstance(accelerator, CpuAccelerator):
            # An engine takes its share of the GPU whole.
            return False
        needed += weight_bytes(subject.folder) + accelerator.kv_cache_gib * 2**30 + _ENGINE_BYTES
    return needed < 0.9 * psutil.virtual_memory().available
