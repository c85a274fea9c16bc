"""What the openai SDK raises, as errors of our tree."""

import openai

from serving.contracts.errors import (
    FrontierAuthFailed,
    FrontierError,
    FrontierInvalidResponse,
    FrontierUnavailable,
)
from serving.frontier.http_errors import Refusal, error_of, not_reached
from serving.frontier.transport_errors import TRANSPORT_ERRORS, translate_transport

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
"""Whatever a call through the SDK may raise on purpose."""


def translate(error: Exception, provider: str, secret: str | None = None) -> FrontierError:
    """Return the error of our tree for what the SDK raised. secret: the key, never quoted."""
    source = f"openai.{type(error).__name__}"
    match error:
        case openai.APIStatusError():
            headers = {name.lower(): value for name, value in error.response.headers.items()}
            names = frozenset(n for n in (error.code, error.type) if isinstance(n, str))
            text = _message(error)
            return error_of(
                Refusal(provider, source, error.status_code, names, text, headers), secret
            )
        case openai.APIConnectionError():
            cause = error.__cause__
            if isinstance(cause, TRANSPORT_ERRORS):
                return translate_transport(cause, provider)
            return not_reached(provider, source)
        case openai.APIResponseValidationError():
            return _other(error, provider, source)
        case openai.APIError():
            # An error event inside a stream: it has no status of its own.
            names = frozenset(n for n in (error.code, error.type) if isinstance(n, str))
            return error_of(Refusal(provider, source, 200, names, _message(error)), secret)
        case _:
            return _other(error, provider, source)


def _message(error: openai.APIError) -> str:
    body = error.body
    told = body.get("message") if isinstance(body, dict) else None
    return told if isinstance(told, str) else ""


def _other(error: Exception, provider: str, source: str) -> FrontierError:
    if isinstance(error, TRANSPORT_ERRORS):
        return translate_transport(error, provider)
    kind = next((OTHER_ERRORS[t] for t in type(error).__mro__ if t in OTHER_ERRORS), None)
    return (kind or FrontierUnavailable)(f"the call to provider {provider!r} failed ({source})")
