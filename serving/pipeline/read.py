"""Reads a request: a JSON document becomes one frozen, validated request.

Every field of the API is known here and nowhere else: validated, left out because it has no effect
(null, empty, or a default), or carried as an extra.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from serving.contracts.answer import TaskRequest
from serving.contracts.errors import (
    EmptyInput,
    InvalidRequest,
    TooManyInputs,
    UnsupportedParameter,
)
from serving.contracts.invalid_values import SHOWN_CHARS, invalid
from serving.contracts.requests import (
    TASK_PREFIX,
    ChatRequest,
    CompletionRequest,
    Message,
    TaskBatch,
)
from serving.contracts.task_spec import TaskSpec, TranslationSpec
from serving.pipeline.context_fields import FIELD as PRUNING_FIELD
from serving.pipeline.context_fields import read_pruning
from serving.pipeline.fields import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    boolean,
    choices,
    is_default,
    object_,
    positive,
    read_part,
    read_tool_calls,
    refuse_half_characters,
    role_of,
    stream_options,
    text,
)
from serving.tasks.blank_text import is_blank
from serving.tasks.catalog import find_task

MAX_MESSAGES = 2048
_LONGEST_MODEL = 265
"""Characters: `provider/model` as settings may name it."""
"""The most messages of one chat, as at OpenAI's API: checking them takes time on the event loop."""


_CHOICES_AMONG = (("tools", "tool_choice"), ("functions", "function_call"))
_SPEAK_WITHOUT_CONTENT = frozenset({"tool_calls", "function_call", "refusal", "audio"})


def read_chat(document: Any, max_inputs: int) -> ChatRequest:
    """Return a chat completion's request. max_inputs: the most choices.

    Raises InvalidRequest and its subclasses, which name the field.
    """
    body = _body(document)
    name = _model(body)
    messages = _messages(body.pop("messages", None))
    if not name.startswith(TASK_PREFIX):
        # A task refuses its input itself, and records it.
        _require_visible(messages)
    stream, include_usage = _stream(body)
    count = _choices(body)
    _require_inputs(count, "n", max_inputs)
    limits = [
        positive(body.pop(name), name)
        for name in ("max_completion_tokens", "max_tokens")
        if name in body
    ]
    source, target = (
        text(body.pop(name), name) if name in body else None
        for name in ("source_language", "target_language")
    )
    messages, pruning = read_pruning(body.pop(PRUNING_FIELD, None), messages)
    fields, extras = _fields(body, CHAT_FIELDS)
    _require_together(fields)
    return ChatRequest(
        name, messages, stream, include_usage, min(limits, default=None), count, source, target,
        fields, extras, pruning,
    )  # fmt: skip


def read_completion(document: Any, max_inputs: int) -> CompletionRequest:
    """Return a completion's request. max_inputs: the most prompts times choices.

    Raises InvalidRequest and its subclasses, which name the field.
    """
    body = _body(document)
    name = _model(body)
    prompts = _prompts(body.pop("prompt", None), max_inputs)
    stream, include_usage = _stream(body)
    count = _choices(body)
    _require_inputs(count * len(prompts), "n", max_inputs)
    limit = positive(body.pop("max_tokens"), "max_tokens") if "max_tokens" in body else None
    fields, extras = _fields(body, COMPLETION_FIELDS)
    return CompletionRequest(
        name, prompts, stream, include_usage, limit, count, fields=fields, extras=extras
    )


def read_tasks(
    task: str, document: Any, specs: Mapping[str, TaskSpec], max_inputs: int
) -> TaskBatch:
    """Return the inputs of a request to one task. specs: by name. max_inputs: the most inputs.

    Raises UnknownTask, and InvalidRequest and its subclasses, which name the field.
    """
    spec = find_task(specs, task)
    body = _body(document, exempt=frozenset({"input", "inputs"}))
    one, several = body.pop("input", None), body.pop("inputs", None)
    source, target = body.pop("source_language", None), body.pop("target_language", None)
    # Read by the gateway: evidence and cached answers are deleted by the first two, and the third
    # forbids to store the answer.
    for name in ("user", "safety_identifier"):
        text(body.pop(name, ""), name)
    boolean(body.pop("store", True), "store")
    if body:
        name = sorted(body)[0]
        known = (
            "input, inputs, source_language, target_language, user, safety_identifier, store, "
            "route, deadline_s, max_cost_usd, audit, deterministic, quality"
        )
        raise InvalidRequest(
            f"{name!r} is not a field of this request", field=name, fix=f"send only {known}"
        )
    if (one is None) == (several is None):
        raise InvalidRequest(
            "the request needs either input or inputs",
            field="input",
            fix='send {"input": "a text"} or {"inputs": ["a text", "another"]}',
        )
    if several is None:
        return TaskBatch(task, (task_request(spec, text(one, "input"), source, target),))
    if not isinstance(several, list) or not several:
        raise invalid("inputs", several, "a list of at least one text")
    _require_inputs(len(several), "inputs", max_inputs)
    places = tuple(place for place, item in enumerate(several) if isinstance(item, str))
    requests = tuple(task_request(spec, several[place], source, target) for place in places)
    refused = {
        place: invalid(f"inputs.{place}", item, "a string")
        for place, item in enumerate(several)
        if not isinstance(item, str)
    }
    return TaskBatch(task, requests, places, refused, is_list=True)


def task_request(spec: TaskSpec, text_: str, source: object, target: object) -> TaskRequest:
    """Return one input of a task. Raises UnsupportedParameter for a language it cannot have."""
    codes = {"source_language": source, "target_language": target}
    given = {name: text(code, name) for name, code in codes.items() if code is not None}
    if given and not isinstance(spec, TranslationSpec):
        name, code = next(iter(given.items()))
        raise UnsupportedParameter(
            f"the task {spec.name!r} has no languages, and {name} is {code!r}",
            field=name,
            fix=f"remove {name}",
        )
    return TaskRequest(spec.name, text_, **given)


