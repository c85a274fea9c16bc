"""Every error class of both SDKs and their HTTP client becomes one of ours; none quotes a key."""

import inspect
import json
from types import ModuleType
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts.errors import (
    FrontierAuthFailed,
    FrontierContextTooLong,
    FrontierError,
    FrontierInvalidResponse,
    FrontierQuotaExhausted,
    FrontierRateLimited,
    FrontierRejected,
    FrontierTimeout,
    FrontierUnavailable,
    FrontierUnknownModel,
)
from serving.frontier import anthropic_errors, failures, openai_errors
from serving.frontier.http_errors import TRANSPORT_ERRORS, quoted, translate_transport

KEY = "sk-narrowgate-1234567890abcdef"
REQUEST = httpx2.Request("POST", "https://example.org/v1", headers={"authorization": KEY})
BY_STATUS: dict[int, type[FrontierError]] = {
    400: FrontierRejected,
    401: FrontierAuthFailed,
    402: FrontierQuotaExhausted,
    403: FrontierAuthFailed,
    404: FrontierUnknownModel,
    408: FrontierUnavailable,
    409: FrontierUnavailable,
    412: FrontierRejected,
    413: FrontierContextTooLong,
    422: FrontierRejected,
    429: FrontierRateLimited,
    431: FrontierRejected,
    499: FrontierTimeout,
    502: FrontierInvalidResponse,
    504: FrontierTimeout,
    520: FrontierInvalidResponse,
    524: FrontierTimeout,
    598: FrontierTimeout,
    599: FrontierTimeout,
}
SDKS = pytest.mark.parametrize(
    ("sdk", "ours"), [(openai, openai_errors), (anthropic, anthropic_errors)]
)


def response(status: int, body: object = None) -> httpx2.Response:
    return httpx2.Response(status, request=REQUEST, json=body or {"error": {"message": KEY}})


def exported(sdk: ModuleType) -> list[type[Exception]]:
    """Return every exception class that the SDK exports or defines beside those."""
    modules = [sdk, sdk._exceptions]
    found = {
        value
        for module in modules
        for name, value in inspect.getmembers(module, inspect.isclass)
        if not name.startswith("_")
        if issubclass(value, Exception) and value.__module__.startswith(sdk.__name__)
    }
    return sorted(found, key=lambda cls: cls.__name__)


def instance(cls: type[Exception]) -> Exception:
    """Build an error as its SDK would, whatever its signature."""
    parameters = inspect.signature(cls.__init__).parameters
    known: dict[str, Any] = {
        "message": f"no: {KEY}",
        "request": REQUEST,
        "response": response(getattr(cls, "status_code", 503)),
        "body": {"error": {"message": KEY}},
        "completion": type("Completion", (), {"usage": None})(),
        "unsent_messages": [],
    }
    given = {name: known[name] for name in parameters if name in known}
    try:
        return cls(**given)
    except TypeError:
        return cls(f"no: {KEY}")


@SDKS
def test_every_class_of_an_sdk_is_covered(sdk: ModuleType, ours: Any) -> None:
    classes = exported(sdk)
    assert len(classes) >= 18
    connection = {sdk.APIConnectionError, sdk.APITimeoutError, sdk.APIError}
    meant = getattr(ours, "STATUS_MEANT", {})
    covered = {*ours.STATUS_ERRORS, *meant, *ours.OTHER_ERRORS, *connection}
    assert set(classes) - covered == set(), "a new SDK error: say in the tables what it means"
    for cls in classes:
        assert issubclass(cls, ours.ERRORS), cls
        error = ours.translate(instance(cls), "p", KEY)
        assert isinstance(error, FrontierError)
        assert KEY not in repr(vars(error))
        if issubclass(cls, sdk.APIStatusError):
            # The status says it; a client knows no class of the SDK.
            assert cls.__name__ not in error.message
        if cls in {*ours.STATUS_ERRORS, *meant} - {sdk.APIStatusError}:
            status = meant.get(cls, getattr(cls, "status_code", 503))
            assert type(error) is BY_STATUS.get(status, FrontierUnavailable), cls


@SDKS
def test_every_status_has_its_error(sdk: ModuleType, ours: Any) -> None:
    client = getattr(sdk, {"openai": "OpenAI", "anthropic": "Anthropic"}[sdk.__name__])(api_key="x")
    for status in range(400, 600):
        error = ours.translate(client._make_status_error_from_response(response(status)), "p", KEY)
        expected = FrontierUnavailable if status >= 500 else FrontierRejected
        if status == 425:
            expected = FrontierUnavailable
        assert type(error) is BY_STATUS.get(status, expected), status
        assert KEY not in error.message
    client.close()


