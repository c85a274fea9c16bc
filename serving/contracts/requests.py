"""The typed requests of the request path: read and validated once, then frozen."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from serving.contracts.answer import TaskRequest
from serving.contracts.chat_fields import PASSED_FIELDS
from serving.contracts.errors import InvalidRequest, UnsupportedParameter

AUTO = "auto"
"""Model name that lets the router choose."""

TASK_PREFIX = "task/"
"""Prefix of the model name that names a task in a chat."""

MAX_LOCAL_CHOICES = 16
"""The most choices (`n`) of one chat or completion on a local model."""

IGNORED_FIELDS = frozenset({
    "user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention",
    "safety_identifier", "parallel_tool_calls", "verbosity",
})  # fmt: skip
"""Fields that SDKs send by default. Providers get them. Local models and tasks ignore them."""

SAMPLING_FIELDS = frozenset({
    "temperature", "top_p", "top_k", "min_p", "seed", "stop", "frequency_penalty",
    "presence_penalty", "repetition_penalty", "logit_bias", "logprobs", "ignore_eos", "min_tokens",
    "skip_special_tokens",
})  # fmt: skip
LOCAL_CHAT_FIELDS = SAMPLING_FIELDS | {"response_format", "top_logprobs"}
LOCAL_COMPLETION_FIELDS = SAMPLING_FIELDS | {"response_format", "echo"}
TASK_CHAT_FIELDS = frozenset({"temperature", "top_p", "seed"})
"""Sampling fields that a chat with a task may carry. They have no effect: tasks set their own."""

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
INSTRUCTING_ROLES: frozenset[Role] = frozenset({"system", "developer"})

PART_SEPARATOR = "\n"
"""Joins the text parts of one message wherever its text is read as one."""


PruningMode = Literal["off", "ratio", "threshold", "auto"]
"""auto: above the certified threshold, and only under a claim on traffic."""


@dataclass(frozen=True, slots=True)
class PruningOptions:
    """What a chat asks of context pruning.

    mode, ratio: as in the settings; None takes the settings'. marked: (message, part) of texts that
    the client marked as context; part is None for a message whose content is a string.
    """

    mode: PruningMode | None = None
    ratio: float | None = None
    marked: frozenset[tuple[int, int | None]] = frozenset()


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat.

    content: text, a list of validated parts, or None. extras: every other field, as it was sent.
    """

    role: Role
    content: str | tuple[Mapping[str, Any], ...] | None
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Return the text of all text parts, empty where there is none."""
        if isinstance(self.content, str):
            return self.content
        parts = (part for part in self.content or () if part["type"] == "text")
        return PART_SEPARATOR.join(part["text"] for part in parts)

    @property
    def is_text(self) -> bool:
        """Return whether the content is only text."""
        if isinstance(self.content, str):
            return True
        return bool(self.content) and all(part["type"] == "text" for part in self.content or ())

    def body(self) -> dict[str, Any]:
        """Return the message for a provider or engine."""
        content = list(self.content) if isinstance(self.content, tuple) else self.content
        return {"role": self.role, "content": content, **self.extras}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion.

    max_tokens: the lower of the client's two limits, for one choice. choices: `n`. include_usage: a
    stream ends with its usage. source_language, target_language: for translations. fields: every
    other field of OpenAI's API and of the engine that the client set, validated, by name; fields
    that are null, empty or at a default without effect are left out. extras: fields that this
    server does not know, by name. pruning: what it asks of context pruning.
    """

    model: str
    messages: tuple[Message, ...]
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    choices: int = 1
    source_language: str | None = None
    target_language: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)
    pruning: PruningOptions = field(default_factory=PruningOptions)

    @property
    def units(self) -> int:
        """Return the admission units of the request: one for each choice."""
        return self.choices

    @property
    def text_chars(self) -> int:
        """Return the length of all messages' text, Unicode code points."""
        return sum(len(message.text) for message in self.messages)

    def provider_body(self) -> dict[str, Any]:
        """Return the body for a provider, without `model` and `stream`."""
        return {
            "messages": [message.body() for message in self.messages],
            **_limits(self.max_tokens, self.choices),
            **self.fields,
            **self.extras,
        }

    def engine_body(self, model: str) -> dict[str, Any]:
        """Return the body for a local model's engine.

        Raises UnsupportedParameter for a field that the engine would ignore, inside a message too,
        or that controls its internals (templates, cache salts, transfer parameters), InvalidRequest
        for content other than text and for too many choices.
        """
        _require_fields(self.fields, LOCAL_CHAT_FIELDS, self.extras, "a local model")
        _require_choices(self.choices, self.fields)
        _require_values(self.fields, self.max_tokens)
        for index, message in enumerate(self.messages):
            _require_text(index, message)
        messages = [message.body() for message in self.messages]
        return {
            "model": model,
            "messages": PASSED_FIELDS["messages"].read(messages, "messages", _unsupported),
            **_limits(self.max_tokens, self.choices),
            **_mutable(self.fields),
            **_streamed(self.stream),
        }

    def task_input(self) -> str:
        """Return the input of a chat that names a task.

        Raises UnsupportedParameter for a field that asks for another kind of answer, which a task
        does not give, InvalidRequest where there is not exactly one user message of text.
        """
        extras = {**self.extras, **({"n": self.choices} if self.choices != 1 else {})}
        _require_fields(self.fields, TASK_CHAT_FIELDS, extras, "a task")
        turns = [m for m in self.messages if m.role not in INSTRUCTING_ROLES]
        if len(turns) != 1 or turns[0].role != "user" or not turns[0].is_text:
            raise InvalidRequest(
                "a task takes exactly one user message, which holds text only: the input",
                field="messages",
                fix="send the text to work on as the only user message",
            )
        return turns[0].text


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One completion of a prompt or of several. Fields as those of ChatRequest."""

    model: str
    prompts: tuple[str, ...]
    stream: bool = False
    include_usage: bool = False
    max_tokens: int | None = None
    choices: int = 1
    fields: Mapping[str, Any] = field(default_factory=dict)
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """Return the admission units of the request: one for each choice of each prompt."""
        return self.choices * len(self.prompts)

    @property
    def text_chars(self) -> int:
        """Return the length of the longest prompt, Unicode code points."""
        return max(map(len, self.prompts))

    def engine_body(self, model: str) -> dict[str, Any]:
        """Return the body for a local model's engine. Raises as ChatRequest's."""
        _require_fields(self.fields, LOCAL_COMPLETION_FIELDS, self.extras, "a local model")
        _require_choices(self.choices, self.fields)
        _require_values(self.fields, self.max_tokens)
        prompt = self.prompts[0] if len(self.prompts) == 1 else list(self.prompts)
        return {
            "model": model,
            "prompt": prompt,
            **_limits(self.max_tokens, self.choices),
            **_mutable(self.fields),
            **_streamed(self.stream),
        }


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """The inputs of one request to one task.

    positions: index of each input in the client's list. refused: errors by index, of items that are
    not text; the other inputs are answered. is_list: the client sent a list, and gets one.
    """

    task: str
    requests: tuple[TaskRequest, ...]
    positions: tuple[int, ...] = (0,)
    refused: Mapping[int, InvalidRequest] = field(default_factory=dict)
    is_list: bool = False

    @property
    def units(self) -> int:
        """Return the admission units of the request: one for each input."""
        return len(self.requests)

    @property
    def stream(self) -> bool:
        """Return False: tasks answer whole."""
        return False


Request = ChatRequest | CompletionRequest | TaskBatch


def _limits(max_tokens: int | None, choices: int) -> dict[str, Any]:
    limits = {} if max_tokens is None else {"max_tokens": max_tokens}
    return limits if choices == 1 else {**limits, "n": choices}


def _streamed(stream: bool) -> dict[str, Any]:
    # Usage is always requested, because the ledger needs it. The writer hides it from other
    # clients.
    return {"stream": True, "stream_options": {"include_usage": True}} if stream else {}


def _mutable(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in IGNORED_FIELDS}


def _require_fields(
    fields: Mapping[str, Any], supported: frozenset[str], others: Mapping[str, Any], by: str
) -> None:
    unsupported = sorted((set(fields) - supported - IGNORED_FIELDS) | set(others))
    if unsupported:
        raise UnsupportedParameter(
            f"{unsupported[0]!r} is not supported by {by}",
            field=unsupported[0],
            fix="remove it; supported: " + ", ".join(sorted(supported)),
        )


def _require_choices(choices: int, fields: Mapping[str, Any]) -> None:
    if choices > MAX_LOCAL_CHOICES:
        raise InvalidRequest(
            f"n is {choices}, and a local model makes at most {MAX_LOCAL_CHOICES} choices",
            field="n",
            fix=f"send n between 1 and {MAX_LOCAL_CHOICES}",
        )
    if choices > 1 and fields.get("temperature") == 0:
        raise InvalidRequest(
            f"n is {choices} and temperature is 0, which makes all choices the same",
            field="n",
            fix="send n: 1, or a temperature above 0",
        )


def _require_values(fields: Mapping[str, Any], max_tokens: int | None) -> None:
    """Raise InvalidRequest for values that providers take and the engine does not."""
    if fields.get("top_p") == 0:
        raise InvalidRequest(
            f"top_p is {fields['top_p']}, and a local model needs one above 0",
            field="top_p",
            fix="send top_p above 0, or temperature: 0 for the most likely tokens",
        )
    least = fields.get("min_tokens", 0)
    if max_tokens is not None and least > max_tokens:
        raise InvalidRequest(
            f"min_tokens is {least} and max_tokens is {max_tokens}",
            field="min_tokens",
            fix="send min_tokens up to max_tokens",
        )


def _unsupported(path: str) -> None:
    raise UnsupportedParameter(
        f"{path} is not supported by a local model", field=path, fix="remove it"
    )


def _require_text(index: int, message: Message) -> None:
    if isinstance(message.content, tuple) and not message.is_text:
        raise InvalidRequest(
            f"messages.{index}.content holds a part that is not text",
            field=f"messages.{index}.content",
            fix="send text only: local models do not read images, audio or files",
        )