def _body(document: Any, exempt: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the document's fields that are not null. exempt: fields that may hold any text."""
    if not isinstance(document, dict):
        raise invalid(None, document, "a JSON object")
    for path, value in _texts({k: v for k, v in document.items() if k not in exempt}):
        refuse_half_characters(value, path)
    return {name: value for name, value in document.items() if value is not None}


def _texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text in a document, keys too, with its path."""
    if isinstance(value, str):
        # Clients know a part's text as its message's content.
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield path, key
            name = key[:SHOWN_CHARS]
            yield from _texts(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, f"{path}.{index}")


def _model(body: dict[str, Any]) -> str:
    name = body.pop("model", None)
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_MODEL:
        raise invalid("model", name, "the name of a model; GET /v1/models lists them")
    return name


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise invalid("messages", value, "a list of at least one message")
    if len(value) > MAX_MESSAGES:
        raise InvalidRequest(
            f"messages holds {len(value)} messages, and {MAX_MESSAGES} is the most",
            field="messages",
            fix="send fewer messages, or join those that belong together",
        )
    return tuple(read_message(item, f"messages.{index}") for index, item in enumerate(value))


def _require_visible(messages: tuple[Message, ...]) -> None:
    """Raise EmptyInput for a chat without a visible character: a provider would bill it."""
    for message in messages:
        if message.extras.keys() - {"name"} or not (message.is_text and is_blank(message.text)):
            return
    raise EmptyInput(
        "no message has a visible character",
        field="messages",
        fix="send at least one message that is not blank",
    )


def read_message(value: Any, path: str) -> Message:
    """Return one message of a chat. path: of it, for errors. Raises InvalidRequest."""
    fields = {k: v for k, v in object_(value, path).items() if v is not None}
    role = role_of(fields.pop("role", None), f"{path}.role")
    content = fields.pop("content", None)
    if is_default("tools", fields.get("tool_calls")):
        fields.pop("tool_calls", None)
    if "tool_calls" in fields:
        read_tool_calls(fields["tool_calls"], f"{path}.tool_calls")
    if content is None:
        if role == "assistant" and not _SPEAK_WITHOUT_CONTENT.isdisjoint(fields):
            return Message(role, None, fields)
        raise invalid(f"{path}.content", None, "a string or a list of parts")
    if isinstance(content, list):
        parts = tuple(read_part(part, f"{path}.content.{i}") for i, part in enumerate(content))
        if not parts:
            raise invalid(f"{path}.content", content, "a string or a list of at least one part")
        return Message(role, parts, fields)
    if not isinstance(content, str):
        raise invalid(f"{path}.content", content, "a string or a list of parts")
    return Message(role, content, fields)


def _prompts(value: Any, max_inputs: int) -> tuple[str, ...]:
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, list) or not prompts:
        raise invalid("prompt", value, "a text or a list of texts")
    _require_inputs(len(prompts), "prompt", max_inputs)
    for index, prompt in enumerate(prompts):
        path = "prompt" if isinstance(value, str) else f"prompt.{index}"
        if type(prompt) is int or isinstance(prompt, list):
            raise InvalidRequest(
                "prompt holds token ids, and this server takes text",
                field="prompt",
                fix="send the prompt as text",
            )
        if not isinstance(prompt, str) or not prompt:
            raise invalid(path, prompt, "a text of at least one character")
    return tuple(prompts)


def _stream(body: dict[str, Any]) -> tuple[bool, bool]:
    stream = boolean(body.pop("stream", False), "stream")
    options = body.pop("stream_options", None)
    if options is None:
        return stream, False
    options = stream_options(options, "stream_options")
    if not stream and not any(options.values()):
        return stream, False
    if not stream:
        raise InvalidRequest(
            "stream_options is set, and stream is not true",
            field="stream_options",
            fix="remove stream_options, or send stream: true",
        )
    return stream, bool(options.get("include_usage"))


def _choices(body: dict[str, Any]) -> int:
    return choices(body.pop("n"), "n") if "n" in body else 1


def _fields(
    body: dict[str, Any], known: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the known fields, validated, without those that have no effect, and the others."""
    fields = {name: known[name](value, name) for name, value in body.items() if name in known}
    kept = {name: value for name, value in fields.items() if not is_default(name, value)}
    for offered, choice in _CHOICES_AMONG:
        # Without tools, "none" and "auto" have the same effect.
        if offered not in kept and kept.get(choice) in ("none", "auto"):
            del kept[choice]
    others = {name: value for name, value in body.items() if name not in known}
    return kept, {name: value for name, value in others.items() if not is_default(name, value)}


def _require_together(fields: Mapping[str, Any]) -> None:
    for offered, choice in _CHOICES_AMONG:
        if choice in fields and offered not in fields:
            raise InvalidRequest(
                f"{choice} is set, and {offered} is not",
                field=choice,
                fix=f"send {offered}, or remove {choice}",
            )
    if "top_logprobs" in fields and "logprobs" not in fields:
        raise InvalidRequest(
            "top_logprobs is set, and logprobs is not true",
            field="top_logprobs",
            fix="send logprobs: true, or remove top_logprobs",
        )


def _require_inputs(count: int, name: str, max_inputs: int) -> None:
    if count > max_inputs:
        raise TooManyInputs(
            f"the request holds {count} inputs, and {max_inputs} is the most; every prompt, choice "
            "and input counts as one",
            field=name,
            fix="split the request, or raise gateway.max_inputs",
        )
