"""The table from errors to HTTP statuses, and OpenAI's error shape."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from serving.contracts import errors
from serving.contracts.invalid_values import invalid
from serving.contracts.openai import json_text

STATUS: dict[type[errors.NarrowgateError], int] = {
    errors.NarrowgateError: 500,
    errors.InvalidRequest: 400,
    errors.EmptyInput: 400,
    errors.InputTooLong: 400,
    errors.UnknownLanguage: 400,
    errors.UnsupportedParameter: 400,
    errors.BodyTooLarge: 413,
    errors.BodyTimeout: 408,
    errors.UnsupportedMediaType: 415,
    errors.TooManyInputs: 413,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.RateLimited: 429,
    # As OpenAI answers an account without credit; x-should-retry tells SDKs not to retry.
    errors.BudgetExceeded: 429,
    errors.NotFound: 404,
    errors.UnknownTask: 404,
    errors.UnknownModel: 404,
    errors.FileInUse: 409,
    errors.BatchEnded: 409,
    errors.Unavailable: 503,
    errors.QueueFull: 429,
    errors.ModelStarting: 503,
    errors.ModelPreparing: 503,
    errors.ModelUnavailable: 503,
    errors.ModelFailed: 503,
    errors.LedgerUnavailable: 503,
    errors.StorageUnavailable: 503,
    errors.ShuttingDown: 503,
    errors.DeadlineExceeded: 504,
    errors.FrontierNotConfigured: 503,
    # The client's own limit: no call was made.
    errors.MaxCostExceeded: 400,
    errors.FrontierError: 502,
    errors.FrontierRejected: 400,
    errors.FrontierContextTooLong: 400,
    # Our key for the provider is wrong, not the client's: 401 would make clients replace theirs.
    errors.FrontierAuthFailed: 502,
    errors.FrontierUnknownModel: 404,
    errors.FrontierQuotaExhausted: 503,
    # The provider's limit, not this client's: 429 would make the client slow all its requests.
    errors.FrontierRateLimited: 503,
    errors.FrontierUnavailable: 503,
    errors.FrontierTimeout: 504,
    errors.FrontierInvalidResponse: 502,
    errors.FrontierStreamBroken: 502,
    errors.EngineFailure: 500,
    errors.QuantizationFailed: 500,
    errors.EvaluationFailed: 500,
    errors.TaskNotAttested: 409,
    errors.ClaimWithdrawn: 409,
    errors.HeadRefused: 500,
    errors.FitFailed: 500,
    errors.ConfigurationError: 500,
    errors.InvalidSettings: 500,
    errors.InvalidTaskSpec: 500,
    errors.MaterializationFailed: 500,
    errors.InvalidRecipe: 500,
    errors.InvalidCalibration: 500,
    errors.CalibrationOverlap: 500,
    errors.UnsuitableModel: 500,
    errors.UnsuitableTarget: 500,
    errors.InsufficientResources: 500,
    errors.InvalidArgument: 500,
    errors.OutputInUse: 500,
    errors.EnvironmentUnavailable: 500,
    errors.InvalidSuite: 500,
    errors.InvalidKey: 500,
    # A client may name a provider's model that has no price here.
    errors.UnpricedModel: 400,
    errors.LedgerUnusable: 500,
    errors.AttestationRefused: 500,
}

# The names that OpenAI's API gives its error types.
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    429: "rate_limit_error",
}


def status_of(error: errors.NarrowgateError) -> int:
    """Return the HTTP status of an error: of its class, or of the nearest class above it."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)


def error_body(error: errors.NarrowgateError) -> dict[str, Any]:
    """Return the inner error object: message, type, param, code, fix.

    For a model that is being prepared, also progress: step, share (of the whole, in [0, 1]) and
    left_s (estimated seconds).
    """
    status = status_of(error)
    body: dict[str, Any] = {
        "message": error.message,
        "type": _type(status),
        "param": error.field,
        "code": error.code,
        "fix": error.fix,
    }
    if isinstance(error, errors.ModelPreparing) and error.progress is not None:
        body["progress"] = asdict(error.progress)
    return body


def error_response(error: errors.NarrowgateError) -> Response:
    """Return the whole HTTP response for an error."""
    # The SDKs retry every 409 and 5xx unless a header forbids it.
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    return _json({"error": error_body(error)}, status_of(error), headers)


async def on_narrowgate_error(request: Request, exc: Exception) -> Response:
    """Answer an error of contracts.errors."""
    assert isinstance(exc, errors.NarrowgateError)
    return error_response(exc)


async def on_validation_error(request: Request, exc: Exception) -> Response:
    """Answer a parameter of the address that has an invalid value; bodies are read elsewhere."""
    assert isinstance(exc, RequestValidationError)
    problem = exc.errors()[0]
    # A parameter is named as the client wrote it, without where it stands.
    path = ".".join(map(str, problem["loc"][1:]))
    value = None if problem["type"] == "missing" else problem["input"]
    return error_response(invalid(path, value, _wanted(problem)))


def _wanted(problem: Mapping[str, Any]) -> str:
    """Return what a parameter must be, in the words of every other refusal."""
    context = problem.get("ctx") or {}
    match problem["type"]:
        case "greater_than_equal":
            return f"a whole number of at least {context['ge']}"
        case "less_than_equal":
            return f"a whole number of at most {context['le']}"
        case "literal_error":
            return str(context["expected"])
        case "missing" | "string_too_short":
            return "text of at least one character"
        case "value_error":
            return str(context["error"])
    return "a valid value"


async def on_http_exception(request: Request, exc: Exception) -> Response:
    """Answer an error of the framework: unknown path, unknown method, body over the limit."""
    assert isinstance(exc, HTTPException)
    if exc.status_code == 400:
        # FastAPI raises this for a body that is not text or is nested too deeply.
        return error_response(
            errors.InvalidRequest(
                "the body cannot be read as JSON in UTF-8", fix="send a JSON object in UTF-8"
            )
        )
    if exc.status_code == 413:
        return too_large(exc.detail)
    if exc.status_code == 408:
        response = error_response(
            errors.BodyTimeout(
                exc.detail, fix="send the body at once, or raise gateway.body_timeout_s"
            )
        )
        response.headers["connection"] = "close"
        return response
    body = {
        "message": f"{request.method} {request.url.path}: {exc.detail}",
        "type": _type(exc.status_code),
        "param": None,
        "code": {404: "not_found", 405: "method_not_allowed"}.get(
            exc.status_code, "invalid_request"
        ),
        "fix": "/docs lists every path and method",
    }
    return _json({"error": body}, exc.status_code, exc.headers)


def too_large(message: str) -> Response:
    """Return the response to a body over the configured size; the connection ends with it."""
    response = error_response(
        errors.BodyTooLarge(
            message, fix="send fewer or shorter inputs, or raise gateway.max_body_bytes"
        )
    )
    # The rest of the body is not read, so the connection cannot be used again.
    response.headers["connection"] = "close"
    return response


def internal_error() -> Response:
    """Return the answer to a defect: the client gets no detail; the log has the traceback."""
    body = {
        "message": "internal error; the log holds the details under the request id",
        "type": _type(500),
        "param": None,
        "code": "internal_error",
        "fix": None,
    }
    return _json({"error": body}, 500)


def _json(
    document: dict[str, Any], status: int, headers: Mapping[str, str] | None = None
) -> Response:
    # json_text: a name from the client may hold characters that UTF-8 cannot encode.
    return Response(json_text(document), status, headers, "application/json")


def _type(status: int) -> str:
    return _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
