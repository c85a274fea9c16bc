"""What follows from a failed call: a retry, the next target, a mark against the provider. Pure.

One request is paid once. So a call is repeated, here or elsewhere, only where the provider gave no
answer: it refused, it was not reached, it failed (5xx). A time-out is ambiguous; its request is
closed before anything else is sent, and it is not repeated at the same provider, so at most one
unfinished call a target can be billed. An answer that came and cannot be read was paid: nothing
follows it.
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
    # A cheaper target may fit into what is left.
    BudgetExceeded,
    FrontierAuthFailed,
    FrontierContextTooLong,
    FrontierQuotaExhausted,
    FrontierRateLimited,
    FrontierTimeout,
    FrontierUnavailable,
    FrontierUnknownModel,
)
_MAY_BE_BILLED = (FrontierInvalidResponse, FrontierStreamBroken, FrontierTimeout)
_ILL = (FrontierInvalidResponse, FrontierStreamBroken, FrontierTimeout, FrontierUnavailable)


def may_retry(error: FrontierError) -> bool:
    """Say whether the same provider may be asked again."""
    return isinstance(error, _RETRY)


def may_fall_back(error: NarrowgateError) -> bool:
    """Say whether the next target may be asked."""
    return isinstance(error, _NEXT_TARGET)


def may_be_billed(error: FrontierError) -> bool:
    """Say whether the provider may ask money for the call: it worked on it, or may have."""
    return isinstance(error, _MAY_BE_BILLED)


def says_ill(error: FrontierError) -> bool:
    """Say whether the failure is the provider's own and counts against it."""
    return isinstance(error, _ILL)


def with_usage(error: FrontierError, usage: Usage | None) -> FrontierError:
    """Attach what a failed call is known to have used; stays in this process."""
    error.__dict__["usage"] = usage
    return error


def usage_of(error: FrontierError) -> Usage | None:
    """Return what a failed call is known to have used."""
    usage: Usage | None = error.__dict__.get("usage")
    return usage
