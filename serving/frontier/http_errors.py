"""Translates the errors of providers and their proxies to NarrowgateErrors. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx2

from serving.contracts.chat_fields import PASSED_FIELDS
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
from serving.frontier.failures import as_unreached
from serving.frontier.retry_after import retry_after_s

TRANSPORT_ERRORS = (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError)
"""Errors of the HTTP client under both SDKs: raised directly or as the cause of an SDK's error."""

# Raised before the whole request has left, so nothing can be billed.
_NOTHING_SENT = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.InvalidURL,
    httpx2.LocalProtocolError,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
    httpx2.WriteError,
    ConnectionRefusedError,
)
_UNREADABLE = (httpx2.DecodingError, httpx2.StreamError, httpx2.TooManyRedirects)

_LONGEST_QUOTE = 300
# Before a capital that begins a word: API is one word.
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# A field of the request: as an error's `param`, or before the colon of its message.
_FIELD = re.compile(r"[a-z]\w*+(?:\.\w++|\[\d++\])*+", re.ASCII)
_QUOTED_FIELD = re.compile(
    r"(?:body\.)?(?P<field>(?P<root>[a-z]\w*+)(?:\.\w++|\[\d++\])*+):\s", re.ASCII
)
_LONGEST_FIELD = 100
_KEY_LIKE = re.compile(r"\b(?:sk|pk|xai|gsk|key|bearer|token)[-_ ][\w*.-]{6,}", re.IGNORECASE)

