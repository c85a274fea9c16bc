"""Chats and answers as the text that a judge compares."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from serving.contracts.requests import ChatRequest


def is_comparable(request: ChatRequest, max_chars: int) -> bool:
    """Return whether a judge can compare answers to a request: one choice of text, not too long."""
    return (
        request.choices == 1
        and request.text_chars <= max_chars
        and not request.fields.get("logprobs")
        and all(m.is_text or m.content in (None, "", ()) for m in request.messages)
    )


def question_of(request: ChatRequest) -> str:
    """Return a conversation as the judge reads it."""
    lines = []
    for message in request.messages:
        calls = message.extras.get("tool_calls")
        text = message.text if not calls else f"{message.text}\n{json.dumps(calls)}"
        lines.append(f"{message.role.upper()}: {text}")
    return "\n\n".join(lines)


def answer_text(document: Mapping[str, Any]) -> str:
    """Return what a judge compares of an answer: its text and the calls of tools that it asks."""
    message = document["choices"][0].get("message", {})
    content, calls = message.get("content"), message.get("tool_calls")
    text = content if isinstance(content, str) else ""
    if not calls:
        return text
    asked = [call.get("function", call) for call in calls if isinstance(call, dict)]
    return f"{text}\n{json.dumps(asked, sort_keys=True)}".strip()


class FollowedEvents:
    """The events of a streamed answer; adds details to the first, and gives its text at the end.

    details: None adds none.
    ended: called with the text of an answer that ended; not where it broke or the client left.
    finish_reason: of its choice, once that is known.
    """

    def __init__(
        self,
        events: AsyncIterator[dict[str, Any]],
        details: dict[str, Any] | None,
        ended: Callable[[str], None],
    ) -> None:
        self._events = events
        self._details = details
        self._ended = ended
        self._texts: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self.finish_reason: str | None = None

    def __aiter__(self) -> "FollowedEvents":
        return self

    async def __anext__(self) -> dict[str, Any]:
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            self._ended(self._text())
            raise
        self._note(event)
        if self._details is not None:
            event = {**event, "narrowgate": {**event.get("narrowgate", {}), **self._details}}
            self._details = None
        return event

    async def aclose(self) -> None:
        """Close the events."""
        close = getattr(self._events, "aclose", None)
        if close is not None:
            await close()

    def _note(self, event: dict[str, Any]) -> None:
        for choice in event.get("choices") or ():
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            delta = choice.get("delta") or {}
            if isinstance(delta.get("content"), str):
                self._texts.append(delta["content"])
            for call in delta.get("tool_calls") or ():
                found = self._calls.setdefault(call.get("index", 0), {"name": "", "arguments": ""})
                for name, part in (call.get("function") or {}).items():
                    if name in found and isinstance(part, str):
                        found[name] += part

    def _text(self) -> str:
        text = "".join(self._texts)
        if not self._calls:
            return text
        asked = [self._calls[index] for index in sorted(self._calls)]
        return f"{text}\n{json.dumps(asked, sort_keys=True)}".strip()
