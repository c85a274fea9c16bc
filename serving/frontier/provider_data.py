"""JSON documents and server-sent events as providers send them: read leniently, repaired.

A provider's response is data. A value that JSON or UTF-8 does not allow is replaced, so that the
result can be written as JSON.
"""

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

END = object()
"""In place of an event's document: the answer has ended."""

_MAX_DEPTH = 64
_MAX_DIGITS = 40
_REST_OF_BODY_S = 0.2
_MAX_EVENT_BYTES = 16 * 2**20
_STREAM_BYTES = 8 * 2**20
_TOKEN_BYTES, _TOKEN_WITH_LOGPROBS_BYTES = 2**10, 2**13
_EVENT_END = re.compile(rb"\n\n|\r\r|\r\n\r\n")
_LONGEST_END = 4


class StreamTooLong(ValueError):
    """A stream, or an event of it, has more bytes than are read. The message says which."""


def read_json(data: bytes | str) -> Any:
    """Return a JSON value; NaN, infinities and numbers of more than 40 digits become null.

    Raises ValueError for text that is not JSON.
    """
    if isinstance(data, bytes):
        data = data.decode("utf-8-sig", "replace")
    try:
        return json.loads(
            data, parse_constant=lambda _: None, parse_float=_float, parse_int=_integer
        )
    except RecursionError:
        raise ValueError("the document is nested too deeply") from None


def repaired(value: Any, depth: int = 0) -> Any:
    """Return a JSON value whose texts are valid Unicode: half a surrogate pair becomes U+FFFD.

    Raises ValueError for a value nested deeper than 64 levels.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("the document is nested too deeply")
    if isinstance(value, str):
        return _joined_surrogates(value)
    if isinstance(value, list):
        return [repaired(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_joined_surrogates(k): repaired(v, depth + 1) for k, v in value.items()}
    return value


class ChunkRepair:
    """Repairs the chunks of one stream, where a surrogate pair may be split between two chunks."""

    def __init__(self) -> None:
        self._halves: dict[Any, str] = {}

    def __call__(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """Return the chunk with valid texts. Raises ValueError for one nested too deeply."""
        for choice in chunk["choices"]:
            delta, index = choice["delta"], choice.get("index", 0)
            text = delta.get("content")
            half = self._halves.pop(index, "")
            if isinstance(text, str):
                text = half + text
                if text and "\ud800" <= text[-1] <= "\udbff" and not choice.get("finish_reason"):
                    self._halves[index] = text[-1]
                    text = text[:-1]
                delta["content"] = text
            elif half:
                delta["content"] = half
        return dict(repaired(chunk))


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncGenerator[str, None]:
    """Yield the data of each server-sent event in a body, decoded as UTF-8.

    Comments, events without data and other fields are skipped; where nothing else has arrived, an
    empty text says that the sender lives. Raises ValueError for an event larger than 16 MiB.
    """
    pending, searched = bytearray(), 0  # no event ends before `searched`
    async for chunk in chunks:
        has_data = False
        pending += chunk
        if len(pending) > _MAX_EVENT_BYTES:
            raise StreamTooLong("an event exceeds 16 MiB")
        begin = 0
        while (end := _EVENT_END.search(pending, searched)) is not None:
            if data := _data(pending[begin : end.end()]):
                has_data = True
                yield data
            begin = searched = end.end()
        # Each byte is searched once: several finds in what is left took a third of a stream's time.
        del pending[:begin]
        searched = max(0, len(pending) - _LONGEST_END + 1)
        if not has_data:
            yield ""
    if data := _data(pending):
        yield data


def longest_stream(request: Mapping[str, Any]) -> int:
    """Return how many bytes a stream may have that answers a provider's request.

    A token is an event of some hundred bytes. Clients and the cache hold what was not read yet.
    """
    tokens = request.get("max_tokens") or request.get("max_completion_tokens") or 0
    each = _TOKEN_WITH_LOGPROBS_BYTES if request.get("logprobs") else _TOKEN_BYTES
    return _STREAM_BYTES + int(tokens) * int(request.get("n") or 1) * each


async def within(chunks: AsyncIterator[bytes], most_bytes: int) -> AsyncGenerator[bytes, None]:
    """Yield the pieces of a body. Raises StreamTooLong for a longer one."""
    async for chunk in chunks:
        most_bytes -= len(chunk)
        if most_bytes < 0:
            raise StreamTooLong("the stream is longer than its request allows")
        yield chunk


def stream_fault(error: Exception) -> str:
    """Return why a stream cannot be read on, without a word of what is in it."""
    return str(error) if isinstance(error, StreamTooLong) else "an event is not JSON"


async def read_rest(events: AsyncIterator[str]) -> None:
    """Read a body to its end after the last event, for 0.2 s at most, to reuse the connection."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_REST_OF_BODY_S):
            async for _ in events:
                pass


def _data(event: bytearray) -> str:
    lines = event.decode("utf-8-sig", "replace").replace("\r\n", "\n").replace("\r", "\n")
    values = [line[5:] for line in lines.split("\n") if line.startswith("data:")]
    return "\n".join(value.removeprefix(" ") for value in values).strip()


def _float(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _integer(text: str) -> int | None:
    return int(text) if len(text) <= _MAX_DIGITS else None


def _joined_surrogates(text: str) -> str:
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
