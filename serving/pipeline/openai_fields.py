"""Which fields of an OpenAI-style request reach the engine, and which are refused."""

from typing import Any

from serving.contracts.errors import InvalidRequest, UnsupportedParameter

_SHARED = frozenset({
    "model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "top_k", "min_p",
    "seed", "stop", "n", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "logit_bias", "logprobs", "response_format", "ignore_eos", "min_tokens",
    "skip_special_tokens",
})  # fmt: skip
_PASSED = {
    "chat": _SHARED | {"messages", "max_completion_tokens", "top_logprobs"},
    "completions": _SHARED | {"prompt", "echo", "suffix"},
}
# Sent by SDKs and frameworks as a matter of course; they change nothing here.
_IGNORED = frozenset({
    "user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier",
    "parallel_tool_calls", "verbosity",
})  # fmt: skip

MAX_CHOICES = 16


def engine_body(endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a request that goes to the engine.

    Raises UnsupportedParameter for a field that would silently be ignored or that reaches into
    the engine (templates, cache salts, transfer parameters), InvalidRequest for content that is
    not text.
    """
    unknown = sorted(set(body) - _PASSED[endpoint] - _IGNORED)
    if unknown:
        raise UnsupportedParameter(
            f"{unknown[0]!r} is not supported here",
            field=unknown[0],
            fix="remove it; supported: " + ", ".join(sorted(_PASSED[endpoint])),
        )
    choices = body.get("n")
    if isinstance(choices, int) and choices > MAX_CHOICES:
        raise InvalidRequest(
            f"n is {choices}, and {MAX_CHOICES} is the most", field="n", fix="lower n"
        )
    for index, message in enumerate(body.get("messages", [])):
        _refuse_other_than_text(index, message)
    return {name: value for name, value in body.items() if name not in _IGNORED}


def _refuse_other_than_text(index: int, message: dict[str, Any]) -> None:
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text":
            raise InvalidRequest(
                f"messages.{index}.content holds a part that is not text",
                field=f"messages.{index}.content",
                fix="send text only; the served models do not see images, audio or files",
            )
