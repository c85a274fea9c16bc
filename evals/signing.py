"""The gate's statement about one model, and its signature."""

import platform
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from typing import Any

from evals.subject import Subject as TestedModel
from evals.subject import precision_of, recipe_of
from serving.artifacts.envelope import signed_envelope
from serving.artifacts.manifest import Manifest
from serving.contracts.attestation import (
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    Artifact,
    Engine,
    GatePredicate,
    Pair,
    Statement,
    Subject,
    TaskProbes,
    TaskResult,
)

_TOOLS = ("lm-eval", "numpy", "sacrebleu", "scipy", "transformers", "model-signing")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a model's engine reported while it was loaded."""

    hardware: str
    kernels: dict[str, str]
    probes: dict[str, TaskProbes]


@dataclass(frozen=True, slots=True)
class GateRun:
    """What the statements about both models of a run share. baseline: the 16-bit model's digest."""

    date: datetime
    baseline: str
    max_model_len: int
    seed: int
    weight_bytes: Pair
    memory_bytes: Pair

    def predicate(
        self, model: TestedModel, manifest: Manifest, results: dict[str, TaskResult], loaded: Loaded
    ) -> GatePredicate:
        """Return the statement about one model, without checks for general damage."""
        is_baseline = manifest.root == self.baseline
        return GatePredicate(
            narrowgate=metadata.version("narrowgate"),
            date=self.date,
            artifact=Artifact(
                files=manifest.files,
                precision=precision_of(model.folder),
                recipe=recipe_of(model.folder),
                weight_bytes=_of_one(self.weight_bytes, is_baseline=is_baseline),
                memory_bytes=_of_one(self.memory_bytes, is_baseline=is_baseline),
            ),
            baseline=self.baseline,
            engine=Engine(
                name="vllm",
                version=model.version,
                max_model_len=self.max_model_len,
                hardware=loaded.hardware,
                arguments=model.arguments,
                environment=model.environment,
                kernels=loaded.kernels,
            ),
            tools={"python": platform.python_version(), **{t: metadata.version(t) for t in _TOOLS}},
            seed=self.seed,
            tasks=results,
            probes=loaded.probes,
        )


def _of_one(pair: Pair, *, is_baseline: bool) -> Pair:
    return Pair(baseline=pair.baseline, candidate=pair.baseline) if is_baseline else pair


def make_statement(name: str, root: str, predicate: GatePredicate) -> Statement:
    """Return the in-toto statement about one model, validated with in-toto's library.

    name: of the model, informative. root: its digest, hex.
    """
    statement = Statement(
        type=STATEMENT_TYPE,
        subject=(Subject.of(name, root),),
        predicate_type=PREDICATE_TYPE,
        predicate=predicate,
    )
    _check_as_in_toto(statement.to_payload())
    return statement


def sign(statement: Statement, signer: Any) -> bytes:
    """Sign a statement and return the DSSE envelope's bytes."""
    return signed_envelope(statement.to_payload(), signer)


def _check_as_in_toto(payload: bytes) -> None:
    from google.protobuf import json_format
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement as InTotoStatement

    parsed = json_format.Parse(payload, statement_pb2.Statement())
    InTotoStatement.copy_from_pb(parsed).validate()
