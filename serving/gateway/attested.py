"""The attestation of a task, as the API shows it."""

from typing import Self

from pydantic import BaseModel

from serving.contracts.attestation import Verdict
from serving.tasks.grant import Grant


class TaskState(BaseModel):
    """One task on one model. The figures are the gate's; null where it has none.

    served: whether the model answers the task here. bound: certified error rate among answers that
    are not below the threshold.
    """

    served: bool
    verdict: Verdict | None
    reason: str | None
    metric: str | None
    value: float | None
    threshold: float | None
    bound: float | None
    coverage: float | None
    attestation: str | None

    @classmethod
    def of(cls, grant: Grant) -> Self:
        """Return the state of a grant."""
        result = grant.result
        certificate = result.certificate if result is not None else None
        certified = certificate if certificate and certificate.threshold is not None else None
        refusal = grant.refusal
        return cls(
            served=refusal is None,
            verdict=result.verdict if result is not None else None,
            reason=refusal.message if refusal is not None else None,
            metric=result.metric if result is not None else None,
            value=result.candidate.estimate if result and result.candidate else None,
            threshold=certified.threshold if certified else None,
            bound=certified.bound if certified else None,
            coverage=certified.coverage if certified else None,
            attestation=grant.attestation,
        )
