"""The events of one stream in OpenAI's wire format, read as parts. Pure."""

import time
from collections.abc import Mapping
from typing import Any, ClassVar

from serving.contracts.errors import FrontierError
from serving.contracts.openai import usage_from_openai
from serving.frontier.failures import with_partial_answer, with_usage
from serving.frontier.http_errors import names_error
from serving.frontier.provider_api import StreamPart
from serving.frontier.provider_data import END, ChunkRepair, read_json
from serving.frontier.usage import is_lesser_output, merged_counts, tier_in


class OpenAIStream:
    """Reads events in order, in any of the shapes that compatible servers send.

    Metadata without `choices`, chunks without `delta` and usage in any chunk are accepted.
    has_response: the provider accepted the request. has_begun: a chunk was returned.
    """

    first_event: ClassVar = "with a choice"

    def __init__(self, model: str) -> None:
        self._model = model
        self._counts: dict[str, Any] = {}
        self._tier: str | None = None
        self._open: set[int] = set()
        self._ended: set[int] = set()
        self._repair = ChunkRepair()
        self.has_response = False
        self.has_begun = False

    @property
    def is_finished(self) -> bool:
        """Return whether every choice that began has a finish reason."""
        return bool(self._ended) and self._open <= self._ended

    def event(self, data: str) -> object:
        """Return an event's document; END after the answer. Raises ValueError."""
        return END if data.startswith("[DONE]") else read_json(data)

    def names_error(self, event: dict[str, Any]) -> bool:
        """Return whether an event, or a choice of it, is an error."""
        choices = _choices(event)
        if event.get("error") or any(map(ends_in_error, choices)):
            return True
        return not choices and names_error(event)

    def failed(self, event: dict[str, Any], error: FrontierError) -> FrontierError:
        """Return the error that ends a stream before its first chunk, with what it was billed.

        event: the one that names it. Its text, or usage in it or before it, was paid for.
        """
        counts = event.get("usage")
        if isinstance(counts, dict):
            self._counts = merged_counts(self._counts, counts)
        usage = usage_from_openai(self._counts)
        if usage is not None:
            return with_usage(error, usage)
        parts = [choice.get(name) for choice in _choices(event) for name in ("delta", "message")]
        has_text = any(isinstance(part, dict) and part.get("content") for part in parts)
        return with_partial_answer(error) if has_text else error

    def read(self, event: object) -> StreamPart | None:
        """Return an event's part; None for an event without content.

        Raises ValueError for an event nested too deeply.
        """
        if not isinstance(event, dict):
            return None
        counts = event.pop("usage", None)
        usage = None
        if isinstance(counts, dict):
            is_lesser = is_lesser_output(self._counts, counts, "completion_tokens")
            self._counts = merged_counts(self._counts, counts)
            usage = None if is_lesser else usage_from_openai(self._counts)
        choices = _choices(event)
        for choice in choices:
            self._take(choice)
        self._tier = tier_in(event) or self._tier
        if not choices:
            # A stream begins with a chunk, which brings the usage that precedes it.
            known = self.has_begun and usage is not None
            return StreamPart(None, usage, self._tier, self.is_finished) if known else None
        if not self.has_begun and usage is None:
            usage = usage_from_openai(self._counts)
        self.has_begun = True
        chunk = {"object": "chat.completion.chunk", "created": int(time.time()), **event}
        chunk = self._repair({**chunk, "model": self._model, "choices": choices})
        return StreamPart(chunk, usage, self._tier, self.is_finished)

    def _take(self, choice: dict[str, Any]) -> None:
        if not isinstance(choice.get("delta"), dict):
            # Some servers send a whole message or a completion's text in place of a delta.
            message, text = choice.pop("message", None), choice.pop("text", None)
            given = {"content": text} if isinstance(text, str) else {}
            choice["delta"] = message if isinstance(message, dict) else given
        index = choice.get("index")
        if type(index) is not int:
            choice["index"] = index = 0
        self._open.add(index)
        if choice.get("finish_reason"):
            self._ended.add(index)
            if not is_reason(choice["finish_reason"]):
                choice["finish_reason"] = "length"


def is_reason(value: object) -> bool:
    """Return whether a value is a finish reason. Any other value becomes `length`.

    An answer that may be partial must not look complete.
    """
    return isinstance(value, str) and bool(value)


def ends_in_error(choice: Mapping[str, Any]) -> bool:
    """Return whether a choice ended because of an error."""
    reason = choice.get("finish_reason")
    return isinstance(reason, str) and reason.lower() == "error"


def _choices(event: dict[str, Any]) -> list[dict[str, Any]]:
    choices = event.get("choices")
    return [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
