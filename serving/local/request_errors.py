"""Translates vLLM's errors about a request to NarrowgateErrors, inside the replica.

No exception class of a library leaves the replica, because unpickling it would import the library.
Messages name the request's fields and values as the client wrote them, never classes of a library.
"""

import functools
import logging
import re
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ParamSpec, TypeVar

from jinja2 import TemplateError
from pydantic import ValidationError

from serving.contracts.errors import (
    EngineFailure,
    InvalidRequest,
    ModelUnavailable,
    NarrowgateError,
)
from serving.contracts.invalid_values import shown
from serving.contracts.openai import OpenAIReply
from serving.contracts.validation_words import problem_words

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_LONGEST_MESSAGE = 300
_SCHEMA = "response_format.json_schema.schema"
_REFUSED = "the model's engine does not accept this value"
_MUST_BE = "it must be "
# Raised while a request is prepared, these concern the request.
_ABOUT_THE_REQUEST = (
    ValueError, TypeError, OverflowError, NotImplementedError, RecursionError, TemplateError
)  # fmt: skip
_CLIENT_ERROR, _DEAD_ENGINE = "VLLMClientError", "EngineDeadError"
_FAILED_GENERATION = "GenerationError"
# Messages with a library's internals.
_INTERNAL = re.compile(
    r"vllm|pydantic|xgrammar|outlines|jinja|torch|numpy|python|https?://|--\w|_error\b|Traceback"
    r"|object has no|not supported between|NoneType|Iterator|Iterable|[a-z]\[|instance of"
    r"|__\w+__|grammar error|\bSome\(",
    re.IGNORECASE,
)
# Of the grammar that the engine makes of a schema.
_ABOUT_GRAMMAR = re.compile(r"grammar|\bregex\b|unknown format|schema", re.IGNORECASE)
_CLASS_NAME = re.compile(r"\b[A-Z][a-z]+(?:[A-Z][a-z]+)+\b")
_SUFFIX = re.compile(r"\s{0,4}+\(parameter=.*", re.DOTALL)


def engine_dead() -> ModelUnavailable:
    """Return the error for an engine that has ended."""
    return ModelUnavailable("the model's engine has ended and is being restarted", retry_after_s=30)


def is_dead(error: BaseException) -> bool:
    """Return whether vLLM reports that its engine has ended."""
    return _DEAD_ENGINE in _class_names(error)


def is_about_request(error: BaseException) -> bool:
    """Return whether an error of the engine, raised before any output, is the client's."""
    return isinstance(error, _ABOUT_THE_REQUEST) or _CLIENT_ERROR in _class_names(error)


def is_failed_generation(error: BaseException) -> bool:
    """Return whether vLLM ended this one request, as it does when it can make no grammar of it."""
    return _FAILED_GENERATION in _class_names(error)


def grammar_refusal(body: Mapping[str, Any]) -> OpenAIReply | None:
    """Return the 400 for a schema that vLLM can make no grammar of; None where there is no schema.

    vLLM checks the syntax of a schema first. A pattern or a bound that its grammars do not have
    fails later, in the engine's process, with an error that does not state the reason.
    """
    form = body.get("response_format")
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        return None
    return invalid(
        _SCHEMA,
        "the model's engine can make no grammar of this schema; a pattern or a bound is beyond "
        "what it supports",
    )


def engine_failure(error: BaseException) -> NarrowgateError:
    """Return the error for one that is not the client's, and log where it was raised.

    Only its class and places are logged: its text may contain a client's.
    """
    if isinstance(error, NarrowgateError):
        return error
    if is_dead(error):
        return engine_dead()
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    places = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))
    logger.error("engine_failed error=%s at=%s", type(error).__name__, places)
    return EngineFailure(f"the model's engine failed: {type(error).__name__}")


