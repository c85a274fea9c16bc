"""Errors of the engine's checks of a request become a 400 with the client's field."""

import asyncio
import pickle
import subprocess
import sys
from collections.abc import AsyncGenerator
from typing import Annotated, Any, Literal

import pytest
from jinja2 import TemplateError
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from serving.contracts.errors import (
    EngineFailure,
    InvalidRequest,
    ModelUnavailable,
    NarrowgateError,
    QueueFull,
)
from serving.contracts.openai import OpenAIReply
from serving.local.json_schema import refuse_broken_schema
from serving.local.request_errors import (
    engine_failure,
    field_at_fault,
    grammar_refusal,
    is_about_request,
    is_dead,
    is_failed_generation,
    plain_message,
    refusal,
    refused_item,
    surrogate_field,
    translates_errors,
    translates_stream_errors,
)

MARKER = "zebra-stripes-4711"


class DeveloperMessageParam(BaseModel):
    role: Literal["developer"]
    content: str


class UserMessageParam(BaseModel):
    role: Literal["user"]
    content: str | list[dict[str, Any]]


class ToolMessageParam(BaseModel):
    role: Literal["tool"]
    content: str
    tool_call_id: str


class Format(BaseModel):
    type: Literal["text", "json_object", "json_schema"]


class ChatLikeRequest(BaseModel):
    """Shaped as the engine's request: unions of message classes, validators over all fields."""

    messages: list[Annotated[DeveloperMessageParam | UserMessageParam | ToolMessageParam, Field()]]
    response_format: Format | None = None
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    top_logprobs: Any = None

    @model_validator(mode="before")
    @classmethod
    def check(cls, data: dict[str, Any]) -> dict[str, Any]:
        if data.get("top_logprobs") is not None and data["top_logprobs"] < 0:
            raise ValueError("top_logprobs")
        return data

    @model_validator(mode="after")
    def check_stream(self) -> "ChatLikeRequest":
        if self.stream_options is not None and not self.stream:
            raise ValueError("Stream options can only be defined when `stream=True`.")
        return self


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


def build(body: Any) -> ChatLikeRequest:
    return ChatLikeRequest(**body)


def caught(body: dict[str, Any]) -> Exception:
    with pytest.raises(Exception) as error:  # noqa: PT011  # whatever the validators raise
        build(body)
    assert isinstance(error.value, Exception)
    return error.value


def user(content: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def error_of(reply: OpenAIReply | EngineFailure) -> dict[str, Any]:
    assert isinstance(reply, OpenAIReply)
    assert reply.body is not None
    error: dict[str, Any] = reply.body["error"]
    return error


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": user(None)}, "messages.0.content"),
        ({"messages": user({"text": "hi"})}, "messages.0.content"),
        ({"messages": [*user("a"), *user(3)]}, "messages.1.content"),
        ({"messages": [{"role": "nobody", "content": "x"}]}, "messages.0.role"),
        ({"messages": "hello"}, "messages"),
        ({"messages": user("a"), "response_format": {"type": "xml"}}, "response_format.type"),
        ({"messages": user("a"), "stream_options": "x"}, "stream_options"),
    ],
)
def test_the_field_is_a_path_that_the_client_wrote(body: dict[str, Any], field: str) -> None:
    reply = refusal(caught(body), body)
    error = error_of(reply)
    assert reply.status == 400
    assert error["param"] == field
    assert error["message"].startswith((f"{field}: ", f"{field} is "))
    for inside in ("Param", "pydantic", "http", "union", "[", "Literal", "ValidationError"):
        assert inside not in error["message"]


def test_a_content_part_that_is_checked_later_is_named_in_full() -> None:
    body = {"messages": [*user("hello"), *user([{"type": "text", "text": None}])]}
    with pytest.raises(ValidationError) as late:
        TypeAdapter(list[TextPart]).validate_python(body["messages"][1]["content"])
    assert error_of(refusal(late.value, body))["param"] == "messages.1.content.0.text"


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"top_logprobs": "3"}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_the_field_of_a_check_that_names_none_is_found(extra: dict[str, Any], field: str) -> None:
    body = {"messages": user("a"), "stream": False, **extra}
    assert field_at_fault(build, body) == field
    assert error_of(refusal(caught(body), body))["message"] != ""


@pytest.mark.parametrize(
    "body",
    [
        {"messages": user("\ud83d"), "model": "m"},
        {"messages": [*user("a"), *user([{"type": "text", "text": "cut \ud83d"}])]},
        {"messages": user("a"), "stop": ["b", "\udfff"]},
    ],
)
def test_half_a_surrogate_pair_is_named(body: dict[str, Any]) -> None:
    field = surrogate_field(body)
    error: UnicodeEncodeError | None = None
    try:
        "\ud83d".encode()
    except UnicodeEncodeError as raised:
        error = raised
    assert error is not None
    assert is_about_request(error)
    assert error_of(refusal(error, body))["param"] == field
    assert field in ("messages.0.content", "messages.1.content.0.text", "stop.1")
    assert surrogate_field({"messages": user("whole \U0001f600")}) is None