_TOO_LONG = re.compile(
    r"prompt is too long|context[ _](?:length|limit|window)|maximum context"
    r"|too many (?:input )?tokens"
)
_NO_CREDIT = re.compile(
    r"credit balance|insufficient[ _](?:quota|funds|balance|credit)|spend.limit"
)
_QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "billing_error",
        "contract_spend_limit_reached",
        "enforced_spend_limit_reached",
        "linked_organization_spend_limit_reached",
        "linked_organization_billing_unavailable",
        "user_profile_not_billable",
    }
)
_STATUS_OF_NAME = {
    # An error in a stream, or in an answer with status 200, is classified by its code or type.
    "invalid_request_error": 400,
    "invalid_argument": 400,
    "context_length_exceeded": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "unauthenticated": 401,
    "billing_error": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found_error": 404,
    "not_found": 404,
    "model_not_found": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "rate_limited": 429,
    "resource_exhausted": 429,
    "insufficient_quota": 429,
    "too_many_requests": 429,
    "api_error": 500,
    "server_error": 500,
    "internal": 500,
    "unavailable": 503,
    "deadline_exceeded": 504,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_CODES = ("code", "type", "status", "status_code", "statusCode", "http_status", "error_code")
_MESSAGES = ("message", "detail", "msg", "error_description", "error_message", "error_msg",
             "errors", "reason", "text", "title")  # fmt: skip
_LIMITED = re.compile(r"rate.?limit|too many requests")
_TIMED_OUT = frozenset({499, 504, 524, 598, 599})
"""Answers of proxies that stopped waiting while the provider worked."""

_BROKEN_UPSTREAM = frozenset({502, 520})
"""Answers of proxies whose connection to the provider broke."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error that a provider returned instead of an answer.

    status: HTTP status, or the number in the error itself where the status is 200. names: the
    error's code and type, lower case. text: its message, quoted only where the request is at fault.
    param: the field that the error names.
    """

    provider: str
    status: int
    names: frozenset[str] = frozenset()
    text: str = ""
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def refusal_from(
    provider: str, status: int, body: object, headers: Mapping[str, str] | None = None
) -> Refusal:
    """Read an error document of any shape.

    Known shapes: OpenAI's and Anthropic's `error`, an `error` that is a text, `message`, `detail`
    as a text or as a list of validation errors, and a list of such documents.
    """
    error = _first(body)
    if isinstance(error, Mapping):
        # An `error` that is true or null says nothing by itself.
        inner = error.get("error")
        listed = error.get("errors")
        if not isinstance(inner, str | Mapping | list):
            inner = listed if isinstance(listed, list) else None
        error = inner or error
    values = first if isinstance(first := _first(error), Mapping) else {}
    codes = _codes(values)
    if status < 300:
        status = next((n for n in map(_http_error_status, codes) if n is not None), status)
    names = frozenset(code.lower() for code in codes if isinstance(code, str))
    named = {name.lower(): value for name, value in (headers or {}).items()}
    text = _message(error)
    return Refusal(provider, status, names, text, _field_of(values.get("param"), text), named)


def names_error(document: Mapping[str, Any], *, is_whole: bool = False) -> bool:
    """Return whether a document without an answer names an error, in any known shape.

    is_whole: it is the whole response, so that a message about a limit is an error as well. Any
    other message may be an answer in a shape that is not known, and paid for.
    """
    marks = [document.get(name) for name in ("object", "type", "status")]
    if document.get("error") or document.get("errors") or document.get("success") is False:
        return True
    if "error" in marks or any(_http_error_status(code) for code in _codes(document)):
        return True
    return is_whole and "usage" not in document and _tells_limit(_message(document))


def error_of(refusal: Refusal, secret: str | None) -> FrontierError:
    """Return the NarrowgateError for a refusal. secret: the key, which no message may quote."""
    status = refusal.status
    what = f"provider {refusal.provider!r} answered HTTP {status}"
    if 300 <= status < 400:
        return FrontierUnavailable(
            f"{what}: redirects are not followed, so that prompts reach the configured host only",
            fix=f"set frontier.providers.{refusal.provider}.base_url to the final address",
        )
    text = refusal.text.lower()
    if status < 400 and not refusal.names & _STATUS_OF_NAME.keys() and _tells_limit(text):
        status = 429
    if status < 400:
        # Of several names the lowest status is the most specific: every failure is an api_error.
        status = min((_STATUS_OF_NAME.get(name, 500) for name in refusal.names), default=500)
    if status in (401, 403) and not refusal.names & _QUOTA_CODES:
        return FrontierAuthFailed(
            f"{what}: the key is not accepted, or may not use this model",
            fix="check the provider's key and its permissions",
        )
    if status == 402 or refusal.names & _QUOTA_CODES or (status < 500 and _NO_CREDIT.search(text)):
        return FrontierQuotaExhausted(
            f"{what}: the account is out of credit or at its spending limit",
            fix="add credit or raise the limit at the provider",
        )
    if status == 404 or "model_not_found" in refusal.names:
        return FrontierUnknownModel(
            f"{what}: no such model", fix="check the model's name in frontier.tiers"
        )
    if status in _TIMED_OUT:
        return timed_out(refusal.provider, f"HTTP {status}")
    if status in _BROKEN_UPSTREAM and not refusal.names:
        return interrupted(refusal.provider, f"HTTP {status} of a proxy")
    return _temporary(status, what, refusal) or _fault_of_request(status, what, refusal, secret)


def translate_transport(error: BaseException, provider: str) -> FrontierError:
    """Return the NarrowgateError for an error of the HTTP client."""
    source = in_words(error)
    if isinstance(error, _NOTHING_SENT):
        return as_unreached(
            FrontierUnavailable(
                f"provider {provider!r} was not reached ({source})",
                fix="check the network and the provider's status, or retry",
            )
        )
    if isinstance(error, httpx2.TimeoutException):
        return timed_out(provider, source)
    if isinstance(error, _UNREADABLE):
        return unreadable(provider, source)
    return interrupted(provider, source)


def in_words(error: BaseException) -> str:
    """Return the words of an error's class: "remote protocol error", without a library's name."""
    return _CAPITAL.sub(" ", type(error).__name__).lower()


def timed_out(provider: str, source: str) -> FrontierTimeout:
    """Return the error of a provider that accepted the request and did not answer in time."""
    return FrontierTimeout(
        f"provider {provider!r} did not answer in time ({source}); the call may have been billed",
        fix="raise first_byte_timeout_s or the request's timeout; a repeat may be billed again",
    )


def interrupted(provider: str, source: str) -> FrontierInvalidResponse:
    """Return the error of a connection that broke after the request was sent."""
    return FrontierInvalidResponse(
        f"the connection to provider {provider!r} broke before its answer ({source}); "
        "the call may have been billed",
        fix="check the network and the provider's status",
    )


def unreadable(provider: str, why: str) -> FrontierInvalidResponse:
    """Return the error of an answer that arrived and cannot be used."""
    return FrontierInvalidResponse(
        f"the answer of provider {provider!r} cannot be read: {why}; the call may have been billed",
        fix="check the provider's base_url and status",
    )


def unsendable(provider: str, error: Exception) -> FrontierRejected:
    """Return the error of a request that no HTTP body can carry, such as half a surrogate pair."""
    return FrontierRejected(
        f"the request to provider {provider!r} cannot be encoded ({type(error).__name__})",
        field="messages",
        fix="send valid Unicode and plain JSON values",
    )


def quoted(text: str, secret: str | None) -> str:
    """Return a provider's message, shortened, without the key or anything that looks like one."""
    if secret:
        text = text.replace(secret, "[key]")
    text = " ".join(_KEY_LIKE.sub("[key]", text).split())
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def _temporary(status: int, what: str, refusal: Refusal) -> FrontierError | None:
    wait_s = retry_after_s(refusal.headers)
    if status == 429:
        return FrontierRateLimited(
            f"{what}: its rate limit is reached",
            fix="retry later, or raise the limit at the provider",
            retry_after_s=wait_s,
        )
    if status in (408, 409, 425) or status >= 500:
        return FrontierUnavailable(
            f"{what}: it is temporarily unavailable", fix="retry later", retry_after_s=wait_s
        )
    return None


def _fault_of_request(
    status: int, what: str, refusal: Refusal, secret: str | None
) -> FrontierRejected:
    quote = f": {quoted(refusal.text, secret)}" if refusal.text else ""
    is_long = "context_length_exceeded" in refusal.names or _TOO_LONG.search(refusal.text.lower())
    if status == 413 or is_long:
        return FrontierContextTooLong(
            f"{what}, the request is too long{quote}",
            field="messages",
            fix="shorten the messages or lower max_tokens",
        )
    return FrontierRejected(
        f"{what}, it rejected the request{quote}",
        field=refusal.param or "messages",
        fix="change the request as the provider says",
    )


def _field_of(param: object, text: str) -> str | None:
    """Return the request's field at which an error points, where it names one that exists."""
    if isinstance(param, str) and len(param) <= _LONGEST_FIELD and _FIELD.fullmatch(param):
        return param
    found = _QUOTED_FIELD.match(text[:_LONGEST_FIELD])
    if found is not None and found["root"] in PASSED_FIELDS:
        return found["field"]
    return None


def _http_error_status(code: object) -> int | None:
    if isinstance(code, str) and code.isascii() and code.isdigit():
        code = int(code[:4])
    if isinstance(code, float) and code.is_integer():
        code = int(code)
    return code if type(code) is int and 400 <= code < 600 else None


def _tells_limit(text: str) -> bool:
    return _LIMITED.search(text.lower()) is not None


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) and value else value


def _codes(values: Mapping[str, Any]) -> list[object]:
    """Return what an error document gives as its codes, types and statuses."""
    details = values.get("details")
    inner = details.get("error_code") if isinstance(details, Mapping) else None
    return [*(values.get(name) for name in _CODES), inner]


def _message(error: object) -> str:
    """Return the text of an error from any of its fields; empty for an HTML page."""
    if isinstance(error, str):
        return "" if error.lstrip().startswith("<") else error
    if isinstance(error, list):
        return "; ".join(filter(None, map(_message, error[:5])))
    if not isinstance(error, Mapping):
        return ""
    for name in _MESSAGES:
        if text := _message(error.get(name)):
            place = error.get("loc")
            return f"{'.'.join(map(str, place))}: {text}" if isinstance(place, list) else text
    errors = error.get("errors")
    if isinstance(errors, Mapping):
        # Errors by field.
        return "; ".join(f"{field}: {_message(what)}" for field, what in list(errors.items())[:5])
    return ""
