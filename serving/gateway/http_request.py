"""Reads an HTTP request: its JSON body, and the client's options (fields or headers)."""

import asyncio
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, NoReturn

from fastapi import Depends, Request
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from starlette.datastructures import Headers

from serving.contracts.context import RequestContext
from serving.contracts.deadline import Deadline
from serving.contracts.errors import InvalidRequest, UnsupportedMediaType
from serving.contracts.invalid_values import invalid
from serving.contracts.ledger import Caller
from serving.contracts.routing import (
    AuditPreference,
    QualityPreference,
    RequestOptions,
    RoutePreference,
    end_user_id,
)
from serving.gateway.auth import single_header
from serving.gateway.cache_options import cache_preference, cache_ttl_s
from serving.gateway.context import GatewayContext
from serving.gateway.middleware import ROUTE, Arrival
from serving.pipeline.json_schema import count_values

_INLINE_BYTES = 64 * 1024
"""A longer body is parsed in a thread: 64 KiB take about 1 ms."""
_MAX_VALUES = 50_000
_MAX_DEPTH = 64
"""A document is read on the event loop: a million values take about 1 s, more where nested."""
_MAX_DIGITS = 300
_NUMBER = re.compile(r"-?(?:\d{1,20}\.?|\d{0,20}\.\d{1,20})(?:[eE][-+]?\d{1,2})?", re.ASCII)
_WANTED = {
    "route": "one of auto, local_only, frontier_only",
    "deadline_s": "a number of seconds above 0",
    "max_cost_usd": "a number of US dollars, 0 or more",
    "audit": "one of auto, never",
    "deterministic": "true or false",
    "quality": "one of auto, reference",
}
_TYPES: Mapping[str, tuple[type, ...]] = {
    "deadline_s": (int, float),
    "max_cost_usd": (int, float),
    "deterministic": (bool,),
}
"""Types of a body's fields where a header's text would be taken as well."""
_HEADERS = {
    "route": ROUTE,
    "deadline_s": "x-narrowgate-deadline-s",
    "max_cost_usd": "x-narrowgate-max-cost-usd",
    "audit": "x-narrowgate-audit",
    "deterministic": "x-narrowgate-deterministic",
    "quality": "x-narrowgate-quality",
}
_END_USER = "x-narrowgate-user"
# Of OpenAI's API; the newer one first.
_END_USER_FIELDS = ("safety_identifier", "user")


