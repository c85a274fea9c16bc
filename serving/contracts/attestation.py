"""A gate's signed findings on one model: the only output of the offline flow that serving reads.

An in-toto Statement v1 (https://in-toto.io/Statement/v1) whose subject is the model's digest and
whose predicate holds, for each task, the verdict with all of its numbers.
"""

import bisect
import hashlib
import json
from datetime import UTC, datetime
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.contracts.engine_arguments import ArgumentValue
from serving.contracts.task_spec import TaskSpec

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:narrowgate:gate:v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
FILE = "attestation.json"
"""Name of the DSSE envelope in an artifact's folder."""

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Verdict(StrEnum):
    """A gate's decision on one task."""

    PASS = "pass"  # noqa: S105  # not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class CalibrationMap(_Frozen):
    """A non-decreasing map from raw confidence to the probability of being right.

    Between the knots linear, outside constant. Evaluation and serving use this one function, so a
    threshold means the same in both.
    """

    knots: tuple[float, ...] = Field(min_length=1, description="raw confidences, increasing")
    values: tuple[Share, ...] = Field(min_length=1, description="probabilities at the knots")

    @model_validator(mode="after")
    def _monotonic(self) -> Self:
        if len(self.knots) != len(self.values):
            raise ValueError("as many values as knots are needed")
        if any(a >= b for a, b in pairwise(self.knots)):
            raise ValueError("knots must increase")
        if any(a > b for a, b in pairwise(self.values)):
            raise ValueError("values must not decrease")
        return self

    def calibrated(self, raw: float) -> float:
        """Return the probability of being right at a raw confidence."""
        right = bisect.bisect_right(self.knots, raw)
        if right == 0:
            return self.values[0]
        if right == len(self.knots):
            return self.values[-1]
        low, high = self.knots[right - 1], self.knots[right]
        share = (raw - low) / (high - low)
        start, end = self.values[right - 1], self.values[right]
        # Kept between its ends: rounding must not make the map decrease.
        return min(max(start + share * (end - start), start), end)


class Certificate(_Frozen):
    """The most permissive threshold whose error bound holds; `threshold` is None where none does.

    threshold: calibrated confidence from which an answer is accepted. bound: the share of errors
    among accepted answers is at most this, at 95 % confidence. coverage: share of the tested
    examples that are accepted.
    """

    threshold: Share | None
    target_error: Share
    bound: Share
    coverage: Share
    errors: Count
    accepted: Count
    tested: Count


class Interval(_Frozen):
    """An estimate with one-sided 95 % bounds, in units of the metric."""

    estimate: float
    lower: float
    upper: float
    method: str

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.lower <= self.estimate <= self.upper:
            raise ValueError("the bounds must enclose the estimate")
        return self


class SuiteRecord(_Frozen):
    """The examples on which a task was tested. digest: over all of them; n: how many were used."""

    name: str
    source: str
    digest: str
    n: Count


class Difference(_Frozen):
    """How far a file's inputs are from a suite's in one respect, and whether that is visible.

    distance, limit: shares in [0, 1], or a cosine distance in [0, 2] for embedding. limit: what
    chance explains, and at least a distance that matters. finding: both sides' numbers, in words.
    """

    respect: Literal["length", "language", "labels", "embedding"]
    distance: float = Field(ge=0.0)
    limit: float = Field(ge=0.0)
    finding: str

    @property
    def is_visible(self) -> bool:
        """Return whether the distance is larger than its limit."""
        return self.distance > self.limit


class ReferenceLabels(_Frozen):
    """Answers of a reference model that count as right in place of labels.

    model: `provider/model`. n: inputs with its answer, of the suite and of the user's own file.
    left_out: inputs without a usable answer, which were not tested. compared: inputs that have a
    label of their own. agreeing: of these, on how many it is the reference's answer; for a
    translation, on how many both resemble each other as the task accepts it.
    """

    model: str
    n: Count
    left_out: Count = 0
    compared: Count = 0
    agreeing: Count = 0

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if not self.agreeing <= self.compared <= self.n:
            raise ValueError("agreeing, compared and n must not decrease")
        return self


