"""A small model folder, a gate's statement about it, and its signature: for tests of trust."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evals.signing import make_statement, sign
from serving.artifacts.manifest import file_manifest
from serving.artifacts.signing_key import KeyPair, generate_key, load_signer, read_key
from serving.contracts.attestation import (
    FILE,
    Artifact,
    CalibrationMap,
    Certificate,
    Engine,
    Flips,
    GatePredicate,
    Interval,
    Pair,
    SuiteRecord,
    TaskResult,
    Verdict,
)
from serving.contracts.task_spec import TaskSpec

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(range(256)),
    "tokenizer.json": b'{"version": "1.0"}',
    "chat_template.jinja": b"{{ messages }}",
}
# Engine arguments that the gate ran with.
ARGUMENTS: dict[str, str | int | float | bool] = {"dtype": "auto", "enforce_eager": True, "seed": 0}
KNOTS = CalibrationMap(knots=(0.2, 0.6), values=(0.3, 0.95))


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


def result(spec: TaskSpec, verdict: Verdict = Verdict.PASS, **changes: Any) -> TaskResult:
    interval = Interval(estimate=0.0, lower=-0.01, upper=0.01, method="given")
    own = Interval(estimate=0.8, lower=0.75, upper=0.85, method="given")
    return TaskResult(
        **{
            "verdict": verdict,
            "reasons": ("for a test",),
            "spec_digest": spec.digest(),
            "suite": SuiteRecord(name=spec.name, source="test", digest="sha256:0", n=300),
            "metric": "macro_f1",
            "baseline": 0.8,
            "candidate": own,
            "difference": interval,
            "margin": 0.03,
            "floor": 0.5,
            "flips": Flips(changed=3, gained=1, lost=1, rate=0.01),
            "invalid": Pair(baseline=0.0, candidate=0.0),
            "calibration": KNOTS,
            "certificate": Certificate(
                threshold=0.9, target_error=0.1, bound=0.08, coverage=0.5, errors=1, accepted=75,
                tested=150,
            ),
            "ece_before": 0.2,
            "ece_after": 0.05,
            "speed": None,
            **changes,
        }
    )  # fmt: skip


def predicate(folder: Path, tasks: dict[str, TaskResult], **changes: Any) -> GatePredicate:
    return GatePredicate(
        **{
            "narrowgate": "0.1.0",
            "date": datetime.now(UTC),
            "artifact": Artifact(
                files=file_manifest(folder).files,
                precision="int8",
                recipe="int8-w8a8",
                weight_bytes=Pair(baseline=512, candidate=256),
            ),
            "baseline": "0" * 64,
            "engine": Engine(
                name="vllm",
                version="0.29.0",
                max_model_len=2048,
                hardware="a CPU",
                arguments=ARGUMENTS,
                environment={},
            ),
            "tools": {"lm-eval": "0.4.13"},
            "seed": 0,
            "tasks": tasks,
            **changes,
        }
    )


def make_key(folder: Path, name: str = "key") -> KeyPair:
    return generate_key(folder / "keys" / name)


def attest(folder: Path, key: KeyPair, found: GatePredicate, root: str | None = None) -> Path:
    """Sign and store; root: of another model than the folder's, for forgeries."""
    statement = make_statement(folder.name, root or file_manifest(folder).root, found)
    path = folder / FILE
    path.write_bytes(sign(statement, load_signer(read_key(key.private), "key")))
    return path
