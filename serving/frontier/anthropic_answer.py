"""Anthropic's answers as OpenAI chat completions, whole and streamed. Pure."""

import json
import time
from collections.abc import Mapping
from typing import Any

from serving.contracts.answer import Usage
from serving.contracts.openai import openai_usage
from serving.frontier.provider_api import StreamPart, WholeAnswer
from serving.frontier.usage import from_anthropic, tier_in

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def whole_answer(message: Mapping[str, Any], model: str) -> WholeAnswer | None:
    """Return a Message as a completion, None where it is no Message. Thinking is not shown."""
    content = message.get("content")
    if not isinstance(content, list) or not all(isinstance(block, dict) for block in content):
        return None
    texts = [block.get("text") or "" for block in content if block.get("type") == "text"]
    calls = [
        _tool_call(block, json.dumps(block.get("input") or {}, ensure_ascii=False))
        for block in content
        if block.get("type") == "tool_use"
    ]
    usage = from_anthropic(message.get("usage"))
    answer: dict[str, Any] = {"role": "assistant", "content": "".join(texts)}
    if calls:
        answer = {**answer, "content": answer["content"] or None, "tool_calls": calls}
    body: dict[str, Any] = {
        "id": message.get("id") or "",
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


class ChunkTranslator:
    """Turns the events of one Anthropic stream into chunks, in order.

    message_start and message_delta both carry cumulative counts: the later replaces the earlier.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._id = ""
        self._created = int(time.time())
        self._counts: dict[str, Any] = {}
        self._calls: dict[int, int] = {}
        self.started = False
        self.finished = False

    @property
    def usage(self) -> Usage | None:
        """Return what the answer used so far; None where the provider never told."""
        return from_anthropic(self._counts)

    def feed(self, event: Mapping[str, Any]) -> list[StreamPart]:
        """Return an event's chunks. Raises KeyError or TypeError for malformed ones."""
        match event.get("type"):
            case "message_start":
                message = event["message"]
                self.started = True
                self._id = message["id"]
                self._count(message.get("usage"))
                return [self._part({"role": "assistant", "content": ""})]
            case "content_block_start":
                return self._start(event["index"], event["content_block"])
            case "content_block_delta":
                return self._delta(event["index"], event["delta"])
            case "message_delta":
                self._count(event.get("usage"))
                reason = event["delta"].get("stop_reason")
                if reason is None:
                    return []
                self.finished = True
                return [self._part({}, _finish(reason))]
            case "message_stop":
                return [self._last()] if self.usage else []
            case _:
                return []

    def _start(self, index: int, block: Mapping[str, Any]) -> list[StreamPart]:
        if block["type"] == "text":
            return [self._part({"content": block["text"]})] if block.get("text") else []
        if block["type"] != "tool_use":
            return []
        self._calls[index] = len(self._calls)
        call = {"index": self._calls[index], **_tool_call(block, "")}
        return [self._part({"tool_calls": [call]})]

    def _delta(self, index: int, delta: Mapping[str, Any]) -> list[StreamPart]:
        match delta["type"]:
            case "text_delta":
                return [self._part({"content": delta["text"]})]
            case "input_json_delta" if index in self._calls:
                function = {"arguments": delta["partial_json"]}
                call = {"index": self._calls[index], "function": function}
                return [self._part({"tool_calls": [call]})]
            case _:
                return []

    def _count(self, counts: object) -> None:
        if isinstance(counts, Mapping):
            self._counts |= {name: value for name, value in counts.items() if value is not None}

    def _part(self, delta: dict[str, Any], finish: str | None = None) -> StreamPart:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return StreamPart(self._chunk([choice]), self.usage, tier_in(self._counts))

    def _last(self) -> StreamPart:
        assert self.usage is not None
        chunk = {**self._chunk([]), "usage": openai_usage(self.usage)}
        return StreamPart(chunk, self.usage, tier_in(self._counts))

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }


def _tool_call(block: Mapping[str, Any], arguments: str) -> dict[str, Any]:
    return {
        "id": block.get("id"),
        "type": "function",
        "function": {"name": block.get("name"), "arguments": arguments},
    }


def _finish(reason: object) -> str:
    return _FINISH.get(reason, "stop") if isinstance(reason, str) else "stop"
