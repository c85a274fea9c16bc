"""The reason to send a request on after a local attempt. Pure."""

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
    # The request fits a model with a larger window.
    InputTooLong: "out_of_scope",
}


def reason_for_error(error: NarrowgateError) -> Reason | None:
    """Return the reason to send a request to another model after an error of the local one.

    None where the request is invalid or no model would help.
    """
    return next((_REASONS[cls] for cls in type(error).__mro__ if cls in _REASONS), None)


def reason_for_answer(below_threshold: bool | None, valid: bool) -> Reason | None:
    """Return the reason to escalate a local answer; None where it is good enough.

    below_threshold: outside the certified bound; None where no bound is attested.
    """
    if not valid:
        return "invalid_output"
    return "below_threshold" if below_threshold else None


def is_among(value: Value, labels: Mapping[str, str] | None) -> bool:
    """Return whether a label is one that the client named; everything else is."""
    return labels is None or not isinstance(value, str) or value in labels
