"""Candidates: three ways to give a text a label, as linear maps with a softmax. numpy alone."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from serving.contracts.errors import EngineFailure, HeadRefused
from serving.evidence.heads.arrays import DamagedArrays, pack, unpack

Kind = Literal["recalibrated", "head", "both"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MAX_LABELS = 256
"""A task has at most 150. Bounds an artifact to about 1 MB."""

FORMAT = 1
CURVE_POINTS = 100
DIMENSIONS = 384
"""Of the vectors of serving.embedding."""

_EINSUM_ROWS = 16
_MAX_CHARS = 1_000_000
_MAX_BYTES = 4 * 2**20
# serving.tasks.classification.log_probability has the same floor.
_LOG_FLOOR = math.log(1e-12)
_NAMES: Mapping[Kind, str] = {"recalibrated": "model", "head": "head", "both": "both"}

Floats = NDArray[np.float32]
Probabilities = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """What candidates know of n texts.

    vectors: (n, 384), of serving.embedding, or None. chars: (n,) characters of each text.
    log_probabilities: (n, labels) of the local model, natural log, or None where it did not run.
    """

    vectors: Floats | None = None
    chars: NDArray[np.int32] | None = None
    log_probabilities: Floats | None = None

    @classmethod
    def of(
        cls,
        text: str,
        vector: Floats | None = None,
        label_probabilities: Sequence[float] | None = None,
    ) -> Self:
        """Return the inputs of one text. label_probabilities: in the order of the task's labels."""
        logs = None
        if label_probabilities is not None:
            logs = log_probabilities(np.array([label_probabilities], np.float64))
        chars = np.array([min(len(text), _MAX_CHARS)], np.int32)
        return cls(None if vector is None else vector.reshape(1, -1), chars, logs)


def log_probabilities(probabilities: NDArray[np.float64]) -> Floats:
    """Return natural logarithms, at least log(1e-12). probabilities: (n, labels)."""
    logs: Floats = np.log(np.maximum(probabilities, 1e-12)).astype(np.float32)
    return logs


