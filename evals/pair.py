"""Baseline and candidate on the same examples, in turns, so that both see the same machine.

The order is baseline, candidate, candidate, baseline, ...: another program that slows the machine
for a while slows both models. Where both stay loaded, they take turns after each block.

With a stopping rule each model's measurement of a suite ends by its own answers. What is paired
(loss, flips, speed) is computed on the candidate's examples, and the baseline is measured at least
as far as the candidate. What is stated of the baseline alone is computed on the examples up to the
baseline's own end, whether or not the candidate needed more of its answers.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import psutil

from evals.answers import Answered, read, read_own_inputs, works
from evals.subject import Subject, weight_bytes
from evals.suite import Example, Suite, calibration_half
from evals.verdict import Judgement
from serving.contracts.answer import Prediction
from serving.contracts.engine import EngineOutput, EngineWork, GenerateWork
from serving.contracts.settings import CpuAccelerator
from serving.contracts.task_spec import ClassificationSpec
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
# clearly, and a translation suite has a dozen directions for each text. Where answers are
# generated, a batch takes as long as its longest answer, almost whatever its size is: on two cores
# of an AMD EPYC an INT8 model of 135M took 24, 27, 35 and 33 s for 8, 16, 16 and 32 inputs of
# `ner`, and 72 s for 104.
_FIRST_LOOK, _FIRST_LOOK_GENERATED = 8, 48
# A part is timed in blocks, for an interval of the ratio. In smaller ones an engine's batches are
# not full.
_BLOCK, _BLOCK_GENERATED = 16, 48
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


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """Decides at each look whether a model can still pass a task; returns why it cannot, or None.

    Neither function sees the other model's answers: what is stated of a model must not depend on
    them. candidate: takes what was seen of a suite, the candidate's answers to it, and the blocks.
    baseline: takes the same without the blocks; None where the baseline is not judged, so that its
    measurement ends with the candidate's.
    """

    candidate: Callable[[Suite, Answered, Sequence[Block]], Judgement | None]
    baseline: Callable[[Suite, Answered], Judgement | None] | None = None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was run of a suite. indices: of its examples in the whole suite, ascending."""

    suite: Suite
    indices: Sequence[int]


@dataclass(frozen=True, slots=True)
class _End:
    """Where a model's measurement of a suite was stopped, and why."""

    seen: _Seen
    reason: Judgement


@dataclass(slots=True)
class _Record:
    """Outputs by the examples' index, and examples and seconds of each block; by side and suite.

    Only blocks that both models ran are timed.
    """

    outputs: dict[tuple[Side, str], dict[int, EngineOutput]]
    seconds: dict[tuple[Side, str], list[tuple[int, float]]]

    def blocks(self, name: str) -> list[Block]:
        pairs = zip(self.seconds["baseline", name], self.seconds["candidate", name], strict=True)
        return [Block(examples, old, new) for (examples, old), (_, new) in pairs]


