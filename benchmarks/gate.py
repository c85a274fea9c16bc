"""`python -m benchmarks gate`: evaluation speed, compared with lm-eval's own vLLM backend."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.answers import Answered
    from evals.subject import Subject
    from evals.suite import Suite
    from serving.contracts.answer import Prediction

HELP = "compare evaluation speed with lm-eval's own vLLM backend, interleaved"
TASKS = ("topic", "ner")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--state", type=Path, default=Path(".narrowgate"), metavar="DIR")
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="checkpoint (the bundled one, in STATE)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="each on other examples (3)")
    parser.add_argument(
        "--tasks", nargs="+", default=TASKS, metavar="TASK", help="built-in suites (topic ner)"
    )


@dataclass(slots=True)
class _Measured:
    """Examples a second of one suite, a value a round."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    """Measure and print examples/s of both and their ratio; nothing is judged."""
    os.environ["TQDM_DISABLE"] = "1"
    from evals.suite import built_in_suites
    from serving.artifacts.checkpoint import materialize_bundled
    from serving.host.processor import processor_name
    from serving.tasks.catalog import load_specs

    model = args.model or materialize_bundled(args.state / "models")
    suites = [suite for suite in built_in_suites(load_specs(None)) if suite.name in args.tasks]
    measured = {suite.name: _Measured() for suite in suites}
    with _BareProcess(model) as bare, _GateEvaluation(model) as ours:
        for number in range(args.rounds):
            for suite in suites:
                size = len(suite.examples) // args.rounds
                first, end = number * size, (number + 1) * size
                found = measured[suite.name]
                found.ours.append(size / ours.seconds(suite.between(first, end)))
                found.bare.append(size / bare.seconds(suite.name, first, end))
    document = {
        "machine": processor_name(),
        "cores": os.cpu_count(),
        "rounds": args.rounds,
        "tasks": {name: _row(found) for name, found in measured.items()},
    }
    if args.json:
        print(json.dumps(document))
        return 0
    print(f"{document['machine']}, {document['cores']} cores, {args.rounds} rounds")
    for name, row in document["tasks"].items():
        print(
            f"{name:<14} gate {row['ours']:.1f} examples/s, lm-eval {row['bare']:.1f}, "
            f"ratio {row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})"
        )
    return 0


def _row(found: _Measured) -> dict[str, float]:
    ratios = [one / other for one, other in zip(found.ours, found.bare, strict=True)]
    return {
        "ours": statistics.median(found.ours),
        "bare": statistics.median(found.bare),
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


class _BareProcess:
    """lm-eval with its own vLLM backend, in a separate process."""

    def __init__(self, model: Path) -> None:
        self._process = subprocess.Popen(  # noqa: S603  # our own module
            [sys.executable, "-m", "benchmarks.bare_lm_eval", str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1",
                 "TORCH_COMPILE_DISABLE": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    def __enter__(self) -> "_BareProcess":
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def seconds(self, name: str, first: int, end: int) -> float:
        assert self._process.stdin is not None
        print(json.dumps([name, first, end]), file=self._process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> Any:
        from serving.contracts.errors import EngineFailure

        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise EngineFailure(
                f"lm-eval's process ended with status {self._process.wait()}",
                fix="python -m benchmarks.bare_lm_eval MODEL shows why",
            )
        return json.loads(line)


class _GateEvaluation:
    """A gate's evaluation of one model, harness included."""

    def __init__(self, model: Path) -> None:
        from evals.subject import Subject
        from serving.contracts.settings import Settings

        self._subject = Subject("candidate", model, Settings().models[0])

    def __enter__(self) -> "_GateEvaluation":
        self._subject.load()
        return self

    def __exit__(self, *_: object) -> None:
        self._subject.close()

    def seconds(self, suite: "Suite") -> float:
        from evals.harness import General, run_harness

        started = time.perf_counter()
        run_harness(_SingleModel(self._subject, suite), "candidate", [suite], General())
        return time.perf_counter() - started


class _SingleModel:
    """One model on one suite, with the interface of the harness's adapter."""

    def __init__(self, subject: "Subject", suite: "Suite") -> None:
        self._subject = subject
        self._suite = suite
        self._answered: Answered | None = None

    def prediction(self, side: str, name: str, index: int) -> "Prediction":
        from evals.answers import answer

        if self._answered is None:
            self._answered = answer(self._subject, self._suite)
        return self._answered.predictions[index]

    def call(self, side: str, function: Any, *args: Any, **kwargs: Any) -> Any:
        return self._subject.call(function, *args, **kwargs)
