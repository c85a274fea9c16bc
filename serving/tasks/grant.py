"""The attestation's permission and figures for one task."""

from dataclasses import dataclass

from serving.contracts.answer import Prediction
from serving.contracts.attestation import TaskResult
from serving.contracts.errors import TaskNotAttested, Unavailable
from serving.contracts.evidence import Guarantee


@dataclass(frozen=True, slots=True)
class Grant:
    """One task on one model. result: the gate's finding, None without a valid one.

    refusal: why the task is not served; None where it is. A grant without result and refusal is
    that of a development server. attestation: the envelope's digest.
    """

    result: TaskResult | None
    attestation: str | None
    refusal: TaskNotAttested | Unavailable | None

    @property
    def label_offsets(self) -> dict[str, float] | None:
        """Return the label offsets with which the attested confidences were measured."""
        return self.result.label_offsets if self.result is not None else None

    def calibrated(self, prediction: Prediction) -> float | None:
        """Return the probability that an answer is right, None where nothing was attested."""
        if self.result is None or self.result.calibration is None:
            return None
        return self.result.calibration.calibrated(prediction.confidence)

    @property
    def guarantee(self) -> Guarantee | None:
        """Return the gate's bound for answers within the threshold; None without one."""
        certificate = self.result.certificate if self.result is not None else None
        if self.result is None or certificate is None or certificate.threshold is None:
            return None
        observed = certificate.errors / certificate.accepted if certificate.accepted else 0.0
        return Guarantee(
            evidence="suite",
            target_error=certificate.target_error,
            observed_error=observed,
            interval=(0.0, certificate.bound),
            audits=certificate.accepted,
            reference=f"suite/{self.result.suite.name}",
        )

    def below_threshold(self, prediction: Prediction) -> bool | None:
        """Return whether an answer falls outside the certified error bound.

        One that could not be read in full always does. None where nothing was attested.
        """
        confidence = self.calibrated(prediction)
        certificate = self.result.certificate if self.result is not None else None
        if confidence is None or certificate is None or certificate.threshold is None:
            return None
        return not prediction.valid or confidence < certificate.threshold
