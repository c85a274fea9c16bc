"""The key of a request: equal exactly where everything that decides the answer is equal. Pure."""

import hashlib
import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from serving.contracts.answer import TaskRequest
from serving.contracts.requests import ChatRequest, Message
from serving.contracts.routing import RequestOptions
from serving.contracts.task_spec import TaskSpec

_FORMAT = 1
"""Of the canonical form. Another number makes every earlier entry unreachable."""

_NO_INFLUENCE = frozenset({
    "user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention",
    "safety_identifier",
})  # fmt: skip
"""Fields of a chat that do not change the answer."""

_SAME_CHARACTER = frozenset({"<wide>", "<narrow>", "<noBreak>"})
"""Compatibility mappings that keep the meaning; others do not: in 10² the 2 is an exponent."""


def chat_key(request: ChatRequest, options: RequestOptions, namespace: str, policy: str) -> str:
    """Return the key of a chat, 64 hex digits. policy: digest of all that decides who answers.

    The way in which the answer is sent (`stream`) is no part of it.
    """
    return _digest(_chat(request, request.messages, options, namespace, policy))


def chat_fingerprint(
    request: ChatRequest, options: RequestOptions, namespace: str, policy: str
) -> str:
    """Return the digest of all that decides a chat's answer besides its last message.

    Two chats that differ in the content of their last message only have the same fingerprint.
    Arguments as chat_key's.
    """
    *others, last = request.messages
    messages = [*others, replace(last, content=None)]
    return _digest(_chat(request, messages, options, namespace, policy))


def task_key(
    request: TaskRequest, spec: TaskSpec, options: RequestOptions, namespace: str, policy: str
) -> str:
    """Return the key of one input of a task, 64 hex digits. Other arguments as chat_key's.

    Only a classification's text is normalised: entities have positions in the text as it was sent,
    and a translation keeps white space.
    """
    is_label = spec.kind == "classification"
    return _digest({
        "kind": "task",
        **_common(options, namespace, policy),
        "task": request.task,
        "spec": spec.digest(),
        "text": normalised(request.text) if is_label else request.text,
        "languages": [request.source_language, request.target_language],
    })  # fmt: skip


def normalised(text: str) -> str:
    """Return a text in the form in which texts are compared.

    Unicode's composed form (NFC), wide and narrow characters and no-break spaces as the usual ones,
    no white space at either end. Not the whole of NFKC: it makes 102 of 10².
    """
    if not text.isascii():
        text = "".join(map(_usual, unicodedata.normalize("NFC", text)))
        text = unicodedata.normalize("NFC", text)
    return text.strip()


def _usual(char: str) -> str:
    mapping = unicodedata.decomposition(char)
    if mapping.startswith("<") and mapping.split(" ", 1)[0] in _SAME_CHARACTER:
        return unicodedata.normalize("NFKC", char)
    return char


def _chat(
    request: ChatRequest,
    messages: Sequence[Message],
    options: RequestOptions,
    namespace: str,
    policy: str,
) -> dict[str, Any]:
    fields = {name: value for name, value in request.fields.items() if name not in _NO_INFLUENCE}
    pruning = request.pruning
    # A message whose content is a string has no part; -1 is before every part.
    marked = sorted((message, -1 if part is None else part) for message, part in pruning.marked)
    return {
        "kind": "chat",
        **_common(options, namespace, policy),
        "model": request.model,
        "messages": [_message(message) for message in messages],
        "max_tokens": request.max_tokens,
        "choices": request.choices,
        "languages": [request.source_language, request.target_language],
        "pruning": [pruning.mode, pruning.ratio, [list(place) for place in marked]],
        "fields": fields,
        "extras": request.extras,
    }


def _common(options: RequestOptions, namespace: str, policy: str) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "namespace": namespace,
        "policy": policy,
        "route": options.route,
        "max_cost_usd": None if options.max_cost_usd is None else f"{options.max_cost_usd:f}",
        "deterministic": options.deterministic,
        # Left out at its default, so that entries from before it existed are found.
        **({} if options.quality == "auto" else {"quality": options.quality}),
    }


def _message(message: Message) -> dict[str, Any]:
    content: Any = message.content
    if isinstance(content, tuple) and len(content) == 1 and set(content[0]) == {"type", "text"}:
        # One part of text is what the text alone is.
        content = content[0]["text"]
    # An answer that the client began is continued from its last character on.
    if isinstance(content, str) and message.role != "assistant":
        content = normalised(content)
    return {"role": message.role, "content": content, "extras": message.extras}


def _digest(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(
        _plain(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    # Halves of surrogate pairs, which a task's input may hold, stay what they are.
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> Any:
    """Return a JSON value in which equal numbers have one form: 1.0 is 1."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