@dataclass(frozen=True, slots=True)
class HeadScope:
    """Whose examples a candidate learns from.

    tenants: a tenant's name, or a pool's where pooled is true. spec_digest: of the task.
    """

    tenants: str
    task: str
    spec_digest: str
    pooled: bool = False

    @property
    def id(self) -> str:
        """Return 32 hex digits; equal for equal scopes, in every replica."""
        parts = (self.tenants, self.task, self.spec_digest, str(self.pooled))
        return hashlib.sha256("\x00".join(parts).encode("utf-8", "replace")).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a candidate comes from.

    scope: id of the scope. encoder: names the encoder of the vectors, empty where none are used.
    model: names the local model whose probabilities are used (its digest), empty where none are.
    method: how it was fitted. rows, rows_digest: the examples that it was fitted on.
    """

    scope: str
    task: str
    spec_digest: str
    encoder: str = ""
    model: str = ""
    method: str = "none"
    rows: int = 0
    rows_digest: str = ""


@dataclass(frozen=True)
class Candidate:
    """Gives texts label probabilities: a softmax over a linear map of the inputs.

    labels: all of the task, in its order. classes: (c,) int16, increasing: the labels that the rows
    of weights stand for; a label that no example had gets probability 0. weights: (c, features)
    float32. bias: (c,) float32. curve: (100, 2) float32: for each coverage of 1 to 100 %, the
    confidence from which that share of texts is accepted, and the share of errors among them, by
    cross-validation on the examples that fitted the candidate; empty where it was not fitted.
    by_label: (labels + 2,) float32, slope, intercept and what each label adds to the logit of the
    confidence, which makes one threshold another one for each label; empty where the confidence is
    the largest probability. Raises HeadRefused for other shapes and values.
    """

    kind: Kind
    labels: tuple[str, ...]
    provenance: Provenance
    classes: NDArray[np.int16]
    weights: Floats
    bias: Floats
    curve: Floats = field(default_factory=lambda: np.empty((0, 2), np.float32))
    by_label: Floats = field(default_factory=lambda: np.empty(0, np.float32))

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise HeadRefused(f"a candidate of the kind {self.kind!r} is not known")
        if not 2 <= len(self.labels) <= MAX_LABELS or len(set(self.labels)) != len(self.labels):
            raise HeadRefused(
                f"a candidate has {len(self.labels)} labels, not 2 to {MAX_LABELS} distinct ones"
            )
        _refuse_classes(self.classes, len(self.labels))
        rows = len(self.classes)
        features = feature_count(self.kind, len(self.labels))
        points = CURVE_POINTS if self.provenance.rows else 0
        for name, array, shape in (
            ("weights", self.weights, (rows, features)),
            ("bias", self.bias, (rows,)),
            ("curve", self.curve, (points, 2)),
            ("by_label", self.by_label, (len(self.labels) + 2 if self.by_label.size else 0,)),
        ):
            _refuse_array(name, array, shape)
        if ((self.curve < 0.0) | (self.curve > 1.0)).any():
            raise HeadRefused("the curve of a candidate holds a value outside [0, 1]")

    @property
    def needs_model(self) -> bool:
        """Return whether the local model's probabilities are needed."""
        return self.kind != "head"

    @property
    def needs_vector(self) -> bool:
        """Return whether the text's vector is needed."""
        return self.kind in ("head", "both")

    @cached_property
    def content(self) -> bytes:
        """Return the candidate as bytes: what is digested, stored and exported."""
        provenance = {name: getattr(self.provenance, name) for name in Provenance.__slots__}
        header = {
            "format": FORMAT,
            "kind": self.kind,
            "labels": list(self.labels),
            "provenance": provenance,
        }
        arrays: dict[str, NDArray[Any]] = {
            "bias": self.bias, "by_label": self.by_label, "classes": self.classes,
            "curve": self.curve, "weights": self.weights,
        }  # fmt: skip
        return pack(header, arrays)

    @cached_property
    def digest(self) -> str:
        """Return `sha256:` and hex digits: the candidate's identity."""
        return content_digest(self.content)

    def probabilities(self, inputs: HeadInputs) -> Probabilities:
        """Return (n, labels), rows summing to 1. About 20 microseconds for one text.

        Raises ValueError where a needed input is missing or has another shape, and EngineFailure
        where an input is not finite.
        """
        features = feature_rows(self.kind, inputs, len(self.labels))
        with np.errstate(over="ignore", invalid="ignore"):
            scores = (_product(features, self.weights) + self.bias).astype(np.float64)
        if not np.isfinite(scores).all():
            raise EngineFailure(f"candidate {self.digest} was given an input that is not finite")
        exps: Probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
        exps /= exps.sum(axis=1, keepdims=True)
        if len(self.classes) == len(self.labels):
            return exps
        found = np.zeros((len(exps), len(self.labels)))
        found[:, self.classes] = exps
        return found

    def confidence(self, probability: float, label: int) -> float:
        """Return the confidence of an answer, on which its threshold is. label: its position."""
        if not self.by_label.size:
            return probability
        slope, intercept, added = (float(self.by_label[at]) for at in (0, 1, 2 + label))
        inside = min(max(probability, 1e-6), 1.0 - 1e-6)
        logit = slope * math.log(inside / (1.0 - inside)) + intercept + added
        return 1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, logit))))

    def named(self, version: int) -> str:
        """Return the name that answers and claims show, such as `head@3`."""
        return f"{_NAMES[self.kind]}@{version}"


