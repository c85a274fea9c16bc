"""Reads one line of a gateway's export as a logged call. docs/savings.md lists the shapes."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from serving.contracts.answer import Usage
from serving.contracts.plain_number import finite_number

_PROVIDERS = {
    "azure_openai": "azure", "azure-openai": "azure", "bedrock": "aws", "vertex_ai": "google",
    "gemini": "google", "google-vertex": "google", "together_ai": "together",
    "together-ai": "together", "fireworks_ai": "fireworks", "xai": "x-ai",
}  # fmt: skip
"""Names of gateways for providers whose prices have another name."""

_MOST_TOKENS = 1_000_000_000
_MOST_USD = 1_000_000
"""A log that says that one call cost more is mistaken."""

_LATEST_S = 4e9
"""The year 2096; a later time is a mistake of the log."""


@dataclass(frozen=True, slots=True)
class LoggedCall:
    """One call of a model.

    body: in the shape of OpenAI's chat completions; without messages where the log has no texts.
    answer: OpenAI's document, or None. usage: None where `problem` says why. provider: None where
    the log names none. at_s: seconds since 1970. conversation: the log's own name of it.
    logged_usd: what the gateway says the call cost. name: the log's own name of the call, or the
    answer's.
    """

    model: str
    provider: str | None
    body: Mapping[str, Any]
    answer: Mapping[str, Any] | None
    usage: Usage | None
    problem: str | None
    at_s: float | None
    conversation: str | None
    logged_usd: Decimal | None
    service_tier: str | None
    name: str | None = None


class NotACall(Exception):
    """A line that costs nothing: a failed call, a span, an answer from the gateway's own cache.

    It never leaves the package.
    """


def read_call(document: Mapping[str, Any]) -> LoggedCall:
    """Return the call of a line. Raises NotACall; ValueError for a shape that is not known."""
    row = _row(document)
    _require_call(row)
    request, response = _bodies(row)
    model = _first_text(
        response.get("model"), request.get("model"), row.get("model"), row.get("response_model"),
        row.get("request_model"), row.get("providedModelName"), row.get("provided_model_name"),
    )  # fmt: skip
    # A deployment's or an alias's name has no price where the answer names the model itself.
    if model is None:
        raise ValueError("no model is named")
    usage, problem = _usage(row, response)
    return LoggedCall(
        model=model,
        provider=_provider(row),
        body=_chat_body(request),
        answer=_answer(row, response),
        usage=usage,
        problem=problem,
        at_s=time_of(document),
        conversation=_first_text(
            row.get("sessionId"),
            row.get("session_id"),
            row.get("conversation_id"),
            _at(row, "properties", "Helicone-Session-Id"),
            _at(row, "request_properties", "Helicone-Session-Id"),
            _at(row, "metadata", "conversation_id"),
            _at(row, "metadata", "session_id"),
        ),
        logged_usd=_money(row),
        service_tier=_first_text(response.get("service_tier"), request.get("service_tier")),
        name=_first_text(row.get("id"), row.get("request_id"), response.get("id")),
    )


def time_of(document: Mapping[str, Any]) -> float | None:
    """Return when a line's call began, seconds since 1970; None where it says nothing usable."""
    row = _row(document)
    for name in (
        "request_created_at", "startTime", "start_time", "created_at", "timestamp", "createdAt",
        "time", "ts", "created",
    ):  # fmt: skip
        if (found := _moment(row.get(name))) is not None:
            return found
    for name in ("response", "response_body"):
        body = row.get(name)
        if isinstance(body, Mapping) and (found := _moment(body.get("created"))) is not None:
            return found
    return None


