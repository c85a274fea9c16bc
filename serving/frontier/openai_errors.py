"""Translates the errors of the openai SDK to NarrowgateErrors."""

import openai

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
    openai.BadRequestError,
    openai.AuthenticationError,
    openai.OAuthError,
    openai.PermissionDeniedError,
    openai.NotFoundError,
    openai.ConflictError,
    openai.UnprocessableEntityError,
    openai.RateLimitError,
    openai.InternalServerError,
    openai.APIStatusError,
)
OTHER_ERRORS: dict[type[Exception], type[FrontierError]] = {
    openai.APIResponseValidationError: FrontierInvalidResponse,
    openai.LengthFinishReasonError: FrontierInvalidResponse,
    openai.ContentFilterFinishReasonError: FrontierInvalidResponse,
    openai.InvalidWebhookSignatureError: FrontierInvalidResponse,
    openai._exceptions.SubjectTokenProviderError: FrontierAuthFailed,
    openai.WebSocketConnectionClosedError: FrontierUnavailable,
    openai.WebSocketQueueFullError: FrontierUnavailable,
    openai.OpenAIError: FrontierUnavailable,
}
ERRORS = (openai.OpenAIError, openai.InvalidWebhookSignatureError, *TRANSPORT_ERRORS)
"""Every class that a call through the SDK may raise on purpose."""


def translate(error: Exception, provider: str, secret: str | None = None) -> FrontierError:
    """Return the NarrowgateError for an SDK's error. secret: the key, never quoted."""
    source = in_words(error)
    match error:
        case openai.APIStatusError():
            headers = error.response.headers
            return error_of(refusal_from(provider, error.status_code, error.body, headers), secret)
        case openai.APIConnectionError():
            cause = error.__cause__
            if isinstance(cause, TRANSPORT_ERRORS):
                return translate_transport(cause, provider)
            return interrupted(provider, source)
        case openai.APIResponseValidationError():
            return _other(error, provider, source)
        case openai.APIError():
            return error_of(refusal_from(provider, 200, error.body), secret)
        case _:
            return _other(error, provider, source)


def _other(error: Exception, provider: str, source: str) -> FrontierError:
    if isinstance(error, TRANSPORT_ERRORS):
        return translate_transport(error, provider)
    kind = next((OTHER_ERRORS[t] for t in type(error).__mro__ if t in OTHER_ERRORS), None)
    return (kind or FrontierUnavailable)(f"the call to provider {provider!r} failed ({source})")