def content_digest(content: bytes) -> str:
    """Return the digest that names a candidate's bytes."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def parse_candidate(content: bytes, digest: str) -> Candidate:
    """Return the candidate of stored bytes. digest: what they must have.

    Raises HeadRefused for other bytes, shapes, types, and values that are not finite.
    """
    if len(content) > _MAX_BYTES:
        raise HeadRefused(f"a head has {len(content)} bytes, the limit is {_MAX_BYTES}")
    if content_digest(content) != digest:
        raise HeadRefused(
            f"the bytes of head {digest!r} have another digest: {content_digest(content)!r}",
            fix="it was changed or damaged: delete it; it is fitted again from its examples",
        )
    try:
        packed = unpack(content)
        found = _read_candidate(packed.content, packed.arrays)
    except (DamagedArrays, KeyError, TypeError) as error:
        raise HeadRefused(f"head {digest!r} cannot be read: {error}") from error
    if found.content != content:
        raise HeadRefused(f"head {digest!r} is not in the form in which heads are written")
    return found


def feature_count(kind: Kind, labels: int) -> int:
    """Return how many features a kind of candidate has."""
    return {"recalibrated": labels, "head": DIMENSIONS + 1, "both": DIMENSIONS + 1 + labels}[kind]


def feature_rows(kind: Kind, inputs: HeadInputs, labels: int) -> Floats:
    """Return (n, features) float32: vector, logarithm of the length, log-probabilities.

    Raises ValueError where an input that the kind needs is missing or has another shape.
    """
    parts: list[Floats] = []
    if kind in ("head", "both"):
        parts.append(_shaped("vectors", inputs.vectors, DIMENSIONS))
        if inputs.chars is None:
            raise ValueError(f"a candidate of the kind {kind!r} needs the lengths of the texts")
        parts.append(np.log1p(inputs.chars.astype(np.float32))[:, None])
    if kind != "head":
        logs = _shaped("log_probabilities", inputs.log_probabilities, labels)
        # maximum keeps NaN, which `probabilities` refuses.
        parts.append(np.maximum(logs, np.float32(_LOG_FLOOR)))
    return parts[0] if len(parts) == 1 else np.hstack(parts)


def _product(features: Floats, weights: Floats) -> Floats:
    """Return (n, classes)."""
    if len(features) <= _EINSUM_ROWS:
        # BLAS would share a product of this size among threads, which costs milliseconds where
        # the cores are busy. Measured for one text and 151 labels: 16 microseconds.
        return np.einsum("nf,cf->nc", features, weights)  # type: ignore[no-any-return]
    return features @ weights.T


def _shaped(name: str, array: Floats | None, columns: int) -> Floats:
    if array is None or array.ndim != 2 or array.shape[1] != columns:
        shape = None if array is None else array.shape
        raise ValueError(f"{name} have the shape {shape} and need (n, {columns})")
    return array


def _read_candidate(content: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Candidate:
    if content["format"] != FORMAT:
        raise HeadRefused(
            f"a head has the format {content['format']!r} and this version reads {FORMAT}",
            fix="delete it; it is fitted again from its examples",
        )
    provenance = Provenance(**content["provenance"])
    labels = content["labels"]
    texts = [getattr(provenance, name) for name in Provenance.__slots__ if name != "rows"]
    if type(provenance.rows) is not int or not all(isinstance(t, str) for t in [*texts, *labels]):
        raise TypeError("its labels and provenance are not texts")
    return Candidate(
        kind=content["kind"],
        labels=tuple(labels),
        provenance=provenance,
        classes=arrays["classes"],
        weights=arrays["weights"],
        bias=arrays["bias"],
        curve=arrays["curve"],
        by_label=arrays["by_label"],
    )


def _refuse_classes(classes: NDArray[np.int16], labels: int) -> None:
    if classes.dtype != np.int16 or classes.ndim != 1 or len(classes) < 2:
        raise HeadRefused(f"the classes of a candidate are {classes.dtype} {classes.shape}")
    if classes[0] < 0 or classes[-1] >= labels or (np.diff(classes) <= 0).any():
        raise HeadRefused(f"the classes of a candidate are not increasing numbers of {labels}")


def _refuse_array(name: str, array: Floats, shape: tuple[int, ...]) -> None:
    if array.dtype != np.float32 or array.shape != shape:
        raise HeadRefused(
            f"the {name} of a candidate are {array.dtype} {array.shape} and need float32 {shape}"
        )
    if not np.isfinite(array).all():
        raise HeadRefused(f"the {name} of a candidate hold a value that is not finite")
