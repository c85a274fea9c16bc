"""A client's options (route, deadline, maximum cost), as fields or headers."""

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from serving.contracts.context import RequestContext
from serving.contracts.deadline import Deadline
from serving.contracts.routing import AuditPreference, RequestOptions, RoutePreference
from serving.gateway.context import GatewayContext
from serving.gateway.middleware import ROUTE, Arrival
from serving.pipeline.fields import invalid

_NUMBER = re.compile(r"-?(?:\d{1,20}\.?|\d{0,20}\.\d{1,20})(?:[eE][-+]?\d{1,2})?", re.ASCII)
_WANTED = {
    "route": "one of auto, local_only, frontier_only",
    "deadline_s": "a number of seconds above 0",
    "max_cost_usd": "a number of US dollars, 0 or more",
    "audit": "one of auto, never",
    "deterministic": "true or false",
}
_HEADERS = {
    "route": ROUTE,
    "deadline_s": "x-narrowgate-deadline-s",
    "max_cost_usd": "x-narrowgate-max-cost-usd",
    "audit": "x-narrowgate-audit",
    "deterministic": "x-narrowgate-deterministic",
}
_END_USER = "x-narrowgate-user"
# Of OpenAI's API; the newer one first.
_END_USER_FIELDS = ("safety_identifier", "user")
_LONGEST_END_USER = 256


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
        description="seconds, at most gateway.request_timeout_s",
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


class Options:
    """The options in a request's headers, to be merged with those in its body."""

    def __init__(self, request: Request) -> None:
        self._headers = request.headers
        self._arrival: Arrival = request.state.arrival
        self._request = request
        self._context: GatewayContext = request.app.state.context

    def context(self, body: Any) -> RequestContext:
        """Return the request's context, and take the option fields out of its body.

        Raises InvalidRequest, which names the field or header.
        """
        inside = _taken(body) if isinstance(body, dict) else {}
        fields = _validated(inside, dict.fromkeys(inside, ""))
        headers = _from_headers(self._headers)
        longest_s = self._context.settings.request_timeout_s
        wanted_s = fields.deadline_s or headers.deadline_s or longest_s
        cost = fields.max_cost_usd if fields.max_cost_usd is not None else headers.max_cost_usd
        return RequestContext(
            self._arrival.request_id,
            self._request.state.caller,
            RequestOptions(
                fields.route or headers.route or "auto",
                cost,
                # Whoever says `never` is heard.
                "never" if "never" in (fields.audit, headers.audit) else "auto",
                bool(fields.deterministic or headers.deterministic),
                _end_user(body, self._headers),
            ),
            Deadline.after(min(wanted_s, longest_s)),
            self._arrival.at,
            self._arrival.monotonic_s,
        )


def _end_user(body: Any, headers: Mapping[str, str]) -> str | None:
    fields = body if isinstance(body, dict) else {}
    named = [*(fields.get(name) for name in _END_USER_FIELDS), headers.get(_END_USER)]
    given = (value for value in named if isinstance(value, str) and value)
    return next((value[:_LONGEST_END_USER] for value in given), None)


def _taken(body: dict[str, Any]) -> dict[str, Any]:
    return {name: body.pop(name) for name in OptionFields.model_fields if name in body}


def _from_headers(headers: Mapping[str, str]) -> OptionFields:
    found = {name: headers[header] for name, header in _HEADERS.items() if header in headers}
    return _validated(found, _HEADERS)


def _validated(found: dict[str, Any], names: Mapping[str, str]) -> OptionFields:
    if not found:
        return OptionFields()
    try:
        return OptionFields.model_validate(found)
    except ValidationError as error:
        field = str(error.errors(include_url=False, include_context=False)[0]["loc"][0])
        raise invalid(names.get(field) or field, found[field], _WANTED[field]) from error


async def _options(request: Request) -> Options:
    return Options(request)


RequestedOptions = Annotated[Options, Depends(_options)]
