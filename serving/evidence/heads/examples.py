"""Labelled examples as arrays: what a fit reads, in an order that depends on the content alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from serving.evidence.heads.arrays import DamagedArrays, pack, unpack
from serving.evidence.heads.candidate import Floats, HeadInputs, HeadScope


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text without the text.

    label: of the task. vector: (384,) float32. chars: of the text. log_probabilities: (labels,)
    float32 of the local model `model` (its digest); None and empty where it did not run.
    """

    label: str
    vector: Floats
    chars: int
    log_probabilities: Floats | None = None
    model: str = ""


@dataclass(frozen=True, slots=True)
class FitRows:
    """The examples of one scope, sorted by content, each vector once.

    scope: of all rows. labels: of the task, in its order. encoder: of the vectors. model: whose
    log-probabilities are used. targets: (n,) int16, positions in labels. has_model: (n,) uint8: the
    row of log_probabilities was computed by that model; it is 0 elsewhere.
    """

    scope: HeadScope
    labels: tuple[str, ...]
    encoder: str
    model: str
    vectors: Floats
    chars: NDArray[np.int32]
    targets: NDArray[np.int16]
    log_probabilities: Floats
    has_model: NDArray[np.uint8]

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.targets)

    @classmethod
    def of(
        cls, scope: HeadScope, labels: Sequence[str], encoder: str, model: str,
        examples: Sequence[Example],
    ) -> Self:  # fmt: skip
        """Return the rows of examples. Of equal vectors the first is kept.

        Raises ValueError for a label that the task does not have, and for other shapes.
        """
        position = {label: n for n, label in enumerate(labels)}
        unknown = sorted({example.label for example in examples} - set(position))
        if unknown:
            raise ValueError(f"label {unknown[0]!r} is not one of the task's")
        distinct = list({example.vector.tobytes(): example for example in examples[::-1]}.values())
        distinct.sort(key=_content_key)
        count = len(distinct)
        logs = np.zeros((count, len(labels)), np.float32)
        has_model = np.zeros(count, np.uint8)
        for n, example in enumerate(distinct):
            if model and example.model == model and example.log_probabilities is not None:
                logs[n] = example.log_probabilities
                has_model[n] = 1
        vectors = np.array([example.vector for example in distinct], np.float32)
        return cls(
            scope, tuple(labels), encoder, model, vectors,
            np.array([example.chars for example in distinct], np.int32),
            np.array([position[example.label] for example in distinct], np.int16),
            logs, has_model,
        )  # fmt: skip

    def inputs(self) -> HeadInputs:
        """Return all rows as the inputs of candidates."""
        return HeadInputs(self.vectors, self.chars, self.log_probabilities)

    def with_model(self) -> Self:
        """Return the rows for which the local model ran."""
        kept = self.has_model.astype(bool)
        return type(self)(
            self.scope, self.labels, self.encoder, self.model, self.vectors[kept],
            self.chars[kept], self.targets[kept], self.log_probabilities[kept],
            self.has_model[kept],
        )  # fmt: skip

    def digest(self) -> str:
        """Return the hex digest of all rows."""
        return hashlib.sha256(self.packed()).hexdigest()

    def packed(self) -> bytes:
        """Return the rows as bytes, for the process that fits."""
        scope = {name: getattr(self.scope, name) for name in HeadScope.__slots__}
        content = {"scope": scope, "labels": list(self.labels), "encoder": self.encoder,
                   "model": self.model}  # fmt: skip
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return pack(content, arrays)

    @classmethod
    def unpacked(cls, data: bytes) -> Self:
        """Return rows of bytes. Raises DamagedArrays."""
        packed = unpack(data)
        content = packed.content
        try:
            return cls(
                HeadScope(**content["scope"]), tuple(content["labels"]), content["encoder"],
                content["model"], *(packed.arrays[name] for name in _ARRAYS),
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise DamagedArrays(f"the rows cannot be read: {error}") from error


_ARRAYS = ("vectors", "chars", "targets", "log_probabilities", "has_model")


def _content_key(example: Example) -> bytes:
    # The order decides on folds and rounding, so it may depend on nothing but the content.
    return hashlib.sha256(example.vector.tobytes() + example.label.encode()).digest()
