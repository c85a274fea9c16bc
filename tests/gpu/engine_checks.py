"""Checks of vLLM on a GPU, with the package's own engine arguments and scoring code.

    python -m tests.gpu.engine_checks --model FOLDER --out DIR

FOLDER is a checkpoint: 16-bit or quantized. Writes DIR/engine_checks.json after each step. The
status is 1 where a check fails and 2 where there is no GPU; with `--rehearse` everything runs on
the CPU with few repetitions.

1. The engine loads: seconds, memory, tokens of the KV cache, and the kernels that vLLM chose.
2. For a 16-bit checkpoint: label log-probabilities of the built-in tasks agree with those that
   transformers computes in float32 on the CPU.
3. Labels scored a second, with and without a shared prefix, and tokens decoded a second.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from serving.artifacts.checkpoint import Checkpoint
from serving.contracts.engine import ScoreWork, ScoringPoint
from serving.contracts.settings import CpuAccelerator, GpuAccelerator, ModelSettings
from serving.local.deployment import offline_arguments
from serving.local.offline import OfflineEngine
from serving.local.offline_work import (
    device_name,
    engine_version,
    kernels,
    peak_memory,
    run_scoring,
)
from tests.gpu.engine_speed import cache_tokens, decode_rate, scoring_rate
from tests.gpu.pack_model import prompts_of
from tests.gpu.torch_checks import TOLERANCE, label_logprobs

_CONCURRENT = (1, 16, 64)
_REPEATS = 7
REPORT = "engine_checks.json"


def main() -> int:
    """Run every check and return the process's status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, few repetitions")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.rehearse:
        print("no GPU: nothing was checked", file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    return check_engine(args.model, args.out, eager=args.eager, rehearse=args.rehearse)


def check_engine(model: Path, out: Path, *, eager: bool = False, rehearse: bool = False) -> int:
    """Check one checkpoint, write the report after each step, and return the status."""
    report: dict[str, Any] = {"model": str(model), "torch": torch.__version__, "eager": eager}

    def write(**facts: object) -> None:
        report.update(facts)
        print(facts, flush=True)
        (out / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")

    started = time.perf_counter()
    engine = OfflineEngine.start(*_arguments(model, eager=eager, rehearse=rehearse))
    try:
        write(
            vllm=engine.call(engine_version),
            device=engine.call(device_name),
            load_s=engine.load_s,
            cache_tokens=engine.call(cache_tokens),
            kernels=engine.call(kernels),
        )
        engine.call(run_scoring, [ScoreWork((0, 1, 2, 3), (ScoringPoint((), (0, 1)),))])
        write(start_to_first_label_s=time.perf_counter() - started)
        difference = None if _is_quantized(model) else _largest_difference(engine, model)
        write(largest_difference=difference, tolerance=TOLERANCE["bfloat16"])
        _measure(engine, write, rehearse=rehearse)
        write(peak_memory_gib=engine.call(peak_memory) / 2**30)
    finally:
        engine.stop()
    return int(difference is not None and difference > TOLERANCE["bfloat16"])


def _arguments(
    model: Path, *, eager: bool, rehearse: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    accelerator = CpuAccelerator(kind="cpu") if rehearse else GpuAccelerator(kind="gpu", type=None)
    settings = ModelSettings(id="model", source=str(model), accelerator=accelerator)
    kwargs, environment = offline_arguments(settings, Checkpoint(str(model), None))
    # The process of the engine then knows the memory that the GPU has held.
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return {**kwargs, "enforce_eager": eager or rehearse, "skip_tokenizer_init": True}, environment


def _is_quantized(model: Path) -> bool:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return "quantization_config" in config


def _largest_difference(engine: OfflineEngine, model: Path) -> float:
    """Return the largest difference from float32, nats, of probabilities over the labels."""
    from transformers import LlamaForCausalLM

    prompts = prompts_of(model)
    works = [ScoreWork(tuple(p["ids"]), (ScoringPoint((), tuple(p["labels"])),)) for p in prompts]
    rows = [torch.tensor(output.logprobs[0]) for output in engine.call(run_scoring, works)]
    found = torch.cat([torch.log_softmax(row, dim=-1) for row in rows])
    reference = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    return float((found - label_logprobs(reference, prompts)).abs().max())


def _measure(engine: OfflineEngine, write: Any, *, rehearse: bool) -> None:
    repeats = 1 if rehearse else _REPEATS
    scoring, decoding = [], []
    for concurrent in _CONCURRENT[:1] if rehearse else _CONCURRENT:
        for shared in (True, False):
            rate = engine.call(scoring_rate, concurrent, repeats, shared=shared)
            scoring.append({"concurrent": concurrent, "shared": shared, **rate})
            write(scoring=scoring)
        rate_of_tokens = engine.call(decode_rate, concurrent, repeats)
        decoding.append({"concurrent": concurrent, "tokens_per_s": rate_of_tokens})
        write(decoding=decoding)


if __name__ == "__main__":
    sys.exit(main())
