"""Learns the token usage of a stream without showing a client more than it asked for."""

import json
from collections.abc import Mapping
from typing import Any

_PREFIX = "data: "


class UsageFilter:
    """Asks the engine for usage at the end of a stream and takes that event out again.

    body: the request to send. found: the usage, once seen.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        self.found: dict[str, Any] | None = None
        self._hide = False
        self.body = body
        if body.get("stream"):
            options = body.get("stream_options")
            if options is None or isinstance(options, dict):
                self._hide = not wants_usage(body)
                self.body = {**body, "stream_options": {**(options or {}), "include_usage": True}}

    def passed(self, event: str) -> str:
        """Return what of an event goes to the client, which may be nothing.

        event: one or more server-sent events as text.
        """
        if '"usage"' not in event:
            return event
        kept = [block for block in event.split("\n\n") if block and not self._is_ours(block)]
        return "".join(f"{block}\n\n" for block in kept)

    def _is_ours(self, block: str) -> bool:
        if not block.startswith(_PREFIX) or block == "data: [DONE]":
            return False
        chunk = json.loads(block.removeprefix(_PREFIX))
        usage = chunk.get("usage")
        if usage is None or chunk.get("choices"):
            return False
        self.found = usage
        return self._hide


def wants_usage(body: Mapping[str, Any]) -> bool:
    """Return whether a client asked for a stream's usage."""
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))
