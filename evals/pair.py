"""Baseline and candidate on the same examples, in turns, so that both see the same machine.

The order is baseline, candidate, candidate, baseline, ...: another program that slows the machine
for a while slows both models. Where both stay loaded, they take turns after each block.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import psutil

from evals.answers import Answered, read, read_own_inputs, works
from evals.subject import Subject, weight_bytes
from evals.suite import Example, Suite
from serving.contracts.answer import Prediction
from serving.contracts.engine import EngineOutput, EngineWork, GenerateWork
from serving.contracts.settings import CpuAccelerator
from serving.host.progress import StepObserver

P = ParamSpec("P")
R = TypeVar("R")
Side = Literal["baseline", "candidate"]
SIDES: tuple[Side, Side] = ("baseline", "candidate")

# The share of the examples that has been run at the end of each turn. Where both engines stay
# loaded, turns cost nothing; where they do not, every second turn loads a model.
_TURNS_RESIDENT = (0.25, 0.5, 0.75, 1.0)
_TURNS_LOADING = (0.5, 1.0)
# With early stopping the first looks are short: most tasks that fail their floor or speed fail it
# clearly, and a translation suite has a dozen directions for each text.
_FIRST_LOOK = 8
# A part is timed in blocks, for an interval of the ratio. In smaller ones an engine's batches are
# not full.
_BLOCK = 16
_MOST_BLOCKS = 4
_NEXT_LOOK = 3
_WARM_UP = 8
_WARM_UP_TOKENS = 8
# Progress units that loading counts for; one example is one unit.
_LOAD_UNITS = 400
# A loaded engine besides its weights and KV cache: interpreter, libraries, buffers.
_ENGINE_BYTES = int(1.5 * 2**30)


@dataclass(frozen=True, slots=True)
class Block:
    """The time that each model took for the same examples, in seconds of engine time."""

    examples: int
    baseline_s: float
    candidate_s: float

    @property
    def ratio(self) -> float:
        """Return the candidate's throughput, the baseline's being 1."""
        return self.baseline_s / self.candidate_s


# Takes what was seen of a suite, the baseline's answers, the candidate's, and the blocks.
Futile = Callable[[Suite, Answered, Answered, Sequence[Block]], bool]


@dataclass(slots=True)
class _Record:
    """Outputs by the examples' index, and examples and seconds of each block; by side and suite."""

    outputs: dict[tuple[Side, str], dict[int, EngineOutput]]
    seconds: dict[tuple[Side, str], list[tuple[int, float]]]

    def blocks(self, name: str) -> list[Block]:
        pairs = zip(self.seconds["baseline", name], self.seconds["candidate", name], strict=True)
        return [Block(examples, old, new) for (examples, old), (_, new) in pairs]