class Pair:
    """Two subjects and the suites that they are tested on.

    stopping: asked after each turn; None where every suite is run to its end.
    blocks: how long each took that both models ran, by suite. own_inputs: by suite, what the
    candidate alone answers after the turns, unless it was stopped there.
    """

    def __init__(
        self,
        subjects: Mapping[Side, Subject],
        suites: Sequence[Suite],
        observer: StepObserver,
        stopping: StoppingRule | None = None,
        own_inputs: Mapping[str, Suite] | None = None,
    ) -> None:
        self._subjects = subjects
        self._suites = {suite.name: suite for suite in suites}
        self._observer = observer
        self._stopping = stopping
        self._own_inputs = dict(own_inputs or {})
        self._ends: dict[tuple[Side, str], _End] = {}
        self._done = 0
        self._total = _LOAD_UNITS + 2 * sum(len(suite.examples) for suite in suites)
        self._total += sum(len(inputs.examples) for inputs in self._own_inputs.values())
        self._resident = _fit_together(list(subjects.values()))
        self._warm: set[Side] = set()
        self._orders = {suite.name: _order(suite.examples) for suite in suites}
        self._answered: dict[tuple[Side, str], Answered] = {}
        self._compared: dict[str, Answered] = {}
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

    def suite(self, side: Side, name: str) -> Suite:
        """Return a suite up to where a model's measurement ended."""
        end = self._end(side, name)
        return self._suites[name] if end is None else end.seen.suite

    def stopped(self, side: Side, name: str) -> Judgement | None:
        """Return why a model was measured on a part of a suite only; None where on all of it."""
        end = self._end(side, name)
        return None if end is None else end.reason

    def prediction(self, side: Side, name: str, index: int) -> Prediction:
        """Return a model's answer to an example; the first call runs every suite on both."""
        return self.answered(side, name).predictions[index]

    def answered(self, side: Side, name: str) -> Answered:
        """Return a model's answers to `suite(side, name)`."""
        if not self._answered:
            self.run()
        return self._answered[side, name]

    def compared(self, name: str) -> Answered:
        """Return the baseline's answers to the candidate's examples, for what is paired."""
        if not self._answered:
            self.run()
        return self._compared[name]

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
        # At the same time: each waits for its own process.
        with ThreadPoolExecutor(len(self._subjects)) as pool:
            list(pool.map(lambda subject: subject.unload(), self._subjects.values()))

    def run(self) -> None:
        """Run every suite on both models. Blocking, minutes. Raises EngineFailure, InvalidSuite."""
        record = _Record({}, {})
        self._load()
        parts = {name: self._parts(suite) for name, suite in self._suites.items()}
        active, turn = list(self._suites), 0
        while active:
            self._run_turn(turn, {name: parts[name][turn] for name in active}, record)
            turn += 1
            active = [name for name in active if turn < len(parts[name])]
            for name in active:
                self._look(name, record)
            active = [name for name in active if self._measured(name)]
        for name in self._suites:
            for side in SIDES:
                self._answered[side, name] = self._read(side, self._judged_on(side, name), record)
            self._compared[name] = self._read(
                "baseline", self._judged_on("candidate", name), record
            )
            self.blocks[name] = record.blocks(name)
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
        for suite in self._suites.values():
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
        elif self._stopping is None:
            ends = [round(size * share) for share in _TURNS_RESIDENT]
        else:
            ends = _looks(size, is_generated=_is_generated(suite))
        order = self._orders[suite.name]
        return [order[begin:end] for begin, end in pairwise([0, *ends])]

    def _run_turn(self, turn: int, parts: Mapping[str, Sequence[int]], record: "_Record") -> None:
        """Run a part of each suite on both models: block by block, or model by model.

        A model that has ended on a suite is left out.
        """
        if self._resident:
            for side in SIDES:
                self._warm_up(side, list(parts))
            for name, part in parts.items():
                for number, block in enumerate(self._blocks(name, part)):
                    for side in self._measured(name, _in_turn(turn + number)):
                        self._run_block(side, name, block, record)
            return
        for side in _in_turn(turn):
            names = [name for name in parts if self._measured(name, (side,))]
            if not names:
                continue
            self._make_room(side)
            self._warm_up(side, names)
            for name in names:
                for block in self._blocks(name, parts[name]):
                    self._run_block(side, name, block, record)

    def _blocks(self, name: str, part: Sequence[int]) -> list[Sequence[int]]:
        """Return a turn's indices in the blocks that are timed, of about equal size."""
        least = _BLOCK_GENERATED if _is_generated(self._suites[name]) else _BLOCK
        count = min(max(len(part) // least, 1), _MOST_BLOCKS)
        ends = [round(len(part) * number / count) for number in range(count + 1)]
        return [part[begin:end] for begin, end in pairwise(ends) if end > begin]

    def _run_block(self, side: Side, name: str, block: Sequence[int], record: "_Record") -> None:
        self.report_step(f"{name}: {side}")
        suite = self._suites[name]
        examples = [suite.examples[index] for index in block]
        batch = self._subjects[side].run(works(self._subjects[side], suite, examples))
        outputs = record.outputs.setdefault((side, name), {})
        outputs.update(zip(block, batch.outputs, strict=True))
        if "candidate" in self._measured(name):
            record.seconds.setdefault((side, name), []).append((len(block), batch.seconds))
        self._done += len(block)

    def _read(self, side: Side, seen: _Seen, record: "_Record") -> Answered:
        """Return a model's answers to what was run of a suite, in the examples' order."""
        outputs = record.outputs[side, seen.suite.name]
        return read(self._subjects[side], seen.suite, [outputs[index] for index in seen.indices])

    def _judged_on(self, side: Side, name: str) -> _Seen:
        if (end := self._end(side, name)) is not None:
            return end.seen
        return _Seen(self._suites[name], range(len(self._suites[name].examples)))

    def _end(self, side: Side, name: str) -> _End | None:
        if side == "baseline" and (self._stopping is None or self._stopping.baseline is None):
            side = "candidate"
        return self._ends.get((side, name))

    def _measured(self, name: str, sides: Sequence[Side] = SIDES) -> list[Side]:
        """Return which of these models are measured further on a suite.

        The baseline is as long as the candidate is, whose loss and speed are compared with it.
        """
        is_candidate = self._end("candidate", name) is None
        is_baseline = is_candidate or self._end("baseline", name) is None
        measured = {"baseline": is_baseline, "candidate": is_candidate}
        return [side for side in sides if measured[side]]

    def _look(self, name: str, record: "_Record") -> None:
        """Stop each model that cannot pass a task any more; the order of the two is no matter."""
        if (rule := self._stopping) is None:
            return
        for side in SIDES:
            if self._end(side, name) is not None:
                continue
            indices = sorted(record.outputs[side, name])
            seen = _Seen(self._suites[name].among(indices), indices)
            reason: Judgement | None = None
            if side == "candidate":
                answered = self._read(side, seen, record)
                reason = rule.candidate(seen.suite, answered, record.blocks(name))
            elif rule.baseline is not None:
                reason = rule.baseline(seen.suite, self._read(side, seen, record))
            if reason is not None:
                self._ends[side, name] = _End(seen, reason)
        if self._end("candidate", name) is not None:
            self._own_inputs.pop(name, None)
        self._total = self._done + self._left(record)

    def _left(self, record: "_Record") -> int:
        """Return how many answers are still to be measured, should no model be stopped again."""
        suites = sum(
            len(suite.examples) - len(record.outputs[side, name])
            for name, suite in self._suites.items()
            for side in self._measured(name)
        )
        return suites + sum(len(inputs.examples) for inputs in self._own_inputs.values())

    def _warm_up(self, side: Side, names: Sequence[str]) -> None:
        # The first work of each kind sets up kernels and buffers, which must not count. Words are
        # in reverse order so that the prefix cache does not hold the examples.
        if self._resident and side in self._warm:
            return
        self._warm.add(side)
        for suite in (self._suites[name] for name in names):
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
    at a part of a suite sees as many independent texts as it can. The first of each group is the
    one that `Suite.independent` chooses of its half. Within a round the order is that of a hash:
    the order of a file may follow labels or subjects.
    """
    members: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        members.setdefault(example.group, []).append(index)
    ranked, numbers = [], {True: 0, False: 0}
    for group, found in members.items():
        half = calibration_half(group)
        for place, index in enumerate(found):
            digest = hashlib.sha256(f"narrowgate-order:{examples[index].id}".encode()).digest()
            ranked.append(((place - numbers[half]) % len(found), digest, index))
        numbers[half] += 1
    return [index for _, _, index in sorted(ranked)]


def _in_turn(number: int) -> tuple[Side, Side]:
    return SIDES if number % 2 == 0 else (SIDES[1], SIDES[0])


def _is_generated(suite: Suite) -> bool:
    return not isinstance(suite.spec, ClassificationSpec)


def _looks(size: int, *, is_generated: bool) -> list[int]:
    """Return how many examples have been run at each look, with early stopping."""
    if is_generated:
        looks = [min(size // 4, _FIRST_LOOK_GENERATED)]
    else:
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
