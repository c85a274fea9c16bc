"""Why a request leaves the local model after it was tried. Pure."""

from collections.abc import Mapping

from serving.contracts.answer import Value
from serving.contracts.errors import (
    DeadlineExceeded,
    EngineFailure,
    InputTooLong,
    ModelStarting,
    ModelUnavailable,
    NarrowgateError,
    QueueFull,
    TaskNotAttested,
)
from serving.contracts.routing import Reason

_REASONS: Mapping[type[NarrowgateError], Reason] = {
    QueueFull: "overload",
    ModelStarting: "local_failure",
    ModelUnavailable: "local_failure",
    EngineFailure: "local_failure",
    DeadlineExceeded: "deadline_at_risk",
    TaskNotAttested: "not_attested",
    # The request is fine for a model with a larger window; this one was the wrong place for it.
    InputTooLong: "out_of_scope",
}


def reason_for_error(error: NarrowgateError) -> Reason | None:
    """Return why another model may answer what the local one did not.

    None where the request is at fault or no model would help.
    """
    return next((_REASONS[cls] for cls in type(error).__mro__ if cls in _REASONS), None)


def reason_for_answer(below_threshold: bool | None, valid: bool) -> Reason | None:
    """Return why a local answer is not good enough; None where it is.

    below_threshold: outside the certified bound; None where no bound is attested.
    """
    if not valid:
        return "invalid_output"
    return "below_threshold" if below_threshold else None


def is_among(value: Value, labels: Mapping[str, str] | None) -> bool:
    """Tell whether a label is one that the client named; everything else is."""
    return labels is None or not isinstance(value, str) or value in labels
