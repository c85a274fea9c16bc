"""Errors of our tree for what providers answer instead of an answer, whatever the SDK. Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from serving.contracts.errors import (
    FrontierAuthFailed,
    FrontierContextTooLong,
    FrontierError,
    FrontierQuotaExhausted,
    FrontierRateLimited,
    FrontierRejected,
    FrontierTimeout,
    FrontierUnavailable,
    FrontierUnknownModel,
)
from serving.frontier.retry_after import retry_after_s

_LONGEST_QUOTE = 300
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
_STATUS_OF_TYPE = {
    # Errors inside a stream come with status 200; their type says what they are.
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "api_error": 500,
    "server_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a provider answered instead of an answer.

    names: its error's code and type. text: its message, quoted only where the fault is the
    request's. source: the SDK's class.
    """

    provider: str
    source: str
    status: int
    names: frozenset[str] = frozenset()
    text: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


def error_of(refusal: Refusal, secret: str | None) -> FrontierError:
    """Return the error of our tree for a refusal. secret: the key, which no message may quote."""
    status = refusal.status
    if status < 400:
        # Of several names the lowest status is the most specific: every failure is an api_error.
        status = min((_STATUS_OF_TYPE.get(name, 500) for name in refusal.names), default=500)
    what = f"provider {refusal.provider!r} answered HTTP {status} ({refusal.source})"
    text = refusal.text.lower()
    if status in (401, 403) and not refusal.names & _QUOTA_CODES:
        return FrontierAuthFailed(
            f"{what}: the key is not accepted, or may not use this model",
            fix="check the provider's key and what it may use",
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
    return _passing(status, what, refusal) or _fault_of_request(status, what, refusal, secret)


def _passing(status: int, what: str, refusal: Refusal) -> FrontierError | None:
    wait_s = retry_after_s(refusal.headers)
    if status == 429:
        return FrontierRateLimited(
            f"{what}: its rate limit is reached",
            fix="retry later, or raise the limit at the provider",
            retry_after_s=wait_s,
        )
    if status in (408, 409, 425, 499) or status >= 500:
        return FrontierUnavailable(
            f"{what}: it cannot answer now", fix="retry later", retry_after_s=wait_s
        )
    return None


def _fault_of_request(
    status: int, what: str, refusal: Refusal, secret: str | None
) -> FrontierRejected:
    said = f": {quoted(refusal.text, secret)}" if refusal.text else ""
    long = "context_length_exceeded" in refusal.names or _TOO_LONG.search(refusal.text.lower())
    if status == 413 or long:
        return FrontierContextTooLong(
            f"{what}, the request is too long{said}",
            field="messages",
            fix="shorten the messages or lower max_tokens",
        )
    return FrontierRejected(
        f"{what}, it finds fault with the request{said}",
        field="messages",
        fix="change the request as the provider says",
    )


def quoted(text: str, secret: str | None) -> str:
    """Return a provider's words, without the key or anything that looks like one, shortened."""
    if secret:
        text = text.replace(secret, "[key]")
    text = " ".join(_KEY_LIKE.sub("[key]", text).split())
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def not_reached(provider: str, source: str) -> FrontierUnavailable:
    """Return the error of a call that met no server, or whose connection gave no answer."""
    return FrontierUnavailable(
        f"provider {provider!r} was not reached or hung up without an answer ({source})",
        fix="check the network and the provider's status, or retry",
    )


def silent(provider: str, source: str) -> FrontierTimeout:
    """Return the error of a provider that took the request and did not answer in time."""
    return FrontierTimeout(
        f"provider {provider!r} did not answer in time ({source})",
        fix="retry, or raise first_byte_timeout_s or the request's timeout",
    )


def unsendable(provider: str, error: Exception) -> FrontierRejected:
    """Return the error of a request that no HTTP body can carry, such as half a surrogate pair."""
    return FrontierRejected(
        f"the request to provider {provider!r} cannot be encoded ({type(error).__name__})",
        field="messages",
        fix="send valid Unicode and plain JSON values",
    )