@pytest.mark.parametrize(
    ("status", "code", "message", "expected"),
    [
        (400, "context_length_exceeded", "", FrontierContextTooLong),
        (400, None, "This model's maximum context length is 8 tokens", FrontierContextTooLong),
        (400, "invalid_value", "bad temperature", FrontierRejected),
        (400, "model_not_found", "", FrontierUnknownModel),
        (400, "billing_hard_limit_reached", "", FrontierQuotaExhausted),
        (429, "insufficient_quota", "", FrontierQuotaExhausted),
        (429, "rate_limit_exceeded", "", FrontierRateLimited),
        (500, None, "insufficient funds of memory", FrontierUnavailable),
    ],
)
def test_openais_codes(
    status: int, code: str | None, message: str, expected: type[FrontierError]
) -> None:
    with openai.OpenAI(api_key="x") as client:
        body = {"error": {"message": message, "code": code, "type": "x"}}
        raised = client._make_status_error_from_response(response(status, body))
    assert type(openai_errors.translate(raised, "p")) is expected


@pytest.mark.parametrize(
    ("status", "kind", "code", "message", "expected"),
    [
        (400, "invalid_request_error", None, "prompt is too long: 9 > 8", FrontierContextTooLong),
        (
            400,
            "invalid_request_error",
            None,
            "input length and `max_tokens` exceed context limit: 1 + 2 > 2",
            FrontierContextTooLong,
        ),
        (400, "invalid_request_error", None, "roles must alternate", FrontierRejected),
        (400, "invalid_request_error", None, "credit balance is too low", FrontierQuotaExhausted),
        (429, "rate_limit_error", "enforced_spend_limit_reached", "", FrontierQuotaExhausted),
        (200, "overloaded_error", None, "", FrontierUnavailable),
        (200, "rate_limit_error", None, "", FrontierRateLimited),
        (200, "invalid_request_error", None, "", FrontierRejected),
        (200, "something_new", None, "", FrontierUnavailable),
    ],
)
def test_anthropics_types(
    status: int, kind: str, code: str | None, message: str, expected: type[FrontierError]
) -> None:
    found: dict[str, Any] = {"type": kind, "message": message}
    if code:
        found["details"] = {"error_code": code}
    body = {"type": "error", "error": found}
    with anthropic.Anthropic(api_key="x") as client:
        raised = client._make_status_error(message, body=body, response=response(status, body))
    assert type(anthropic_errors.translate(raised, "p")) is expected


def test_the_http_clients_errors_are_covered() -> None:
    named = [
        cls
        for _, cls in inspect.getmembers(httpx2, inspect.isclass)
        if issubclass(cls, Exception) and not issubclass(cls, Warning)
    ]
    # Of cookies, which no provider sets.
    for cls in set(named) - {httpx2.CookieConflict}:
        assert issubclass(cls, TRANSPORT_ERRORS), cls
    for cls, expected in [
        (httpx2.ReadTimeout, FrontierTimeout),
        (httpx2.WriteTimeout, FrontierTimeout),
        (httpx2.ConnectTimeout, FrontierUnavailable),
        (httpx2.PoolTimeout, FrontierUnavailable),
        (httpx2.ConnectError, FrontierUnavailable),
        (httpx2.RemoteProtocolError, FrontierInvalidResponse),
        (httpx2.DecodingError, FrontierInvalidResponse),
    ]:
        raised = cls(f"no: {KEY}")
        assert type(translate_transport(raised, "p")) is expected
        wrapped = openai.APIConnectionError(request=REQUEST)
        wrapped.__cause__ = raised
        assert type(openai_errors.translate(wrapped, "p")) is expected


def test_every_error_has_its_retry_and_fallback_rule() -> None:
    """A table of its own, so that a change of failures.py is a decision and no accident."""
    follows = {
        cls.__name__: (
            failures.may_retry(cls("x")),
            failures.may_fall_back(cls("x")),
            failures.counts_for_breaker(cls("x")),
        )
        for cls in [*FrontierError.__subclasses__(), FrontierContextTooLong]
    }
    assert follows == {
        "FrontierRejected": (False, False, False),
        "FrontierContextTooLong": (False, True, False),
        "FrontierAuthFailed": (False, True, False),
        "FrontierUnknownModel": (False, True, False),
        "FrontierQuotaExhausted": (False, True, False),
        "FrontierRateLimited": (True, True, False),
        "FrontierUnavailable": (True, True, True),
        "FrontierTimeout": (False, False, True),
        "FrontierInvalidResponse": (False, False, True),
        "FrontierStreamBroken": (False, False, True),
    }


@given(st.text(), st.text(), st.sampled_from(["sk-", "Bearer ", "key-", "sk-ant-api03-"]))
def test_no_quote_holds_a_key(before: str, after: str, kind: str) -> None:
    key = f"{kind}aBcDeF0123456789"
    assert key not in quoted(f"{before} {key} {after}", None)
    odd = "µ-unlike-any-0123456789"
    assert odd not in quoted(f"{before}{odd}{after}", odd)
    assert len(quoted(json.dumps(before) * 100, None)) <= 301