class Pair:
    """Two subjects and the suites that they are tested on.

    futile: receives what was seen of a suite after each turn (both models' answers and the
    blocks) and returns whether to stop there.
    suites: by name, reduced to the examples that were run where they were stopped. blocks: how long
    each took, by suite. own_inputs: by suite, what the candidate alone answers after the turns,
    unless the suite was stopped.
    """

    def __init__(
        self,
        subjects: Mapping[Side, Subject],
        suites: Sequence[Suite],
        observer: StepObserver,
        futile: Futile | None = None,
        own_inputs: Mapping[str, Suite] | None = None,
    ) -> None:
        self._subjects = subjects
        self.suites = {suite.name: suite for suite in suites}
        self._observer = observer
        self._futile = futile
        self._own_inputs = dict(own_inputs or {})
        self._done = 0
        self._total = _LOAD_UNITS + 2 * sum(len(suite.examples) for suite in suites)
        self._total += sum(len(inputs.examples) for inputs in self._own_inputs.values())
        self._resident = _fit_together(list(subjects.values()))
        self._warm: set[Side] = set()
        self._orders = {suite.name: _order(suite.examples) for suite in suites}
        self._answered: dict[tuple[Side, str], Answered] = {}
        self._own_answered: dict[str, Answered] = {}
        self.blocks: dict[str, list[Block]] = {}

    @contextmanager
    def running(self) -> Iterator["Pair"]:
        """Stop both engines at the end."""
        try:
            yield self
        except BaseException:  # KeyboardInterrupt too: both engines must stop; re-raised
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

    def own_answered(self, name: str) -> Answered | None:
        """Return the candidate's answers to the user's own inputs; None where it answered none."""
        return self._own_answered.get(name)

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

    def report_step(self, name: str) -> None:
        """Tell the observer that a step has begun, with how much of the run is done."""
        self._observer.step(name, self._done, self._total)

    def measure_memory(self) -> None:
        """Stop both engines and record their peak memory."""
        for subject in self._subjects.values():
            subject.unload()

    def run(self) -> None:
        """Run every suite on both models. Blocking, minutes. Raises EngineFailure, InvalidSuite."""
        record = _Record({}, {})
        self._load()
        parts = {name: self._parts(suite) for name, suite in self.suites.items()}
        active, turn = list(self.suites.values()), 0
        while active:
            self._run_turn(turn, {suite.name: parts[suite.name][turn] for suite in active}, record)
            turn += 1
            unfinished = [suite for suite in active if turn < len(parts[suite.name])]
            active = [suite for suite in unfinished if not self._stop(suite, record)]
        for suite in self.suites.values():
            for side in SIDES:
                self._answered[side, suite.name] = self._read(side, suite, record)
            self.blocks[suite.name] = record.blocks(suite.name)
        for name, inputs in self._own_inputs.items():
            self._own_answered[name] = self._answer_own_inputs(name, inputs)

    def _answer_own_inputs(self, name: str, inputs: Suite) -> Answered:
        self.report_step(f"{name}: inputs of {inputs.source}")
        self._make_room("candidate")
        subject = self._subjects["candidate"]
        outputs = subject.run(works(subject, inputs)).outputs
        self._done += len(inputs.examples)
        offsets = self._answered["candidate", name].label_offsets
        return read_own_inputs(subject, inputs, outputs, offsets)

    def _load(self) -> None:
        """Load both engines at the same time where both fit: most of a load uses one core."""
        self.report_step("loading both models")
        self._done += _LOAD_UNITS
        if not self._resident:
            return
        for subject in self._subjects.values():
            subject.begin_load()
        for suite in self.suites.values():
            # Prompts and language models take seconds: they are made while the engines load.
            for subject in self._subjects.values():
                subject.task(suite.spec)
        for subject in self._subjects.values():
            subject.load()

    def _parts(self, suite: Suite) -> list[Sequence[int]]:
        """Return the indices of the examples of each turn."""
        size = len(suite.examples)
        if not self._resident:
            ends = [round(size * share) for share in _TURNS_LOADING]
        elif self._futile is None:
            ends = [round(size * share) for share in _TURNS_RESIDENT]
        else:
            ends = _looks(size)
        order = self._orders[suite.name]
        return [order[begin:end] for begin, end in pairwise([0, *ends])]

    def _run_turn(self, turn: int, parts: Mapping[str, Sequence[int]], record: "_Record") -> None:
        """Run a part of each suite on both models: block by block, or model by model."""
        active = [self.suites[name] for name in parts]
        if self._resident:
            for side in SIDES:
                self._warm_up(side, active)
            for suite in active:
                for number, block in enumerate(_blocks(parts[suite.name])):
                    for side in _in_turn(turn + number):
                        self._run_block(side, suite, block, record)
            return
        for side in _in_turn(turn):
            self._make_room(side)
            self._warm_up(side, active)
            for suite in active:
                for block in _blocks(parts[suite.name]):
                    self._run_block(side, suite, block, record)

    def _run_block(self, side: Side, suite: Suite, block: Sequence[int], record: "_Record") -> None:
        self.report_step(f"{suite.name}: {side}")
        examples = [suite.examples[index] for index in block]
        batch = self._subjects[side].run(works(self._subjects[side], suite, examples))
        outputs = record.outputs.setdefault((side, suite.name), {})
        outputs.update(zip(block, batch.outputs, strict=True))
        seconds = record.seconds.setdefault((side, suite.name), [])
        seconds.append((len(block), batch.seconds))
        self._done += len(block)

    def _read(self, side: Side, suite: Suite, record: "_Record") -> Answered:
        """Return the answers to what was run of a suite, in the examples' order."""
        outputs = record.outputs[side, suite.name]
        return read(self._subjects[side], suite, [outputs[index] for index in sorted(outputs)])

    def _stop(self, suite: Suite, record: "_Record") -> bool:
        """Return whether the rest of a suite would change nothing; it is cut to what was run."""
        if self._futile is None:
            return False
        seen = suite.among(sorted(record.outputs["candidate", suite.name]))
        baseline, candidate = (self._read(side, seen, record) for side in SIDES)
        if not self._futile(seen, baseline, candidate, record.blocks(suite.name)):
            return False
        self._total -= 2 * (len(suite.examples) - len(seen.examples))
        if (inputs := self._own_inputs.pop(suite.name, None)) is not None:
            self._total -= len(inputs.examples)
        self.suites[suite.name] = seen
        return True

    def _warm_up(self, side: Side, suites: Sequence[Suite]) -> None:
        # The first work of each kind sets up kernels and buffers, which must not count. Words are
        # in reverse order so that the prefix cache does not hold the examples.
        if self._resident and side in self._warm:
            return
        self._warm.add(side)
        for suite in suites:
            task = self._subjects[side].task(suite.spec)
            requests = [
                replace(e.request, text=" ".join(reversed(e.request.text.split())))
                for e in suite.examples[:_WARM_UP]
            ]
            self._subjects[side].run([_shortened(task.plan(request)) for request in requests])

    def _make_room(self, side: Side) -> None:
        if not self._resident:
            for other in SIDES:
                if other != side:
                    self._subjects[other].unload()


