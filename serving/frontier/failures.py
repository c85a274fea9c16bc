"""Decides what follows a failed call: a retry, the next target, a circuit breaker's failure. Pure.

One request is paid for once. A call is therefore repeated, at the same provider or at the next
target, only where the provider cannot have billed it: it refused the request, was not reached, or
reported a failure of its own (5xx). A call may have been billed when the connection broke after the
request was sent, when it timed out, when a proxy answered in the provider's place (502, 504), or
when its answer cannot be read. Neither vendor offers idempotency keys for model calls, so no repeat
of such a call is safe.
"""

from serving.contracts.answer import Usage
from serving.contracts.errors import (
    BudgetExceeded,
    FrontierAuthFailed,
    FrontierContextTooLong,
    FrontierError,
    FrontierInvalidResponse,
    FrontierQuotaExhausted,
    FrontierRateLimited,
    FrontierStreamBroken,
    FrontierTimeout,
    FrontierUnavailable,
    FrontierUnknownModel,
    NarrowgateError,
)

_RETRY = (FrontierRateLimited, FrontierUnavailable)
_NEXT_TARGET = (
    # A cheaper target may fit into the rest of the limit.
    BudgetExceeded,
    FrontierAuthFailed,
    FrontierContextTooLong,
    FrontierQuotaExhausted,
    FrontierRateLimited,
    FrontierUnavailable,
    FrontierUnknownModel,
)
_MAY_BE_BILLED = (FrontierInvalidResponse, FrontierStreamBroken, FrontierTimeout)
_COUNTS_FOR_BREAKER = (*_MAY_BE_BILLED, FrontierUnavailable)


def may_retry(error: FrontierError) -> bool:
    """Return whether the call may be repeated at the same provider."""
    return isinstance(error, _RETRY) and not may_be_billed(error)


def may_fall_back(error: NarrowgateError, *, after_timeout: bool = False) -> bool:
    """Return whether the next target may be called. after_timeout: also after a timeout."""
    if isinstance(error, FrontierTimeout):
        return after_timeout
    if isinstance(error, FrontierError) and may_be_billed(error):
        return False
    return isinstance(error, _NEXT_TARGET)


def may_be_billed(error: FrontierError) -> bool:
    """Return whether the provider may bill the failed call."""
    usage = usage_of(error)
    has_usage = usage is not None and any(usage.model_dump().values())
    return has_usage or isinstance(error, _MAY_BE_BILLED) or "partial_answer" in error.__dict__


def as_unreached(error: FrontierError) -> FrontierError:
    """Mark the error of a request of which the provider received nothing."""
    error.__dict__["unreached"] = True
    return error


def is_unreached(error: FrontierError) -> bool:
    """Return whether the provider received nothing of the request."""
    return "unreached" in error.__dict__


def counts_for_breaker(error: FrontierError) -> bool:
    """Return whether the failure is the provider's own and counts for its circuit breaker."""
    return isinstance(error, _COUNTS_FOR_BREAKER)


def with_usage(error: FrontierError, usage: Usage | None) -> FrontierError:
    """Attach the usage that a failed call reported; it stays in this process."""
    error.__dict__["usage"] = usage
    return _not_for_clients(error)


def with_partial_answer(error: FrontierError) -> FrontierError:
    """Mark a failed call that returned part of an answer, so that it may be billed."""
    error.__dict__["partial_answer"] = True
    return _not_for_clients(error)


def _not_for_clients(error: FrontierError) -> FrontierError:
    """Tell clients not to repeat a call that may be billed, whatever its class says of others."""
    if may_be_billed(error):
        error.__dict__["retryable"] = False
    return error


def usage_of(error: FrontierError) -> Usage | None:
    """Return the usage that a failed call reported."""
    usage: Usage | None = error.__dict__.get("usage")
    return usage