class VLLMError(Exception):
    """Named and shaped as vLLM's: importing the real ones takes seconds."""


class VLLMClientError(VLLMError):
    pass


class VLLMValidationError(VLLMClientError):
    def __init__(self, message: str, *, parameter: str | None = None, value: Any = None) -> None:
        super().__init__(message)
        self.parameter, self.value = parameter, value

    def __str__(self) -> str:
        return f"{super().__str__()} (parameter={self.parameter}, value={self.value})"


class EngineDeadError(Exception):
    pass


def test_the_names_are_those_of_the_installed_vllm() -> None:
    import importlib.util
    from pathlib import Path

    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.submodule_search_locations
    root = Path(spec.submodule_search_locations[0])
    errors = (root / "exceptions.py").read_text(encoding="utf-8")
    assert "class VLLMValidationError(VLLMClientError)" in errors
    assert "class GenerationError(" in errors
    dead = (root / "v1" / "engine" / "exceptions.py").read_text(encoding="utf-8")
    assert "class EngineDeadError(" in dead


def test_vllms_own_errors_are_told_without_their_suffix() -> None:
    error = VLLMValidationError("must not be negative", parameter="logprobs", value=MARKER)
    body = {"prompt": "a", "logprobs": MARKER}
    assert is_about_request(error)
    told = error_of(refusal(error, body))
    assert told["param"] == "logprobs"
    assert told["message"] == "logprobs: must not be negative"
    too_long = VLLMValidationError("2,000 tokens do not fit", parameter="input_tokens", value=2000)
    assert error_of(refusal(too_long, {"messages": user("a")}))["param"] == "messages"


@pytest.mark.parametrize(
    "text",
    [
        "", "7 validation errors for ValidatorIterator\n0.text", "'NoneType' has no len()",
        "use --enable-auto-tool-choice", "xgrammar: cannot parse", "see https://example.org/x",
        "'<' not supported between instances of 'str' and 'int'", "ChatCompletionRequest is wrong",
        "Grammar error: regex parse error:", "no number between: min=Some(9223372036854775807)",
    ],
)  # fmt: skip
def test_messages_that_name_a_library_are_replaced(text: str) -> None:
    assert plain_message(text) == "the model's engine does not accept this value"


def test_a_message_of_the_clients_role_names_the_field_at_fault() -> None:
    body = {"messages": [{"role": "tool", "content": "x", "tool_call_id": 5}]}
    with pytest.raises(ValidationError) as caught:
        ChatLikeRequest.model_validate(body)
    told = error_of(refusal(caught.value, body))
    assert told["param"] == "messages.0.tool_call_id"
    assert told["message"] == "messages.0.tool_call_id is 5; it must be a string"
    assert told["fix"] == "send a string"


def test_a_schema_that_the_grammar_does_not_support_names_the_schema() -> None:
    given = {"name": "a", "schema": {"type": "string", "format": "banana"}}
    body = {"response_format": {"type": "json_schema", "json_schema": given}}
    refused = {"type": "BadRequestError", "param": None, "code": 400}
    for text, message in {
        "Grammar error: regex parse error:": "the model's engine can make no grammar",
        "Unknown format: banana": "Unknown format: banana",
    }.items():
        told = error_of(refused_item({"message": text, **refused}, body))
        assert told["param"] == "response_format.json_schema.schema"
        assert message in told["message"]


def test_an_error_that_vllm_returns_is_told_in_our_words() -> None:
    body = {"prompt": "", "max_tokens": 1}
    found = refused_item(
        {"message": f"prompt must not be empty (parameter=prompt, value={MARKER})",
         "type": "BadRequestError", "param": "prompt", "code": 400}, body,
    )  # fmt: skip
    assert error_of(found)["type"] == "invalid_request_error"
    assert error_of(found)["message"] == "prompt: prompt must not be empty"
    broken = {"message": MARKER, "type": "InternalServerError", "param": None, "code": 500}
    failure = refused_item(broken, body)
    assert isinstance(failure, EngineFailure)
    assert MARKER not in failure.message


class GenerationError(Exception):
    pass


def test_a_schema_of_which_no_grammar_was_made_is_the_clients() -> None:
    schema = {"name": "a", "schema": {"type": "string", "pattern": r"\\p{L}+"}}
    body = {"response_format": {"type": "json_schema", "json_schema": schema}}
    failed = {"message": MARKER, "type": "InternalServerError", "param": None, "code": 500}
    for found in (grammar_refusal(body), refused_item(failed, body)):
        told = error_of(found)
        assert told["param"] == "response_format.json_schema.schema"
        assert "can make no grammar of this schema" in told["message"]
    for other in ({}, {"response_format": {"type": "json_object"}}):
        assert grammar_refusal(other) is None
        assert isinstance(refused_item(failed, other), EngineFailure)
    assert is_failed_generation(GenerationError())
    assert not is_failed_generation(ValueError())


def test_only_a_dead_engine_makes_a_model_unavailable() -> None:
    assert is_dead(EngineDeadError())
    assert isinstance(engine_failure(EngineDeadError()), ModelUnavailable)
    assert not is_dead(ValueError())
    assert is_about_request(TemplateError("roles must alternate"))
    assert not is_about_request(RuntimeError())