class Population(_Frozen):
    """The inputs like which the error bound holds: a suite's, or those of the user's own file.

    name: the suite's task or the file's name, without its folder. digest: over all of the inputs.
    differences: from the suite, where a file is the population.
    """

    kind: Literal["suite", "file"]
    name: str
    digest: str
    n: Count
    sentence: str = Field(description="which inputs these are, in words")
    differences: tuple[Difference, ...] = ()

    @classmethod
    def of(
        cls,
        kind: Literal["suite", "file"],
        name: str,
        digest: str,
        n: int,
        differences: tuple[Difference, ...] = (),
        reference: str | None = None,
    ) -> Self:
        """Return the population with its sentence. reference: whose answers are the labels."""
        whose = f"suite {name}" if kind == "suite" else name
        labels = "" if reference is None else f", labelled by {reference}"
        return cls(
            kind=kind, name=name, digest=digest, n=n, differences=differences,
            sentence=f"{n:,} input{'' if n == 1 else 's'} of {whose}{labels}",
        )  # fmt: skip

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return a sentence for every respect in which the inputs visibly differ from the suite."""
        return tuple(
            f"{self.name} differs from the suite in {found.respect}: {found.finding} (distance "
            f"{found.distance:.3f}, visible above {found.limit:.3f})"
            for found in self.differences
            if found.is_visible
        )


class Flips(_Frozen):
    """Answers that differ between candidate and baseline, right or wrong."""

    changed: Count
    gained: Count = Field(description="wrong before, right now")
    lost: Count = Field(description="right before, wrong now")
    rate: Share


class Pair(_Frozen):
    """One figure of both models."""

    baseline: float
    candidate: float


class Speed(_Frozen):
    """Throughput on the task's own examples, both models in the same run, in turns.

    Each block of examples is timed on both models. ratio: candidate to baseline, geometric mean
    over the blocks. lower, upper: one-sided 95 % bounds of it (Student's t on the logarithms);
    None where a single block was timed.
    """

    examples_per_s: Pair
    ratio: float = Field(gt=0.0)
    lower: float | None = Field(ge=0.0)
    upper: float | None = Field(ge=0.0)
    blocks: Count
    required: float = Field(ge=0.0, description="lowest acceptable ratio")

    @property
    def finding(self) -> Literal["faster", "slower", "not shown to be faster"]:
        """Return what the bounds prove about the candidate beside the baseline."""
        if self.lower is not None and self.lower > 1.0:
            return "faster"
        if self.upper is not None and self.upper < 1.0:
            return "slower"
        return "not shown to be faster"

    def __str__(self) -> str:
        """Return the finding with its figures, of a model."""
        measured = f"its throughput is {self.ratio:.2f}"
        if self.lower is not None and self.upper is not None:
            measured += f" ({self.lower:.2f} to {self.upper:.2f})"
        return f"{measured} of the baseline's: {self.finding}"


class TaskResult(_Frozen):
    """The gate's finding on one task. more_examples: how many would decide; 0 where decided."""

    verdict: Verdict
    reasons: tuple[str, ...]
    more_examples: Count = 0
    spec_digest: str
    suite: SuiteRecord
    population: Population | None = Field(
        default=None, description="like which inputs the error bound holds; None: the suite's"
    )
    reference: ReferenceLabels | None = Field(
        default=None, description="the model whose answers are the labels; None: the suite's own"
    )
    metric: str
    baseline: float | None
    candidate: Interval | None
    difference: Interval | None
    margin: float | None
    floor: float
    flips: Flips
    invalid: Pair = Field(description="share of outputs that could not be read in full")
    slices: dict[str, Interval] = Field(default_factory=dict, description="difference by slice")
    label_offsets: dict[str, float] | None = Field(
        default=None, description="subtracted from the candidate's label log-probabilities, nats"
    )
    calibration: CalibrationMap | None
    certificate: Certificate | None
    ece_before: float | None
    ece_after: float | None
    speed: Speed | None


class GeneralResult(_Frozen):
    """A check for general damage: a public task that this model does not serve."""

    verdict: Verdict
    reasons: tuple[str, ...]
    more_examples: Count = 0
    n: Count
    baseline: float | None
    difference: Interval | None
    margin: float


class Artifact(_Frozen):
    """The tested model. files: SHA-256 by relative path, of every file."""

    files: dict[str, Hex]
    precision: Literal["16-bit", "int8", "int4"]
    recipe: str | None
    weight_bytes: Pair
    memory_bytes: Pair | None = Field(default=None, description="peak resident, engine process")


class Engine(_Frozen):
    """The engine that ran the models, and everything about it that may change an answer."""

    name: str
    version: str
    max_model_len: int
    hardware: str
    arguments: dict[str, ArgumentValue] = Field(
        description="engine arguments that may change an answer"
    )
    environment: dict[str, str] = Field(
        description="environment variables of the engine that may change an answer"
    )
    kernels: dict[str, str] = Field(
        default_factory=dict, description="what computes each kind of layer; empty: not recorded"
    )

    @property
    def major(self) -> str:
        """Return the part of the version within which behaviour is promised to stay.

        Releases below 1.0 promise it only within a minor version (semantic versioning).
        """
        parts = self.version.split(".")
        return ".".join(parts[:2]) if parts[0] == "0" else parts[0]


class Probe(_Frozen):
    """One input and the candidate's answer to it, in log-probabilities (natural log).

    prompt: SHA-256 of the prompt's token ids. continuation: token ids after the prompt that are
    scored one by one; empty for a classification, whose labels are scored.
    """

    text: str
    source_language: str | None = None
    target_language: str | None = None
    prompt: Hex
    continuation: tuple[int, ...] = ()
    logprobs: tuple[tuple[float, ...], ...] = Field(min_length=1)


class TaskProbes(_Frozen):
    """A task's probes. tolerance: largest accepted difference of a log-probability, nats."""

    spec: TaskSpec
    tolerance: float = Field(gt=0.0)
    probes: tuple[Probe, ...] = Field(min_length=1)


class GatePredicate(_Frozen):
    """Everything that a gate run found."""

    format: Literal[2] = 2
    narrowgate: str
    date: datetime
    artifact: Artifact
    baseline: Hex = Field(description="digest of the 16-bit model")
    engine: Engine
    tools: dict[str, str]
    seed: int
    tasks: dict[str, TaskResult]
    general: dict[str, GeneralResult] = Field(default_factory=dict)
    probes: dict[str, TaskProbes] = Field(
        default_factory=dict, description="by task: what every engine must answer after loading"
    )

    @property
    def age_days(self) -> float:
        """Return how long ago the gate ran, in days."""
        return (datetime.now(UTC) - self.date).total_seconds() / 86400


class _Digests(_Frozen):
    sha256: Hex


class Subject(_Frozen):
    """The model: its name for people, its digest for programs."""

    name: str
    digest: _Digests

    @classmethod
    def of(cls, name: str, root: str) -> Self:
        """Return the subject for a manifest's root (hex)."""
        return cls(name=name, digest=_Digests(sha256=root))


class Statement(BaseModel):
    """An in-toto Statement v1 about one model."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Subject] = Field(description="exactly one")
    predicate_type: Literal["urn:narrowgate:gate:v1"] = Field(alias="predicateType")
    predicate: GatePredicate

    def to_payload(self) -> bytes:
        """Return the canonical JSON that is signed."""
        return self.model_dump_json(by_alias=True).encode()


def canonical_envelope(document: Any) -> bytes:
    """Return the one byte sequence in which an envelope is written and accepted."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.encode() + b"\n"


def envelope_digest(envelope: bytes) -> str:
    """Return `sha256:` and the hex digest by which an attestation is referred to."""
    return "sha256:" + hashlib.sha256(envelope).hexdigest()
