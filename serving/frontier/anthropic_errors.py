"""What the anthropic SDK raises, as errors of our tree."""

import anthropic

from serving.contracts.errors import (
    FrontierAuthFailed,
    FrontierError,
    FrontierInvalidResponse,
    FrontierUnavailable,
)
from serving.frontier.http_errors import Refusal, error_of, not_reached
from serving.frontier.transport_errors import TRANSPORT_ERRORS, translate_transport

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
    # The account is at fault, not the request: the next target may well answer.
    anthropic.CMEKKeyDisabledError: 403,
    anthropic.CMEKKeyNetworkBlockedError: 403,
    anthropic.ClaudeCodeKeyCreatorNotMemberError: 403,
    anthropic.ClaudeCodeVersionTooOldError: 403,
    anthropic.OrganizationOnHoldError: 403,
    anthropic.OrganizationTypeNotSupportedError: 403,
    anthropic.ParentOrganizationRequiredError: 403,
    # No wait mends these.
    anthropic.ContractSpendLimitReachedError: 402,
    anthropic.EnforcedSpendLimitReachedError: 402,
    anthropic.LinkedOrganizationBillingUnavailableError: 402,
    anthropic.LinkedOrganizationSpendLimitReachedError: 402,
}
"""Where the status says something else than the class: the status that says the same."""

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
"""Whatever a call through the SDK may raise on purpose."""


def translate(error: Exception, provider: str, secret: str | None = None) -> FrontierError:
    """Return the error of our tree for what the SDK raised. secret: the key, never quoted."""
    source = f"anthropic.{type(error).__name__}"
    match error:
        case anthropic.APIStatusError():
            headers = {name.lower(): value for name, value in error.response.headers.items()}
            names = frozenset(n for n in (error.type, error.error_code) if isinstance(n, str))
            text = error.api_message if isinstance(error.api_message, str) else ""
            status = STATUS_MEANT.get(type(error), error.status_code)
            return error_of(Refusal(provider, source, status, names, text, headers), secret)
        case anthropic.APIConnectionError():
            cause = error.__cause__
            if isinstance(cause, TRANSPORT_ERRORS):
                return translate_transport(cause, provider)
            return not_reached(provider, source)
        case _:
            return _other(error, provider, source)


def _other(error: Exception, provider: str, source: str) -> FrontierError:
    if isinstance(error, TRANSPORT_ERRORS):
        return translate_transport(error, provider)
    kind = next((OTHER_ERRORS[t] for t in type(error).__mro__ if t in OTHER_ERRORS), None)
    return (kind or FrontierUnavailable)(f"the call to provider {provider!r} failed ({source})")
