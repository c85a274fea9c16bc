"""Translates OpenAI chat completion requests to Anthropic's Messages API. Pure.

Anthropic's API version 2026-10-21 refuses temperature, top_p and top_k, and it never had penalties
and seeds. These affect style, not meaning, so they are left out. Fields that change the meaning of
the answer (n, log-probabilities, logit_bias, audio, old-style functions, stop sequences of white
space) are refused.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from anthropic import transform_schema

from serving.contracts.errors import FrontierRejected
from serving.frontier.cache_policy import Ttl

_NOT_OFFERED = ("logprobs", "top_logprobs", "logit_bias", "audio", "functions", "function_call",
                "prediction", "web_search_options")  # fmt: skip
_EFFORT = {"none": "low", "minimal": "low"}
_THINKING_OFF = (
    # Models that reason by default. Opus 5.5 and Fable refuse `disabled`, and get only
    # the lowest effort.
    ("claude-sonnet-5-5", "between_tools"),
    ("claude-haiku-5", "disabled"),
    ("claude-sonnet-5", "disabled"),
)
_DATA_URL = re.compile(r"data:(image/(?:jpeg|png|gif|webp));base64,([A-Za-z0-9+/=\s]+)\Z")
_JSON_DIRECTIVE = "Answer with one JSON object and nothing else."


def anthropic_request(body: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Return keyword arguments for `messages.create`.

    body: bounded, with `max_tokens`; `cache_control` on a text, an image, a tool or a tool's result
    is passed on. Raises FrontierRejected, naming the field, for a field that Anthropic does not
    offer.
    """
    _refuse_unknown(body)
    system, messages = _conversation(body.get("messages", []))
    request: dict[str, Any] = {
        "model": model,
        "max_tokens": body["max_tokens"],
        "messages": messages,
    }
    form = _output_format(body.get("response_format"))
    if form == {}:
        system.append(_text(_JSON_DIRECTIVE))
    config = {"format": form} if form else {}
    effort = body.get("reasoning_effort")
    if effort:
        config["effort"] = _EFFORT.get(effort, effort)
    user = body.get("safety_identifier") or body.get("user")
    optional = {
        "system": system,
        "output_config": config,
        "thinking": _no_thinking(model) if effort == "none" else None,
        "stop_sequences": _stop_sequences(body.get("stop")),
        "metadata": {"user_id": user} if user else None,
        **_tools(body),
    }
    return {**request, **{name: value for name, value in optional.items() if value}}


def cache_control(ttl: Ttl) -> dict[str, str]:
    """Return Anthropic's breakpoint for a time to live; 5 minutes is its default."""
    return {"type": "ephemeral"} if ttl == "5m" else {"type": "ephemeral", "ttl": ttl}


def _stop_sequences(stop: object) -> list[str]:
    texts = [stop] if isinstance(stop, str) else stop
    if not isinstance(texts, list):
        return []
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            # Left out, it would not stop the answer, and the client would pay for the rest.
            raise _rejected(
                "stop",
                f"stop sequence {text!r} has no visible character",
                "use a sequence with a visible character, or a provider in OpenAI's format",
            )
    return texts


def _no_thinking(model: str) -> dict[str, str] | None:
    kinds = (kind for name, kind in _THINKING_OFF if model.startswith(name))
    kind = next(kinds, None)
    return {"type": kind} if kind else None


def _refuse_unknown(body: Mapping[str, Any]) -> None:
    if body.get("n") not in (None, 1):
        raise _rejected("n", f"n is {body['n']!r}, and Anthropic returns one choice", "ask for n=1")
    for name in _NOT_OFFERED:
        if body.get(name):
            raise _rejected(name, f"{name} is not offered by Anthropic", f"leave out {name}")


