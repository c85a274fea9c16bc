"""Translates the errors of the anthropic SDK to NarrowgateErrors."""

import anthropic

from serving.contracts.errors import (
    FrontierAuthFailed,
    FrontierError,
    FrontierInvalidResponse,
    FrontierUnavailable,
)
from serving.frontier.http_errors import (
    TRANSPORT_ERRORS,
    error_of,
    in_words,
    interrupted,
    refusal_from,
    translate_transport,
)

STATUS_ERRORS: tuple[type[Exception], ...] = (
    anthropic.BadRequestError,
    anthropic.AuthenticationError,
    anthropic.PaymentRequiredError,
    anthropic.PermissionDeniedError,
    anthropic.NotFoundError,
    anthropic.RequestTimeoutError,
    anthropic.ConflictError,
    anthropic.PreconditionFailedError,
    anthropic.ContentTooLargeError,
    anthropic.UnprocessableEntityError,
    anthropic.RateLimitError,
    anthropic.RequestHeaderFieldsTooLargeError,
    anthropic.ClientClosedRequestError,
    anthropic.InternalServerError,
    anthropic.HTTPNotImplementedError,
    anthropic.ServiceUnavailableError,
    anthropic.GatewayTimeoutError,
    anthropic.OverloadedError,
    anthropic.RequestBodyEncodingInvalidError,
    anthropic.RequestBodyEncodingUnsupportedError,
    anthropic.RequestBodyTooLargeAfterDecodingError,
    anthropic.RampLimitExceededError,
    anthropic.SandboxEgressRestrictedError,
    anthropic.CMEKContextUnavailableError,
    anthropic.CMEKKeyUnreachableError,
    anthropic.APIStatusError,
)
STATUS_MEANT: dict[type[Exception], int] = {
    # The account is the cause, not the request: the next target may answer.
    anthropic.CMEKKeyDisabledError: 403,
    anthropic.CMEKKeyNetworkBlockedError: 403,
    anthropic.ClaudeCodeKeyCreatorNotMemberError: 403,
    anthropic.ClaudeCodeVersionTooOldError: 403,
    anthropic.OrganizationOnHoldError: 403,
    anthropic.OrganizationTypeNotSupportedError: 403,
    anthropic.ParentOrganizationRequiredError: 403,
    # Waiting does not help.
    anthropic.ContractSpendLimitReachedError: 402,
    anthropic.EnforcedSpendLimitReachedError: 402,
    anthropic.LinkedOrganizationBillingUnavailableError: 402,
    anthropic.LinkedOrganizationSpendLimitReachedError: 402,
}
"""Classes whose HTTP status is misleading, and the status that is used instead."""

OTHER_ERRORS: dict[type[Exception], type[FrontierError]] = {
    anthropic.APIResponseValidationError: FrontierInvalidResponse,
    anthropic.APIWebhookValidationError: FrontierInvalidResponse,
    anthropic.CredentialsError: FrontierAuthFailed,
    anthropic.IdentityTokenFileError: FrontierAuthFailed,
    anthropic.WorkloadIdentityError: FrontierAuthFailed,
    anthropic.RetryableError: FrontierUnavailable,
    anthropic.APIError: FrontierUnavailable,
    anthropic.AnthropicError: FrontierUnavailable,
}
ERRORS = (anthropic.AnthropicError, *TRANSPORT_ERRORS)
"""Every class that a call through the SDK may raise on purpose."""


def translate(error: Exception, provider: str, secret: str | None = None) -> FrontierError:
    """Return the NarrowgateError for an SDK's error. secret: the key, never quoted."""
    source = in_words(error)
    match error:
        case anthropic.APIStatusError():
            status = STATUS_MEANT.get(type(error), error.status_code)
            refusal = refusal_from(provider, status, error.body, error.response.headers)
            return error_of(refusal, secret)
        case anthropic.APIConnectionError():
            cause = error.__cause__
            if isinstance(cause, TRANSPORT_ERRORS):
                return translate_transport(cause, provider)
            return interrupted(provider, source)
        case _:
            return _other(error, provider, source)


def _other(error: Exception, provider: str, source: str) -> FrontierError:
    if isinstance(error, TRANSPORT_ERRORS):
        return translate_transport(error, provider)
    kind = next((OTHER_ERRORS[t] for t in type(error).__mro__ if t in OTHER_ERRORS), None)
    return (kind or FrontierUnavailable)(f"the call to provider {provider!r} failed ({source})")