async def read_json(request: Request) -> Any:
    """Return the body's document.

    Raises UnsupportedMediaType for another type or encoding, InvalidRequest for a body that is not
    JSON in UTF-8, has a key twice, has a number that JSON does not allow, or has too many values.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        raise UnsupportedMediaType(
            f"content-type is {kind!r}" if kind else "the request has no content-type",
            field="content-type",
            fix="send content-type: application/json",
        )
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType(
            f"content-encoding is {encoding!r}, and bodies are not decompressed here",
            field="content-encoding",
            fix="send the body as it is, without content-encoding",
        )
    body = await request.body()
    if len(body) <= _INLINE_BYTES:
        return parse_json(body)
    return await asyncio.to_thread(parse_json, body)


def parse_json(body: bytes) -> Any:
    """Return a JSON document in UTF-8. Raises InvalidRequest."""
    try:
        text = body.decode("utf-8")
        document = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_whole,
        )
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise _malformed("it is nested too deeply") from error
    _require_bounded(document)
    return document


def _require_bounded(document: Any) -> None:
    """Raise InvalidRequest, with the field, for a document of too many values or levels."""
    left = _MAX_VALUES
    for name, value in document.items() if isinstance(document, dict) else [(None, document)]:
        count = count_values(value, left, _MAX_DEPTH + 1)
        if count is None:
            raise InvalidRequest(
                f"the body holds more than {_MAX_VALUES} values, or more than {_MAX_DEPTH} levels "
                "of lists and objects",
                field=name and name[:60],
                fix="send a shorter list, or an object of fewer levels",
            )
        left -= count


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise InvalidRequest(
            f"the body holds the key {twice[:60]!r} twice in one object",
            field=twice[:60],
            fix="send each key once",
        )
    return found


def _refuse(constant: str) -> NoReturn:
    raise _malformed(f"{constant} is not a number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _malformed(f"the number {digits[:20]} is too large")
    return value


def _whole(digits: str) -> int:
    # A longer one may be no float: whatever compares or converts it would raise OverflowError.
    if len(digits) > _MAX_DIGITS:
        raise _malformed(f"the number {digits[:20]}... has more than {_MAX_DIGITS} digits")
    return int(digits)


def _malformed(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the body is not JSON in UTF-8: {reason}", fix="send a JSON object")


def _plain_number(value: Any) -> Any:
    """Refuse what Python reads as a number and JSON does not have as one."""
    if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value)):
        raise ValueError("not a number")
    return value


class OptionFields(BaseModel):
    """Fields that every request may carry; a field takes precedence over its header."""

    route: RoutePreference | None = Field(
        default=None, description="auto; local_only forbids and frontier_only forces escalation"
    )
    deadline_s: Annotated[float, BeforeValidator(_plain_number)] | None = Field(
        default=None,
        gt=0.0,
        allow_inf_nan=False,
        description="seconds; one above gateway.request_timeout_s is shortened to it",
    )
    max_cost_usd: Annotated[Decimal, BeforeValidator(_plain_number)] | None = Field(
        default=None, ge=0, description="frontier models whose worst case costs more are left out"
    )
    audit: AuditPreference | None = Field(
        default=None, description="never: no provider gets the inputs for evidence"
    )
    deterministic: bool | None = Field(
        default=None, description="equal calls get equal answers: no claim is used"
    )
    quality: QualityPreference | None = Field(
        default=None, description="reference: no cheaper tier answers a chat"
    )


class Received:
    """A request that has arrived. body: its JSON document. gateway: the objects that serve it."""

    def __init__(self, request: Request, body: Any) -> None:
        self.body = body
        self.gateway: GatewayContext = request.app.state.context
        self._headers = request.headers
        self._arrival: Arrival = request.state.arrival
        self._caller: Caller = request.state.caller

    def context(self) -> RequestContext:
        """Return the request's context, and take the option fields out of its body. Once.

        A field takes precedence over its header. Raises InvalidRequest, which names the
        field or header.
        """
        body = self.body
        fields = _from_body(body) if isinstance(body, dict) else OptionFields()
        headers = _from_headers(self._headers)
        longest_s = self.gateway.settings.request_timeout_s
        wanted_s = fields.deadline_s or headers.deadline_s or longest_s
        cost = fields.max_cost_usd if fields.max_cost_usd is not None else headers.max_cost_usd
        return RequestContext(
            self._arrival.request_id,
            self._caller,
            RequestOptions(
                fields.route or headers.route or "auto",
                cost,
                # `never` in the field or the header holds.
                "never" if "never" in (fields.audit, headers.audit) else "auto",
                bool(fields.deterministic or headers.deterministic),
                _end_user(body, self._headers),
                cache_preference(body, self._headers),
                cache_ttl_s(self._headers),
                # `reference` in the field or the header holds.
                "reference" if "reference" in (fields.quality, headers.quality) else "auto",
            ),
            Deadline.after(min(wanted_s, longest_s)),
            self._arrival.at,
            self._arrival.monotonic_s,
        )


def body_options(body: dict[str, Any]) -> tuple[RequestOptions, float | None]:
    """Take the option fields out of a body that came without headers.

    Returns them, and the deadline in seconds where the body has one. Raises InvalidRequest.
    """
    fields = _from_body(body)
    none = Headers()
    options = RequestOptions(
        fields.route or "auto",
        fields.max_cost_usd,
        fields.audit or "auto",
        bool(fields.deterministic),
        _end_user(body, none),
        cache_preference(body, none),
        None,
        fields.quality or "auto",
    )
    return options, fields.deadline_s


def _end_user(body: Any, headers: Headers) -> str | None:
    fields = body if isinstance(body, dict) else {}
    named = {name: fields.get(name) for name in _END_USER_FIELDS}
    named[_END_USER] = _in_utf8(single_header(headers, _END_USER))
    given = {name: value for name, value in named.items() if isinstance(value, str) and value}
    for name, value in given.items():
        if "\0" in value:
            raise invalid(name, value, "an id without the character NUL")
    if len(set(given.values())) > 1:
        # Rows have one id: a deletion by another one would find nothing and look done.
        raise InvalidRequest(
            f"{' and '.join(given)} name different end users",
            field=next(iter(given)),
            fix="send one of them, or the same id in each",
        )
    return next(map(end_user_id, given.values()), None)


def _in_utf8(value: str | None) -> str | None:
    """Return a header's text; its bytes were read as Latin-1, which some clients send."""
    try:
        return None if value is None else value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return value


def _from_body(body: dict[str, Any]) -> OptionFields:
    found = {name: body.pop(name) for name in OptionFields.model_fields if name in body}
    for name, types in _TYPES.items():
        value = found.get(name)
        if value is not None and type(value) not in types:
            raise invalid(name, value, _WANTED[name])
    return _validated(found, dict.fromkeys(found, ""))


def _from_headers(headers: Headers) -> OptionFields:
    given = {name: single_header(headers, header) for name, header in _HEADERS.items()}
    return _validated({name: value for name, value in given.items() if value is not None}, _HEADERS)


def _validated(found: dict[str, Any], names: Mapping[str, str]) -> OptionFields:
    if not found:
        return OptionFields()
    try:
        return OptionFields.model_validate(found)
    except ValidationError as error:
        field = str(error.errors(include_url=False, include_context=False)[0]["loc"][0])
        raise invalid(names.get(field) or field, found[field], _WANTED[field]) from error


async def _received(request: Request) -> Received:
    return Received(request, await read_json(request))


ReceivedRequest = Annotated[Received, Depends(_received)]