def _conversation(messages: list[dict[str, Any]]) -> tuple[list[Any], list[dict[str, Any]]]:
    """Return system blocks and turns; consecutive turns of one role are merged."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        where, role = f"messages.{index}", message.get("role")
        if role in ("system", "developer"):
            system += _blocks(message.get("content"), where)
            continue
        match role:
            case "user":
                blocks = _blocks(message.get("content"), where)
            case "assistant":
                role, blocks = "assistant", _assistant(message, where)
            case "tool":
                role, blocks = "user", [_tool_result(message, where)]
            case _:
                raise _rejected(f"{where}.role", f"unknown role {role!r}", "use a known role")
        if not blocks:
            continue
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    return system, turns


def _blocks(content: object, where: str) -> list[dict[str, Any]]:
    if isinstance(content, str) or content is None:
        return [_text(content)] if content and content.strip() else []
    if not isinstance(content, list):
        raise _rejected(
            f"{where}.content", "content is neither text nor a list", "send text or parts"
        )
    blocks = [_block(part, f"{where}.content.{n}") for n, part in enumerate(content)]
    return [block for block in blocks if block is not None]


def _block(part: object, where: str) -> dict[str, Any] | None:
    if not isinstance(part, dict):
        raise _rejected(where, "a part is not an object", "send parts as objects")
    match part.get("type"):
        case "text" | "refusal" as kind:
            text = part.get("text" if kind == "text" else "refusal") or ""
            if not text.strip():
                return None
            return _with_control(_text(text), part)
        case "image_url":
            image = {"type": "image", "source": _image(part.get("image_url"), where)}
            return _with_control(image, part)
        case kind:
            raise _rejected(where, f"parts of type {kind!r} are not supported", "send text")


def _image(image: object, where: str) -> dict[str, str]:
    url = image.get("url") if isinstance(image, dict) else image
    if isinstance(url, str) and url.startswith(("https://", "http://")):
        return {"type": "url", "url": url}
    if isinstance(url, str) and (found := _DATA_URL.match(url)):
        return {"type": "base64", "media_type": found[1], "data": "".join(found[2].split())}
    raise _rejected(
        f"{where}.image_url",
        "the image is neither an http(s) URL nor base64 JPEG, PNG, GIF or WebP",
        "send another image",
    )


def _assistant(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    blocks = _blocks(message.get("content"), where)
    for n, call in enumerate(message.get("tool_calls") or []):
        function = call.get("function") or {}
        field = f"{where}.tool_calls.{n}.function.arguments"
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise _rejected(
                field, "arguments are not a JSON object", "send the call as the model made it"
            )
        blocks.append(
            {
                "type": "tool_use",
                "id": call.get("id"),
                "name": function.get("name"),
                "input": arguments,
            }
        )
    return blocks


def _tool_result(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    blocks = _blocks(message.get("content"), where)
    result = {"type": "tool_result", "tool_use_id": message.get("tool_call_id")}
    return _with_control({**result, "content": blocks} if blocks else result, message)


def _tools(body: Mapping[str, Any]) -> dict[str, Any]:
    tools = body.get("tools")
    if not tools:
        return {}
    return {
        "tools": [_tool(tool, f"tools.{n}") for n, tool in enumerate(tools)],
        "tool_choice": _tool_choice(body),
    }


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise _rejected(
            where, f"tools of type {tool.get('type')!r} are not offered", "use functions"
        )
    function = tool.get("function") or {}
    result = {
        "name": function.get("name"),
        "input_schema": function.get("parameters") or {"type": "object", "properties": {}},
    }
    optional = {
        "description": function.get("description"),
        "strict": function.get("strict"),
        "cache_control": tool.get("cache_control"),
    }
    return {**result, **{name: value for name, value in optional.items() if value}}


def _tool_choice(body: Mapping[str, Any]) -> dict[str, Any] | None:
    choice = body.get("tool_choice")
    result: dict[str, Any]
    match choice:
        case "none":
            return {"type": "none"}
        case None | "auto":
            result = {"type": "auto"}
        case "required":
            result = {"type": "any"}
        case {"type": "function", "function": {"name": name}}:
            result = {"type": "tool", "name": name}
        case _:
            raise _rejected("tool_choice", "this choice is not supported", "use auto or required")
    if body.get("parallel_tool_calls") is False:
        return {**result, "disable_parallel_tool_use": True}
    return result if choice is not None else None


def _output_format(form: object) -> dict[str, Any] | None:
    """Return Anthropic's format; empty for a JSON object of any shape, which has no mode there."""
    match form:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {}
        case {"type": "json_schema", "json_schema": {"schema": dict() as schema}}:
            try:
                return {"type": "json_schema", "schema": transform_schema(schema)}
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise _rejected(
                    "response_format.json_schema.schema",
                    f"Anthropic cannot follow this schema ({type(error).__name__})",
                    "give every part of the schema a type",
                ) from error
    raise _rejected("response_format", "this format is not supported", "use json_schema")


def _with_control(block: dict[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    if "cache_control" in source:
        block["cache_control"] = source["cache_control"]
    return block


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _rejected(field: str, message: str, fix: str) -> FrontierRejected:
    return FrontierRejected(
        f"the request cannot be sent to Anthropic: {message}", field=field, fix=fix
    )
