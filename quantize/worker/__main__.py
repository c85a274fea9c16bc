"""`python -m quantize.worker JOB`: carry out a job and report on standard output."""

import json
import os
import sys
import threading
import traceback
from importlib import import_module, metadata
from pathlib import Path

from quantize.job import Done, Failed, Job, Stage
from quantize.worker.reporter import Reporter

# Imported when needed: each takes seconds, and a machine may lack what another one needs.
_MODULES = {
    "llm-compressor": "quantize.worker.llm_compressor",
    "gptqmodel": "quantize.worker.gptq_model",
    "bitsandbytes": "quantize.worker.bits_and_bytes",
}
_LIBRARIES = (
    "accelerate", "bitsandbytes", "compressed-tensors", "gptqmodel", "llmcompressor", "safetensors",
    "torch", "transformers",
)  # fmt: skip


def main(job_file: Path) -> int:
    """Run the job and return the exit status."""
    # Libraries print to standard output, so reports are written to a copy of it.
    reporter = Reporter(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = Job.model_validate(json.loads(job_file.read_text(encoding="utf-8")))
    # GPTQModel writes a log into the current folder, which is the user's.
    os.chdir(job.out.parent)
    try:
        _run(job, reporter)
    except Exception as error:  # noqa: BLE001  # the process's edge: whatever a library raises
        traceback.print_exc()
        reporter.send(Failed(message=f"{type(error).__name__}: {error}"))
        return 1
    return 0


def _end_with_parent() -> None:
    # The parent holds the other end of standard input, which closes when the parent ends.
    # Not sys.stdin: a thread inside its buffer makes the interpreter abort when it ends.
    while os.read(0, 4096):
        pass
    os._exit(1)


def _run(job: Job, reporter: Reporter) -> None:
    import torch

    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    reporter.send(Stage(name="load"))
    losses = import_module(_MODULES[job.recipe.library]).run(job, reporter)
    accelerator = job.device == "cuda"
    reporter.send(
        Done(
            libraries=_versions(),
            accelerator_name=torch.cuda.get_device_name() if accelerator else None,
            peak_memory_bytes=reporter.peak_memory_bytes(),
            peak_accelerator_bytes=torch.cuda.max_memory_allocated() if accelerator else 0,
            losses=losses,
        )
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
