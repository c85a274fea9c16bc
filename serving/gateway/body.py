"""Reads a request's body as JSON: media type, encoding, syntax."""

import asyncio
import json
import math
from collections import Counter
from typing import Annotated, Any, NoReturn

from fastapi import Depends, Request

from serving.contracts.errors import InvalidRequest, UnsupportedMediaType
from serving.pipeline.json_schema import count_values

_INLINE_BYTES = 64 * 1024
"""A longer body is parsed in a thread: 64 KiB take about 1 ms."""
_MAX_VALUES = 50_000
_MAX_DEPTH = 64
"""A document is read on the event loop: a million values take about 1 s, more where nested."""


async def _json_body(request: Request) -> Any:
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
            text, object_pairs_hook=_object, parse_constant=_refuse, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start} is not UTF-8") from error
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise _malformed("it is nested too deeply") from error
    except ValueError as error:
        # Python refuses whole numbers of more than 4,300 digits.
        raise _malformed("it holds a number with too many digits") from error
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


def _malformed(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the body is not JSON in UTF-8: {reason}", fix="send a JSON object")


JsonBody = Annotated[Any, Depends(_json_body)]