def translates_errors(function: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Translate every error of a method that Ray calls to a NarrowgateError."""

    @functools.wraps(function)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  # the process's edge
            failure = engine_failure(error)
        raise failure

    return guarded


def translates_stream_errors(
    function: Callable[P, AsyncGenerator[T, None]],
) -> Callable[P, AsyncGenerator[T, None]]:
    """Translate every error of an asynchronous generator that Ray calls to a NarrowgateError."""

    @functools.wraps(function)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[T, None]:
        try:
            # Closed at once when the caller leaves, so that the engine's work is aborted.
            async with aclosing(function(*args, **kwargs)) as items:
                async for item in items:
                    yield item
        except Exception as error:  # noqa: BLE001  # the process's edge
            failure = engine_failure(error)
        else:
            return
        raise failure

    return guarded


def refusal(error: BaseException, body: Mapping[str, Any]) -> OpenAIReply:
    """Return the 400 for an error about a request, with the client's field."""
    if isinstance(error, ValidationError):
        field, message = _first_problem(error, body)
    elif isinstance(error, UnicodeError):
        field, message = surrogate_field(body), "the text is not valid Unicode"
    elif isinstance(error, InvalidRequest):
        field, message = error.field, error.message
    else:
        # args: str() of vLLM's errors appends the value.
        text = str(error.args[0]) if error.args else ""
        return _refused(getattr(error, "parameter", None), text, body)
    return invalid(field, message)


def refused_item(error: Any, body: Mapping[str, Any]) -> OpenAIReply | EngineFailure:
    """Return the reply for an error that vLLM returns in place of an answer.

    error: its ErrorInfo, or the same as a mapping.
    """
    facts = error if isinstance(error, Mapping) else error.model_dump()
    status = int(facts["code"])
    if status >= 500:
        return grammar_refusal(body) or EngineFailure("the model's engine failed on the request")
    return _refused(facts.get("param"), str(facts.get("message") or ""), body, status)


def _refused(given: object, text: str, body: Mapping[str, Any], status: int = 400) -> OpenAIReply:
    message = plain_message(text)
    no_grammar = grammar_refusal(body) if _ABOUT_GRAMMAR.search(text) else None
    if no_grammar is not None and message == _REFUSED:
        return no_grammar
    field = _named_field(given, text, body)
    if field is None and no_grammar is not None:
        field = _SCHEMA
    return invalid(field, message, status)


def invalid(field: str | None, message: str, status: int = 400) -> OpenAIReply:
    """Return an error in the shape of OpenAI's API; with a fix where the message says it."""
    is_named = field is None or message.startswith((f"{field}:", f"{field} is "))
    _, is_told, wanted = message.partition(f"; {_MUST_BE}")
    error = {
        "message": message if is_named else f"{field}: {message}",
        "type": "invalid_request_error",
        "param": field,
        "code": "invalid_request",
    }
    return OpenAIReply(status, {"error": {**error, "fix": f"send {wanted}"} if is_told else error})


def plain_message(text: str) -> str:
    """Return vLLM's message about a request, or a fixed one where it has a library's internals."""
    line = _SUFFIX.sub("", text.strip()).split("\n", 1)[0].removeprefix("Value error, ").strip()
    if not line or _INTERNAL.search(line) or _CLASS_NAME.search(line):
        return _REFUSED
    return line[:_LONGEST_MESSAGE]


def field_at_fault(
    build: Callable[[Mapping[str, Any]], object], body: Mapping[str, Any]
) -> str | None:
    """Return the field without which a request can be built, None where there is not one.

    build: raises for a request that it does not accept.
    """
    for name in body:
        try:
            build({key: value for key, value in body.items() if key != name})
        except Exception:  # noqa: BLE001, S112  # any error of a validator: not only this field
            continue
        return name
    return None


def surrogate_field(body: Mapping[str, Any]) -> str | None:
    """Return the path of the first text that is not valid Unicode, None where all are."""
    waiting: list[tuple[str, object]] = list(body.items())[::-1]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                return path
        elif isinstance(value, Mapping):
            waiting += [(f"{path}.{key}", child) for key, child in list(value.items())[::-1]]
        elif isinstance(value, list):
            waiting += [(f"{path}.{i}", value[i]) for i in range(len(value) - 1, -1, -1)]
    return None


def _class_names(error: BaseException) -> set[str]:
    # By name: importing vLLM's classes takes seconds, and tests run without it.
    return {kind.__name__ for kind in type(error).__mro__}


def _first_problem(error: ValidationError, body: Mapping[str, Any]) -> tuple[str | None, str]:
    """Return the field and message of the most deeply nested problem in the client's body.

    Where a value may have several forms, each form has its own problems: the field at which most
    forms fail is the wrong one. A form of another kind than the one that the client wrote, such as
    another role's message, says nothing where there is a form of this kind.
    """
    forms: dict[str, set[str]] = {}
    messages: dict[str, str] = {}
    problems = error.errors(include_url=False, include_input=False)
    others_kinds = {
        problem["loc"][:-1] for problem in problems if problem["type"] == "literal_error"
    }
    meant = [
        problem
        for problem in problems
        if not any(problem["loc"][: len(form)] == form for form in others_kinds)
    ]
    for problem in meant or problems:
        path = _written_path(problem["loc"], body)
        field = ".".join(map(str, path))
        others = [str(part) for part in problem["loc"] if part not in path]
        forms.setdefault(field, set()).add(others[0] if others else "")
        message = f"{others[-1]!r} is missing" if problem["type"] == "missing" and others else ""
        messages.setdefault(field, message or _words(problem, field, _value_at(body, path)))
    worst = max(forms, key=lambda field: (field.count(".") + bool(field), len(forms[field])))
    return worst or None, messages[worst]


def _words(problem: Mapping[str, Any], field: str, value: object) -> str:
    """Return what is wrong with a value that the client wrote, as other refusals say it."""
    words = plain_message(problem_words(problem))
    for ours, theirs in (("a mapping", "an object"), ("a text", "a string")):
        words = words.replace(f"{_MUST_BE}{ours}", f"{_MUST_BE}{theirs}")
    is_told = bool(field) and words.startswith(_MUST_BE)
    return f"{field} is {shown(value)}; {words}" if is_told else words


def _written_path(location: Sequence[int | str], body: Mapping[str, Any]) -> list[int | str]:
    """Return a location without the parts that are a validator's own and not the client's.

    Content parts are validated apart from their message, with a location of their own.
    """
    paths = [_followed(location, body, [])]
    messages = body.get("messages")
    if not paths[0] and isinstance(messages, list):
        for index, message in enumerate(messages):
            content = message.get("content") if isinstance(message, Mapping) else None
            if isinstance(content, list | Mapping):
                found = _followed(location, content, ["messages", index, "content"])
                # A part that is a text is not the cause of a text validator's error.
                if not isinstance(_value_at(body, found), str):
                    paths.append(found)
                    break
    return max(paths, key=len)


def _followed(
    location: Sequence[int | str], node: object, path: list[int | str]
) -> list[int | str]:
    path = list(path)
    for part in location:
        found = _child(node, part)
        if found is not None:
            path.append(part)
            node = found[0]
    return path


def _child(node: object, part: int | str) -> tuple[object] | None:
    if isinstance(node, Mapping) and part in node:
        return (node[part],)
    if isinstance(node, list) and isinstance(part, int) and part < len(node):
        return (node[part],)
    return None


def _value_at(body: object, path: Sequence[int | str]) -> object:
    for part in path:
        body = body[part]  # type: ignore[index]  # a path that was followed before
    return body


def _named_field(given: object, text: str, body: Mapping[str, Any]) -> str | None:
    """Return the field that an error names, if the client wrote it."""
    if isinstance(given, str) and given.split(".", 1)[0] in body:
        return given
    mentioned = [name for name in body if re.search(rf"\b{re.escape(name)}\b", text)]
    if mentioned:
        return max(mentioned, key=len)
    if given in ("input_tokens", "input_text"):
        return "messages" if "messages" in body else "prompt"
    return None
