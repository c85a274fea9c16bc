"""Calibrates confidences on one part of the answers, certifies an error bound on another. Pure."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.answers import Answered
from evals.certification import (
    calibrated,
    candidate_thresholds,
    certify,
    error_bound,
    expected_calibration_error,
    fit_calibration,
)
from evals.suite import Suite, calibration_half
from serving.contracts.attestation import CalibrationMap, Certificate

Bools = NDArray[np.bool_]
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Part:
    """Answers on which confidences are calibrated, or error bounds certified.

    raw, right: (n,). independent: indices of one answer a group: examples of one group share a
    text, and only the groups are independent.
    """

    raw: NDArray[np.float64]
    right: Bools
    independent: NDArray[np.intp]

    @classmethod
    def of(cls, suite: Suite, answered: Answered, right: Bools) -> "Part":
        """Return the answers to a whole suite, or to the user's own inputs."""
        raw = np.array([prediction.confidence for prediction in answered.predictions])
        return cls(raw, right, suite.independent())

    @classmethod
    def half(cls, suite: Suite, answered: Answered, right: Bools, *, calibration: bool) -> "Part":
        """Return the answers to one half of a suite."""
        indices = [
            index
            for index, example in enumerate(suite.examples)
            if calibration_half(example.group) == calibration
        ]
        predictions = tuple(answered.predictions[index] for index in indices)
        inside = Answered(predictions, answered.label_offsets)
        return cls.of(suite.among(indices), inside, right[indices])


@dataclass(frozen=True, slots=True)
class Confidence:
    """Calibration on one part, the certificate on the other; None if a part is empty."""

    mapping: CalibrationMap | None
    certificate: Certificate | None
    wrong_at_best: float
    ece_before: float | None
    ece_after: float | None

    @classmethod
    def of(
        cls,
        calibration: Part,
        certification: Part,
        target_error: float,
        tested: int | None,
        level: float = LEVEL,
    ) -> "Confidence":
        """Return both.

        tested: on how many answers thresholds are tested; None for as many as calibrate. level: of
        the bounds.
        """
        if len(calibration.raw) == 0 or len(certification.raw) == 0:
            return cls(None, None, 0.0, None, None)
        mapping = fit_calibration(calibration.raw, calibration.right)
        independent = certification.independent
        thresholds = candidate_thresholds(
            calibrated(mapping, calibration.raw), calibration.right, tested
        )
        confidence = calibrated(mapping, certification.raw)
        answers, truth = confidence[independent], certification.right[independent]
        certificate = certify(thresholds, answers, truth, target_error, level)
        best = answers >= thresholds[0]
        accepted, correct = int(best.sum()), int((best & truth).sum())
        return cls(
            mapping,
            certificate,
            # The lower bound of the error rate is 1 - the upper bound of the rate of right answers.
            1.0 - error_bound(correct, accepted, level),
            expected_calibration_error(certification.raw, certification.right),
            expected_calibration_error(confidence, certification.right),
        )
