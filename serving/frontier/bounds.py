"""How long an answer may get: applies OutputBounds to a request body. Pure."""

from typing import Any

from serving.contracts.frontier import OutputBounds

_SYSTEM_ROLES = ("system", "developer")
_LIMITS = ("max_completion_tokens", "max_tokens")


def bounded_tokens(body: dict[str, Any], bounds: OutputBounds) -> int:
    """Return the lowest of the bound and the client's own limits, tokens for one choice."""
    given = (body.get(name) for name in _LIMITS)
    own = [limit for limit in given if type(limit) is int and limit > 0]
    return min([bounds.max_tokens, *own])


def bounded(body: dict[str, Any], bounds: OutputBounds) -> dict[str, Any]:
    """Return a copy of the body with the bounds applied; the limit is under `max_tokens`.

    The client's stop sequences win. The directive goes to the end of the last leading system
    message, or into one of its own where there is none. It is constant for a tier, so a prefix
    that reaches past it stays the same from request to request, and a prefix that ends at a marker
    inside the system prompt ends before it. It is left out where the client asks for a format or
    offers tools: there, a wish for brevity makes broken documents.
    """
    result = {name: value for name, value in body.items() if name not in _LIMITS}
    result["max_tokens"] = bounded_tokens(body, bounds)
    if bounds.stop and not body.get("stop"):
        result["stop"] = list(bounds.stop)
    if bounds.directive and not _formatted(body):
        result["messages"] = _directed(body.get("messages", []), bounds.directive)
    return result


def _formatted(body: dict[str, Any]) -> bool:
    form = body.get("response_format")
    plain = not form or (isinstance(form, dict) and form.get("type") == "text")
    return not plain or bool(body.get("tools"))


def _directed(messages: list[dict[str, Any]], directive: str) -> list[dict[str, Any]]:
    leading = 0
    while leading < len(messages) and messages[leading].get("role") in _SYSTEM_ROLES:
        leading += 1
    if not leading:
        return [{"role": "system", "content": directive}, *messages]
    system = dict(messages[leading - 1])
    content = system.get("content")
    if isinstance(content, list):
        system["content"] = [*content, {"type": "text", "text": directive}]
    else:
        system["content"] = f"{content}\n\n{directive}" if content else directive
    return [*messages[: leading - 1], system, *messages[leading:]]
