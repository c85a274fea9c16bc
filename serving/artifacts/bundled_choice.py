"""Which bundled model serves under one id: the quantized one, or the 16-bit one it was made from.

Both have signed attestations of one gate run, and each serves only the tasks that it passed. The
choice is a file in the state folder. It is not signed: a replica verifies whichever model it loads.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from serving.contracts.attestation import GatePredicate, Verdict
from serving.host.safe_write import replace_file

Prefer = Literal["speed", "memory"]


@dataclass(frozen=True, slots=True)
class BundledChoice:
    """Whether the quantized model serves, and the reason in words."""

    is_quantized: bool
    reason: str


def choose_bundled(
    quantized: GatePredicate, bits_16: GatePredicate, prefer: Prefer
) -> BundledChoice:
    """Return which of two attested models serves.

    prefer: memory takes the quantized model wherever it passed a task. Otherwise the model that
    passed more tasks serves. Where both passed as many, the quantized one serves only if the lower
    bound of its throughput's ratio is above 1 on each task that it passed.
    """
    passed, passed_16 = _passed(quantized), _passed(bits_16)
    if prefer == "memory" and passed:
        return BundledChoice(
            is_quantized=True, reason=f"memory is preferred, and it passed {_named(passed)}"
        )
    if len(passed) != len(passed_16):
        return BundledChoice(
            is_quantized=len(passed) > len(passed_16),
            reason=f"the quantized model passed {_named(passed)}, in 16 bits {_named(passed_16)}",
        )
    slow = []
    for name in passed:
        speed = quantized.tasks[name].speed
        if speed is None or speed.finding != "faster":
            slow.append(f"{name}: {'its throughput was not measured' if speed is None else speed}")
    if not passed or slow:
        return BundledChoice(
            is_quantized=False,
            reason="; ".join(slow) if slow else "neither model passed a task",
        )
    return BundledChoice(is_quantized=True, reason=f"it is faster on {_named(passed)}")


def choice_file(artifact: Path) -> Path:
    """Return the file beside a quantized bundled model's folder that holds the choice."""
    return artifact.with_name(f"{artifact.name}.choice.json")


def baseline_attestation(artifact: Path) -> Path:
    """Return the folder with the 16-bit model's attestation by the run that gated the artifact.

    Beside the artifact: each recipe's run attests the 16-bit model anew.
    """
    return artifact.with_name(f"{artifact.name}.baseline")


def read_choice(artifact: Path) -> BundledChoice | None:
    """Return the choice of the last start; None where there is none that can be read."""
    try:
        document = json.loads(choice_file(artifact).read_text(encoding="utf-8"))
        return BundledChoice(document["serves"] != "16-bit", str(document["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_choice(artifact: Path, choice: BundledChoice) -> None:
    """Store a choice unless it is stored already. Blocking. Raises OSError."""
    if read_choice(artifact) == choice:
        return
    document = {"serves": "quantized" if choice.is_quantized else "16-bit", "reason": choice.reason}
    replace_file(choice_file(artifact), json.dumps(document).encode())


def _passed(found: GatePredicate) -> list[str]:
    return sorted(name for name, task in found.tasks.items() if task.verdict is Verdict.PASS)


def _named(tasks: list[str]) -> str:
    return ", ".join(tasks) or "no task"