def _shortened(work: EngineWork) -> EngineWork:
    # Later tokens need the same memory as the first ones.
    if isinstance(work, GenerateWork):
        return replace(work, max_tokens=min(work.max_tokens, _WARM_UP_TOKENS))
    return work


def _order(examples: Sequence[Example]) -> list[int]:
    """Return the examples' indices in the order in which they are run, the same in every run.

    One example of each group first, each time another member of it, then the next, so that a look
    at a part of a suite sees as many independent texts as it can. Within a round the order is that
    of a hash: the order of a file may follow labels or subjects.
    """
    members: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        members.setdefault(example.group, []).append(index)
    ranked = []
    for number, found in enumerate(members.values()):
        for place, index in enumerate(found):
            digest = hashlib.sha256(f"narrowgate-order:{examples[index].id}".encode()).digest()
            ranked.append(((place - number) % len(found), digest, index))
    return [index for _, _, index in sorted(ranked)]


def _in_turn(number: int) -> tuple[Side, Side]:
    return SIDES if number % 2 == 0 else (SIDES[1], SIDES[0])


def _blocks(part: Sequence[int]) -> list[Sequence[int]]:
    """Return a turn's indices in the blocks that are timed, of about equal size."""
    count = min(max(len(part) // _BLOCK, 1), _MOST_BLOCKS)
    ends = [round(len(part) * number / count) for number in range(count + 1)]
    return [part[begin:end] for begin, end in pairwise(ends) if end > begin]


def _looks(size: int) -> list[int]:
    """Return how many examples have been run at each look, with early stopping."""
    looks = [min(round(size / 12), _FIRST_LOOK)]
    while 0 < looks[-1] * _NEXT_LOOK < size / 2:
        looks.append(looks[-1] * _NEXT_LOOK)
    return [*looks, size // 2, size]


def _fit_together(subjects: Sequence[Subject]) -> bool:
    needed = 0
    for subject in subjects:
        accelerator = subject.settings.accelerator
        if not isinstance(accelerator, CpuAccelerator):
            # An engine reserves its share of GPU memory at once, so two do not fit.
            return False
        needed += weight_bytes(subject.folder) + accelerator.kv_cache_gib * 2**30 + _ENGINE_BYTES
    return needed < 0.9 * psutil.virtual_memory().available
