"""Makes the document of a chat from its chunks, and chunks from a document."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

_CALLS = frozenset({"tool_calls", "function_call"})
_REPEATED = frozenset({"role", "content", "refusal"})
_HEAD = ("id", "created", "model", "system_fingerprint", "service_tier")


class StreamedDocument:
    """Collects the chunks of one streamed chat. unfit: why the text is not the whole answer."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._usage: Any = None
        self._choices: dict[int, dict[str, Any]] = {}
        self.unfit: Literal["tool_call", "not_text", "log_probabilities"] | None = None

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Add the next chunk."""
        self._head |= {name: chunk[name] for name in _HEAD if chunk.get(name) is not None}
        self._usage = chunk.get("usage") or self._usage
        for part in chunk.get("choices") or ():
            index = part.get("index", 0)
            choice = self._choices.setdefault(index, _new_choice())
            delta = part.get("delta") or {}
            others = {name for name, value in delta.items() if value} - _REPEATED
            if others:
                self.unfit = "tool_call" if others & _CALLS else "not_text"
            elif part.get("logprobs"):
                self.unfit = "log_probabilities"
            choice["refusal"] = choice["refusal"] or delta.get("refusal")
            if isinstance(delta.get("content"), str):
                choice["content"].append(delta["content"])
            choice["finish_reason"] = part.get("finish_reason") or choice["finish_reason"]

    def document(self, model: str) -> dict[str, Any]:
        """Return the document of the text. model: where the chunks name none."""
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": "".join(choice["content"]),
                    "refusal": choice["refusal"],
                },
                "finish_reason": choice["finish_reason"],
                "logprobs": None,
            }
            for index, choice in sorted(self._choices.items())
        ]
        head = {"object": "chat.completion", "model": model, **self._head}
        return {**head, "choices": choices, "usage": self._usage}


def _new_choice() -> dict[str, Any]:
    return {"content": [], "refusal": None, "finish_reason": None}


def document_chunks(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the chunks of a document: each choice's text, its end, then the usage."""
    head = {name: document[name] for name in _HEAD if name in document}
    head["object"] = "chat.completion.chunk"
    for choice in document["choices"]:
        delta = {name: value for name, value in choice["message"].items() if value is not None}
        yield {**head, "choices": [_part(choice, delta, None)]}
        yield {**head, "choices": [_part(choice, {}, choice["finish_reason"])]}
    yield {**head, "choices": [], "usage": document["usage"]}


def _part(choice: Mapping[str, Any], delta: dict[str, Any], finish: Any) -> dict[str, Any]:
    return {"index": choice["index"], "delta": delta, "finish_reason": finish}