def foreign() -> Exception:
    kind = type("LibraryError", (RuntimeError,), {"__module__": "vllm.exceptions"})
    return kind(MARKER)  # type: ignore[no-any-return]


@pytest.mark.parametrize("error", [foreign(), EngineDeadError(MARKER), KeyError(MARKER)])
def test_only_our_own_errors_leave_the_replica_without_a_clients_text(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    @translates_errors
    async def call() -> None:
        raise error

    @translates_stream_errors
    async def stream() -> AsyncGenerator[int, None]:
        yield 1
        raise error

    async def drain() -> None:
        async for _ in stream():
            pass

    for run in (call, drain):
        with pytest.raises(NarrowgateError) as raised:
            asyncio.run(run())
        # Ray logs the whole chain and pickles the cause.
        assert raised.value.__cause__ is None
        assert raised.value.__context__ is None
        assert MARKER not in str(raised.value)
        assert b"vllm" not in pickle.dumps(raised.value)
    assert MARKER not in caplog.text


def test_our_own_errors_pass_unchanged() -> None:
    @translates_errors
    async def call() -> None:
        raise QueueFull("full", retry_after_s=1)

    with pytest.raises(QueueFull, match="full"):
        asyncio.run(call())


def test_a_stream_is_closed_when_its_reader_leaves() -> None:
    closed = []

    @translates_stream_errors
    async def stream() -> AsyncGenerator[int, None]:
        try:
            for number in range(10):
                yield number
        finally:
            closed.append(True)

    async def leave() -> None:
        items = stream()
        await anext(items)
        await items.aclose()
        assert closed == [True]

    asyncio.run(leave())


def test_a_process_that_receives_the_errors_imports_no_engine() -> None:
    errors = [engine_failure(foreign()), engine_failure(EngineDeadError())]
    replies = [refusal(VLLMValidationError("x", parameter="logprobs"), {"logprobs": "x"})]
    code = (
        "import pickle, sys; pickle.loads(sys.stdin.buffer.read()); "
        "print(sorted(n for n in sys.modules if n.split('.')[0] in ('vllm', 'torch', 'ray')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps([errors, replies]),
        capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout.decode().strip() == "[]"


def form(schema: object) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    }


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        {"anyOf": [{"type": "string"}, {"$ref": "#"}]},
        {"properties": {"a": {"allOf": [{"$ref": "#/properties/a"}]}}},
        {"$ref": "#/nowhere"},
        {"$ref": "https://example.org/schema.json"},
        {"$ref": 3},
        {"items": [{}] * 10_001},
    ],
)
def test_a_schema_that_no_grammar_can_be_made_of_is_refused(schema: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        refuse_broken_schema(form(schema))
    assert caught.value.field == "response_format.json_schema.schema"


def _of_properties(count: int, *, required: bool = False) -> dict[str, Any]:
    names = [f"a{number}" for number in range(count)]
    schema = {"type": "object", "properties": {name: {"type": "string"} for name in names}}
    return {**schema, "required": names} if required else schema


@pytest.mark.parametrize(
    "schema",
    [
        _of_properties(2000),
        {"$defs": {"a": _of_properties(2000)}, "properties": {"a": {"$ref": "#/$defs/a"}}},
        {"properties": {f"a{n}": {"type": "string", "maxLength": 1000 + n} for n in range(4)}},
        {"items": {"properties": {f"a{n}": {"minLength": 1e9 + n} for n in range(4)}}},
        {"type": "string", "pattern": "^(ab|cd){1,5000}$"},
        {"type": "string", "pattern": "^([a-z]{1,500}[0-9]{1,500}){1,50}$"},
    ],
)
def test_a_schema_whose_grammar_takes_too_long_is_refused(schema: object) -> None:
    """1,000 optional properties take xgrammar 1.4 s, a length 1.4 s; 4,000 ended the engine."""
    with pytest.raises(InvalidRequest, match="would take the engine too long") as caught:
        refuse_broken_schema(form(schema))
    assert caught.value.field == "response_format.json_schema.schema"
    assert "different lengths of texts" in (caught.value.fix or "")


def test_a_deep_schema_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(InvalidRequest, match="64 levels"):
        refuse_broken_schema(form(schema))


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}},
        {
            "$defs": {"a": {"type": "string"}},
            "anyOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}],
        },
        _of_properties(300),
        _of_properties(3000, required=True),
        {"type": "string", "maxLength": 10_000},
        {"items": _of_properties(12, required=True), "maxItems": 100_000},
        {"properties": {f"a{n}": {"type": "string", "maxLength": 200} for n in range(50)}},
        {"type": "string", "pattern": "^[a-z]{1,100}$"},
        {"enum": ["a/b"], "$defs": {"a/b": {}}, "allOf": [{"$ref": "#/$defs/a~1b"}]},
    ],
)
def test_a_sound_schema_passes(schema: object) -> None:
    refuse_broken_schema(form(schema))
    refuse_broken_schema({"response_format": {"type": "text"}})
    refuse_broken_schema({"response_format": "json"})
