"""Reads requests that control the server: small closed bodies, and queries that are read whole."""

import re
from collections.abc import Awaitable, Callable, Mapping, Set
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from pydantic import BaseModel, BeforeValidator, ValidationError

from serving.contracts.errors import InvalidRequest
from serving.contracts.invalid_values import invalid
from serving.gateway.http_request import read_json
from serving.pipeline.fields import refuse_half_characters

_Body = TypeVar("_Body", bound=BaseModel)
_WANTED = {
    "bool_type": "true or false",
    "list_type": "a list",
    "model_type": "an object",
    "string_type": "a string",
    "string_too_short": "a string of at least {min_length} characters",
    "string_too_long": "a string of at most {max_length} characters",
    "too_short": "a list of at least {min_length} items",
    "too_long": "a list of at most {max_length} items",
}
_NUL_FREE = "text without the character NUL"


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the part of the OpenAPI document that describes a body."""
    content = {"application/json": {"schema": model.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


def body_of(model: type[_Body]) -> Callable[[Request], Awaitable[_Body]]:
    """Return a dependency that reads a body without converting values.

    Raises InvalidRequest, which names the field; UnsupportedMediaType.
    """

    async def read(request: Request) -> _Body:
        document = await read_json(request)
        if not isinstance(document, dict):
            raise invalid(None, document, "an object")
        _refuse_unstorable(document, "")
        try:
            return model.model_validate(document, strict=True)
        except ValidationError as error:
            raise _refusal(error) from error

    return read


def _refusal(error: ValidationError) -> InvalidRequest:
    problem = error.errors(include_url=False)[0]
    path = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return InvalidRequest(f"{path} is not a field of this request", field=path, fix="remove it")
    value = None if problem["type"] == "missing" else problem["input"]
    wanted = _WANTED.get(problem["type"], "a valid value").format_map(problem.get("ctx") or {})
    return invalid(path, value, wanted)


def _refuse_unstorable(value: Any, path: str) -> None:
    """Raise InvalidRequest for a text, keys too, that is not whole or that no database can hold."""
    if isinstance(value, str):
        if "\0" in value:
            raise invalid(path, value, _NUL_FREE)
        refuse_half_characters(value, path)
    if isinstance(value, Mapping):
        for name, item in value.items():
            _refuse_unstorable(name, path)
            _refuse_unstorable(item, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_unstorable(item, f"{path}.{index}".lstrip("."))


def _whole_query(ignored: Set[str] = frozenset()) -> Any:
    """Return a dependency that refuses an unknown, repeated or unstorable parameter of a query.

    A misspelt condition of a deletion would otherwise delete more than was meant. ignored: what
    SDKs add to every address.
    """

    async def read(request: Request) -> None:
        known = {param.alias for param in request.scope["route"].dependant.query_params}
        seen: set[str] = set()
        for name, value in request.query_params.multi_items():
            if name in ignored:
                continue
            if name not in known:
                raise InvalidRequest(
                    f"this path takes no query parameter {name[:60]!r}",
                    field=name[:60],
                    fix=f"send one of: {', '.join(sorted(known))}" if known else "remove the query",
                )
            if name in seen:
                raise InvalidRequest(
                    f"the query has {name!r} more than once", field=name, fix="send it once"
                )
            if "\0" in value:
                raise invalid(name, value, _NUL_FREE)
            seen.add(name)

    return Depends(read)


WHOLE_QUERY = _whole_query()
LIST_QUERY = _whole_query(frozenset({"api-version", "beta"}))
"""For lists as vendors have them: Azure's SDK adds the one parameter, Anthropic's the other."""


def _digits(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch("[0-9]{1,18}", value):
        raise ValueError("a whole number in the digits 0 to 9")
    return value


QueryInteger = Annotated[int, BeforeValidator(_digits)]
