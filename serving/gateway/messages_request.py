"""Anthropic's Messages requests as chat completions: text, system prompts and tools. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from serving.contracts.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.http_request import OptionFields

_SAME = ("model", "max_tokens", "temperature", "top_p", "top_k")
_IGNORED = ("cache_control", "service_tier", "stream")
"""They change the price or the way of an answer, not what it says."""

_TRANSLATED = ("messages", "metadata", "stop_sequences", "system", "tool_choice", "tools")
_TOOL_FIELDS = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control"})
_TIERS = ("auto", "standard_only")


def chat_body(params: object) -> dict[str, Any]:
    """Return a Messages request as the body of a chat completion.

    Raises InvalidRequest and UnsupportedParameter with the field.
    """
    if not isinstance(params, Mapping):
        raise _malformed("", "an object", params)
    _check_fields(params)
    body = {name: params[name] for name in _SAME if params.get(name) is not None}
    body |= {name: params[name] for name in OptionFields.model_fields if name in params}
    messages = _system(params.get("system"))
    for number, message in enumerate(_list(params["messages"], "messages")):
        messages += _turn(message, f"messages.{number}")
    body["messages"] = messages
    if (stop := params.get("stop_sequences")) is not None:
        body["stop"] = _list(stop, "stop_sequences")
    if (user := _mapping(params.get("metadata") or {}, "metadata").get("user_id")) is not None:
        body["user"] = user
    return body | _tools(params)


def _check_fields(params: Mapping[str, Any]) -> None:
    known = {*_SAME, *_IGNORED, *_TRANSLATED, *OptionFields.model_fields}
    for name in params:
        if name not in known:
            raise _unsupported(str(name)[:60], "is not supported in a batch here")
    if params.get("stream"):
        raise _unsupported("stream", "is true, and nobody waits for a batch")
    if params.get("service_tier") not in (None, *_TIERS):
        raise _unsupported("service_tier", "is neither auto nor standard_only")
    for name in ("model", "max_tokens", "messages"):
        if params.get(name) is None:
            raise InvalidRequest(f"{name} is missing", field=name, fix=f"send {name}")


def _system(system: object) -> list[dict[str, Any]]:
    if system is None:
        return []
    content = _texts(system, "system")
    return [{"role": "system", "content": content}] if content else []


def _turn(message: object, where: str) -> list[dict[str, Any]]:
    found = _mapping(message, where)
    role, content = found.get("role"), found.get("content")
    if role == "assistant":
        return [_assistant(content, f"{where}.content")]
    if role != "user":
        raise _malformed(f"{where}.role", "user or assistant", role)
    return _user(content, f"{where}.content")


def _user(content: object, where: str) -> list[dict[str, Any]]:
    """Return a user's turn: the results of tools first, as chat completions have them."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results, texts = [], []
    for number, block in enumerate(_list(content, where)):
        place = f"{where}.{number}"
        if isinstance(block, Mapping) and block.get("type") == "tool_result":
            results.append(_tool_result(block, place))
        else:
            texts.append(_text(block, place))
    return results + ([{"role": "user", "content": texts}] if texts else [])


def _assistant(content: object, where: str) -> dict[str, Any]:
    if isinstance(content, str):
        return {"role": "assistant", "content": content}
    texts, calls = [], []
    for number, block in enumerate(_list(content, where)):
        place = f"{where}.{number}"
        if isinstance(block, Mapping) and block.get("type") == "tool_use":
            calls.append(_tool_use(block, place))
        else:
            texts.append(_text(block, place)["text"])
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts) or None}
    return {**message, "tool_calls": calls} if calls else message


def _tool_use(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    _only(block, ("type", "id", "name", "input", "cache_control", "caller"), where)
    function = {
        "name": _string(block.get("name"), f"{where}.name"),
        "arguments": json.dumps(_mapping(block.get("input"), f"{where}.input"), ensure_ascii=False),
    }
    id_ = _string(block.get("id"), f"{where}.id")
    return {"id": id_, "type": "function", "function": function}


def _tool_result(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    _only(block, ("type", "tool_use_id", "content", "is_error", "cache_control"), where)
    if block.get("is_error"):
        raise _unsupported(f"{where}.is_error", "is true; say in the content that the tool failed")
    content = block.get("content")
    found = "" if content is None else _texts(content, f"{where}.content")
    call = _string(block.get("tool_use_id"), f"{where}.tool_use_id")
    return {"role": "tool", "tool_call_id": call, "content": found}


def _tools(params: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if params.get("tools") is not None:
        tools = _list(params["tools"], "tools")
        found["tools"] = [_tool(tool, f"tools.{number}") for number, tool in enumerate(tools)]
    if (choice := params.get("tool_choice")) is not None:
        named = _mapping(choice, "tool_choice")
        _only(named, ("type", "name", "disable_parallel_tool_use"), "tool_choice")
        found["tool_choice"] = _choice(named)
        if named.get("disable_parallel_tool_use"):
            found["parallel_tool_calls"] = False
    return found


def _tool(tool: object, where: str) -> dict[str, Any]:
    found = _mapping(tool, where)
    if found.get("type", "custom") not in ("custom", None):
        raise _unsupported(f"{where}.type", f"is {str(found['type'])[:60]!r}, not 'custom'")
    _only(found, _TOOL_FIELDS, where)
    function: dict[str, Any] = {
        "name": _string(found.get("name"), f"{where}.name"),
        "parameters": dict(_mapping(found.get("input_schema"), f"{where}.input_schema")),
    }
    function |= {name: found[name] for name in ("description", "strict") if name in found}
    return {"type": "function", "function": function}


def _choice(choice: Mapping[str, Any]) -> Any:
    match choice.get("type"):
        case "auto" | "none" as kind:
            return kind
        case "any":
            return "required"
        case "tool":
            name = _string(choice.get("name"), "tool_choice.name")
            return {"type": "function", "function": {"name": name}}
        case kind:
            raise _malformed("tool_choice.type", "auto, any, tool or none", kind)


def _texts(content: object, where: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    return [_text(block, f"{where}.{n}") for n, block in enumerate(_list(content, where))]


def _text(block: object, where: str) -> dict[str, Any]:
    found = _mapping(block, where)
    if found.get("type") != "text":
        raise _unsupported(f"{where}.type", f"is {str(found.get('type'))[:60]!r}, not text")
    _only(found, ("type", "text", "cache_control", "citations"), where)
    return {"type": "text", "text": _string(found.get("text"), f"{where}.text")}


def _only(found: Mapping[str, Any], names: object, where: str) -> None:
    for name, value in found.items():
        if value is not None and name not in names:  # type: ignore[operator]
            raise _unsupported(f"{where}.{str(name)[:60]}", "is not supported in a batch here")


def _mapping(value: object, field: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _malformed(field, "an object", value)
    return value


def _list(value: object, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise _malformed(field, "a list", value)
    return value


def _string(value: object, field: str) -> str:
    if not isinstance(value, str) or not value:
        raise _malformed(field, "a text", value)
    return value


def _malformed(field: str, wanted: str, value: object) -> InvalidRequest:
    shown = f"{value!r:.60}" if isinstance(value, str | int | float) else type(value).__name__
    what = field or "a request"
    return InvalidRequest(
        f"{what} is {shown}, not {wanted}", field=field or None, fix=f"send {wanted} as {what}"
    )


def _unsupported(field: str, what: str) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"{field} {what}", field=field, fix="send text, a system prompt and tools of your own only"
    )