def _row(document: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = document.get("standard_logging_object")
    return inner if isinstance(inner, Mapping) else document


def _require_call(row: Mapping[str, Any]) -> None:
    kind = row.get("type")
    if isinstance(kind, str) and kind.upper() in ("SPAN", "EVENT", "TRACE", "SCORE"):
        raise NotACall(f"a {kind.lower()}")
    status = row.get("response_status", row.get("status_code"))
    if row.get("status") in ("failure", "error") or row.get("level") == "ERROR":
        raise NotACall("a failed call")
    if isinstance(status, int) and status >= 400:
        raise NotACall("a failed call")
    if row.get("cache_hit") in (True, "True", "true") or row.get("cached") is True:
        raise NotACall("an answer from the gateway's own cache")


def _bodies(row: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return the request's and the response's documents; empty where a log leaves one out."""
    for asked, answered in (
        ("request_body", "response_body"),  # Helicone
        ("body", "response"),  # batches of OpenAI's, and gateways that log body and response
        ("request", "response"),
    ):
        request, response = _object(row.get(asked)), _object(row.get(answered))
        if request is not None:
            inner = _object((response or {}).get("body"))
            request = _object(request.get("body")) or request
            return request, inner if inner is not None else response or {}
    if "input" in row and "messages" not in row:
        given = row["input"]
        if isinstance(given, str) and given[:1] in "[{":
            given = _loaded(given, given)
        parameters = _object(row.get("modelParameters", row.get("model_parameters"))) or {}
        asked_for = given if isinstance(given, Mapping) else {"input": given}
        rest = {name: value for name, value in row.items() if name in ("instructions", "tools")}
        return {**rest, **parameters, **asked_for}, _object(row.get("response")) or {}
    if "messages" in row or "prompt" in row:
        parameters = _object(row.get("model_parameters")) or {}
        response = _object(row.get("response"))
        answer = response if response is not None else {n: row[n] for n in _ANSWER if n in row}
        return {**parameters, **{n: v for n, v in row.items() if n in _REQUEST}}, answer
    if any(name in row for name in (*_COUNTS, "usage", "usageDetails", "usage_details")):
        return {}, _object(row.get("response")) or {}
    raise ValueError("neither a request nor token counts are in it")


_ANSWER = frozenset({"choices", "usage", "model", "service_tier", "created", "output"})
_REQUEST = frozenset({
    "messages", "prompt", "model", "tools", "tool_choice", "response_format", "temperature",
    "top_p", "n", "max_tokens", "max_completion_tokens", "stop", "seed", "system", "functions",
    "reasoning_effort", "service_tier",
})  # fmt: skip
_COUNTS = ("prompt_tokens", "completion_tokens", "input_tokens", "output_tokens")


def _chat_body(request: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a request as a body of chat completions; without messages where it has no texts."""
    body = {name: value for name, value in request.items() if name not in ("input", "prompt")}
    messages = body.get("messages")
    if isinstance(messages, str):
        messages = _loaded(messages, None)
    if not isinstance(messages, list):
        given = request.get("input", request.get("prompt"))
        messages = _from_input(given) if given is not None else None
    if messages is None:
        body.pop("messages", None)
        return body
    system = body.pop("system", None) or body.pop("instructions", None)
    if system:
        text = system if isinstance(system, str) else _texts(system)
        messages = [{"role": "system", "content": text}, *messages]
    return {**body, "messages": [_message(message) for message in messages]}


def _from_input(given: object) -> list[Any] | None:
    """Return the messages of OpenAI's `input` or `prompt`, or of Langfuse's input."""
    if isinstance(given, Mapping) and isinstance(given.get("messages"), list):
        return list(given["messages"])
    if isinstance(given, list) and all(isinstance(item, Mapping) for item in given):
        return given
    return [{"role": "user", "content": given}] if isinstance(given, str) else None


def _message(message: Any) -> Any:
    """Return a message with its text parts as chat completions name them."""
    if not isinstance(message, Mapping):
        return message
    kept = {n: v for n, v in message.items() if n not in ("type", "status", "id")}
    content = message.get("content")
    if isinstance(content, list):
        kept["content"] = [
            {**part, "type": "text"}
            if isinstance(part, Mapping) and part.get("type") in ("input_text", "output_text")
            else part
            for part in content
        ]
    return kept


def _texts(blocks: Any) -> str:
    parts = blocks if isinstance(blocks, list) else [blocks]
    return "\n".join(
        str(part.get("text", "")) if isinstance(part, Mapping) else str(part) for part in parts
    )


def _answer(row: Mapping[str, Any], response: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if isinstance(response.get("choices"), list):
        return response
    if isinstance(response.get("output"), list):  # OpenAI's Responses
        items = [item for item in response["output"] if isinstance(item, Mapping)]
        spoken = [item for item in items if item.get("type") in (None, "message")]
        said: dict[str, Any] = {"content": "".join(_texts(item.get("content")) for item in spoken)}
        if any(str(item.get("type", "")).endswith("_call") for item in items):
            said["tool_calls"] = [{}]
        return _stopped(said, response.get("status") in (None, "completed"))
    if isinstance(response.get("content"), list):  # Anthropic's
        ends = {"end_turn": "stop", "stop_sequence": "stop", "max_tokens": "length"}
        blocks = [block for block in response["content"] if isinstance(block, Mapping)]
        message: dict[str, Any] = {"content": _texts([b for b in blocks if "text" in b])}
        if any(block.get("type") == "tool_use" for block in blocks):
            message["tool_calls"] = [{}]
        reason = ends.get(str(response.get("stop_reason")), "other")
        return {"choices": [{"message": message, "finish_reason": reason}], "usage": {"any": 1}}
    output = row.get("output", row.get("completion"))
    if isinstance(output, str):
        output = _loaded(output, output) if output[:1] in "[{" else output
    if isinstance(output, Mapping) and isinstance(output.get("choices"), list):
        return output
    if isinstance(output, Mapping) and "content" in output:
        return _stopped(output)
    return _stopped({"content": output}) if isinstance(output, str) and output else None


def _stopped(message: Mapping[str, Any], is_complete: bool = True) -> Mapping[str, Any]:
    reason = "stop" if is_complete else "length"
    return {"choices": [{"message": message, "finish_reason": reason}], "usage": {"any": 1}}


def _usage(row: Mapping[str, Any], response: Mapping[str, Any]) -> tuple[Usage | None, str | None]:
    """Return the tokens by class, or why they cannot be counted."""
    details = _object(row.get("usageDetails")) or _object(row.get("usage_details"))
    for given in (response.get("usage"), row.get("usage"), details, row):
        if isinstance(given, Mapping):
            try:
                found = _counted(given, exclusive=given is details)
            except ValueError as error:
                return None, str(error)
            if found is not None:
                return found, None
    return None, "no usage"


def _counted(given: Mapping[str, Any], *, exclusive: bool) -> Usage | None:
    """Return a usage; None where there are no counts. exclusive: input leaves out cached tokens.

    Raises ValueError for a count that is no number of tokens.
    """
    inclusive = _count(given, "prompt_tokens", "promptTokens")
    own_input = _count(given, "input_tokens", "inputTokens", "input")
    output = _count(
        given, "completion_tokens", "completionTokens", "output_tokens", "outputTokens", "output"
    )
    if (inclusive is None and own_input is None) or output is None:
        return None
    read = _part(given, ("prompt_tokens_details", "cached_tokens"),
                 ("input_tokens_details", "cached_tokens"), ("cache_read_input_tokens",),
                 ("input_cached_tokens",), ("input_cache_read",),
                 ("prompt_cache_read_tokens",))  # fmt: skip
    hour = _part(given, ("cache_creation", "ephemeral_1h_input_tokens"))
    written = _part(given, ("cache_creation_input_tokens",), ("input_cache_creation",),
                    ("prompt_cache_write_tokens",))  # fmt: skip
    reasoning = _part(given, ("completion_tokens_details", "reasoning_tokens"),
                      ("output_tokens_details", "reasoning_tokens"),
                      ("output_reasoning_tokens",))  # fmt: skip
    if inclusive is not None:
        uncached = inclusive - read - written
    else:
        assert own_input is not None
        # Anthropic counts cached input apart; OpenAI's Responses count it within.
        within = "input_tokens_details" in given and not exclusive
        uncached = own_input - (read + written if within else 0)
    if uncached < 0:
        raise ValueError(f"{read + written} cached tokens of {uncached + read + written} input")
    if reasoning > output and not exclusive:
        raise ValueError(f"{reasoning} reasoning tokens of {output} output")
    return Usage(
        uncached_input_tokens=uncached, cache_read_tokens=read,
        cache_write_5m_tokens=max(0, written - hour), cache_write_1h_tokens=hour,
        output_tokens=output if exclusive else output - reasoning, reasoning_tokens=reasoning,
    )  # fmt: skip


def _count(given: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = given.get(name)
        if value is None or isinstance(value, (str, list, dict)):
            continue
        if isinstance(value, float) and math.isfinite(value) and value.is_integer():
            value = int(value)
        if type(value) is not int or not 0 <= value <= _MOST_TOKENS:
            raise ValueError(f"{name} is {repr(value)[:40]}")
        return value
    return None


def _part(given: Mapping[str, Any], *paths: tuple[str, ...]) -> int:
    for *folders, name in paths:
        place: Any = given
        for folder in folders:
            place = place.get(folder) if isinstance(place, Mapping) else None
        if isinstance(place, Mapping) and (found := _count(place, name)) is not None:
            return found
    return 0


def _provider(row: Mapping[str, Any]) -> str | None:
    name = _first_text(row.get("custom_llm_provider"), row.get("provider"))
    if name is None:
        return None
    return _PROVIDERS.get(name.lower(), name.lower())


def _money(row: Mapping[str, Any]) -> Decimal | None:
    for name in ("response_cost", "spend", "cost_usd", "costUSD", "cost", "calculatedTotalCost",
                 "totalCost", "total_cost"):  # fmt: skip
        value = row.get(name)
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            try:
                found = Decimal(str(value))
            except InvalidOperation:
                continue
            if found.is_finite() and 0 <= found <= _MOST_USD:
                return found
    return None


def _moment(value: object) -> float | None:
    if (number := finite_number(value)) is not None:
        if number <= 0:
            return None
        # Milliseconds, microseconds.
        at_s = number / 1e6 if number > 1e14 else number / 1e3 if number > 1e11 else number
        return at_s if at_s <= _LATEST_S else None
    if not isinstance(value, str) or len(value) > 64:
        return None
    try:
        at = datetime.fromisoformat(value.strip().removesuffix(" UTC"))
    except ValueError:
        return None
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def _object(value: object) -> Mapping[str, Any] | None:
    """Return an object, also one that a log holds as text."""
    if isinstance(value, str) and value[:1] == "{":
        value = _loaded(value, None)
    return value if isinstance(value, Mapping) else None


def _loaded(text: str, otherwise: Any) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return otherwise


def _first_text(*values: object) -> str | None:
    return next((v for v in values if isinstance(v, str) and 0 < len(v) <= 300), None)


def _at(row: Mapping[str, Any], *path: str) -> object:
    place: object = row
    for name in path:
        place = place.get(name) if isinstance(place, Mapping) else None
    return place
