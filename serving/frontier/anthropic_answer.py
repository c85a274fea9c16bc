"""Anthropic's answers as OpenAI chat completions, whole and streamed. Pure."""

import json
import time
from collections.abc import Mapping
from typing import Any, ClassVar

from serving.contracts.answer import Usage
from serving.contracts.errors import FrontierError
from serving.contracts.openai import openai_usage
from serving.frontier.http_errors import names_error
from serving.frontier.provider_api import StreamPart, WholeAnswer
from serving.frontier.provider_data import END, ChunkRepair, read_json
from serving.frontier.usage import is_lesser_output, merged_counts, tier_in, usage_from_anthropic

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    # The turn is not finished: the server paused a long one.
    "pause_turn": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def whole_answer(message: Mapping[str, Any], model: str) -> WholeAnswer | None:
    """Return a Message as a completion, None where it is not a Message. Thinking is not shown."""
    content = message.get("content")
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        return None
    texts = [_text(block.get("text")) for block in content if block.get("type") == "text"]
    calls = [
        _tool_call(block, json.dumps(block.get("input") or {}, ensure_ascii=False))
        for block in content
        if block.get("type") == "tool_use"
    ]
    usage = usage_from_anthropic(message.get("usage"))
    answer: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if calls:
        answer = {**answer, "content": answer["content"] or None, "tool_calls": calls}
    body: dict[str, Any] = {
        "id": _text(message.get("id")),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": answer,
                "logprobs": None,
                "finish_reason": _finish(message.get("stop_reason")),
            }
        ],
    }
    if usage is not None:
        body["usage"] = openai_usage(usage)
    return WholeAnswer(body, usage, tier_in(message.get("usage")))


class AnthropicStream:
    """Turns the events of one stream into parts, in order.

    message_start and message_delta both carry cumulative counts; the larger of a repeated count
    holds. has_response: the provider accepted the request. has_begun: a chunk was returned.
    """

    first_event: ClassVar = "of a message"

    def __init__(self, model: str) -> None:
        self._model = model
        self._id = ""
        self._created = int(time.time())
        self._counts: dict[str, Any] = {}
        self._calls: dict[object, int] = {}
        self._repair = ChunkRepair()
        self.has_response = False
        self.has_begun = False
        self.is_finished = False

    def event(self, data: str) -> object:
        """Return an event's document; END after the answer. Raises ValueError."""
        event = END if data == "[DONE]" else read_json(data)
        is_last = isinstance(event, dict) and event.get("type") == "message_stop"
        return END if is_last else event

    def names_error(self, event: dict[str, Any]) -> bool:
        """Return whether an event is an error."""
        return names_error(event)

    def failed(self, _: dict[str, Any], error: FrontierError) -> FrontierError:
        """Return the error that an event names, as it is: error events carry no usage."""
        return error

    def read(self, event: object) -> StreamPart | None:
        """Return an event's part; None for an event without content.

        Raises ValueError for an event nested too deeply.
        """
        if not isinstance(event, dict):
            return None
        kind, index = event.get("type"), event.get("index", 0)
        if kind == "message_start":
            message = _mapping(event.get("message"))
            self._id = _text(message.get("id"))
            return self._part({"role": "assistant", "content": ""}, counts=message.get("usage"))
        if kind == "content_block_start":
            return self._start(index, _mapping(event.get("content_block")))
        if kind == "content_block_delta":
            return self._delta(index, _mapping(event.get("delta")))
        if kind == "message_delta":
            reason = _mapping(event.get("delta")).get("stop_reason")
            if reason is None:
                return self._usage(event.get("usage"))
            self.is_finished = True
            return self._part({}, _finish(reason), event.get("usage"))
        return self._usage(event.get("usage"))

    def _start(self, index: object, block: Mapping[str, Any]) -> StreamPart | None:
        if block.get("type") == "text" and block.get("text"):
            return self._part({"content": _text(block["text"])})
        if block.get("type") != "tool_use":
            return None
        position = self._calls.setdefault(repr(index), len(self._calls))
        return self._part({"tool_calls": [{"index": position, **_tool_call(block, "")}]})

    def _delta(self, index: object, delta: Mapping[str, Any]) -> StreamPart | None:
        if delta.get("type") == "text_delta":
            return self._part({"content": _text(delta.get("text"))})
        position = self._calls.get(repr(index))
        if delta.get("type") != "input_json_delta" or position is None:
            return None
        function = {"arguments": _text(delta.get("partial_json"))}
        return self._part({"tool_calls": [{"index": position, "function": function}]})

    def _usage(self, counts: object) -> StreamPart | None:
        if not self.has_begun or not isinstance(counts, Mapping):
            return None
        usage = self._merged(counts)
        return StreamPart(None, usage, tier_in(self._counts), self.is_finished)

    def _merged(self, counts: Mapping[str, Any]) -> Usage | None:
        is_lesser = is_lesser_output(self._counts, counts, "output_tokens")
        self._counts = merged_counts(self._counts, counts)
        return None if is_lesser else usage_from_anthropic(self._counts)

    def _part(
        self, delta: dict[str, Any], finish: str | None = None, counts: object = None
    ) -> StreamPart:
        usage = self._merged(counts) if isinstance(counts, Mapping) else None
        self.has_begun = True
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [choice],
        }
        return StreamPart(self._repair(chunk), usage, tier_in(self._counts), self.is_finished)


def _tool_call(block: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    return {
        "id": block.get("id"),
        "type": "function",
        "function": {"name": block.get("name"), "arguments": arguments},
    }


def _finish(reason: object) -> str:
    """Return OpenAI's finish reason.

    A reason that is missing or unknown may mean a partial answer, which must not look whole:
    `length`.
    """
    return _FINISH.get(reason, "length") if isinstance(reason, str) else "length"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
