"""Reads a chat request and tells by its form whether it can be narrow at all."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_CODE = re.compile(
    r"```|~~~"
    r"|^\s*(?:def|class)\s+\w+.*:\s*$|^\s*(?:from\s+\S+\s+)?import\s+\w+|^\s*#include\b"
    r"|\b(?:function|func|fn)\s+\w*\s*\(|=>|\bconsole\.log\(|\bprint\(|\breturn\s+\w+;"
    r"|^\s*(?:SELECT|INSERT INTO|UPDATE|CREATE TABLE)\b.*|;\s*$\s*\S.*;\s*$"
    r"|</(?:div|span|p|html|body|script|table)>|\bpublic\s+(?:static|class)\b|\{\s*$",
    re.MULTILINE,
)
_INSTRUCTING_ROLES = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Prompt:
    """The text of a chat request of one turn. system: empty where there is none."""

    system: str
    user: str

    @property
    def text(self) -> str:
        """Return everything that was said, the system message first."""
        return f"{self.system}\n\n{self.user}" if self.system else self.user


@dataclass(frozen=True, slots=True)
class Reading:
    """What a body says.

    prompt: system messages joined, and the last user message. turns: messages that are neither
    system nor developer. has_code: in the last user message. wants_more: tools, images, several
    answers or the like are asked for. obstacle: why the request cannot be narrow; None where its
    form allows it.
    """

    prompt: Prompt
    turns: int
    has_code: bool
    wants_more: bool
    obstacle: str | None


def read(body: Mapping[str, Any], max_chars: int) -> Reading:
    """Return what a chat request says; never raises, whatever the body holds.

    max_chars: system and user messages together must not be longer to be narrow.
    """
    raw = body.get("messages")
    messages = [m for m in raw if isinstance(m, Mapping)] if isinstance(raw, list) else []
    systems = [m for m in messages if _instructs(m)]
    others = [m for m in messages if not _instructs(m)]
    users = [m for m in others if m.get("role") == "user"]
    prompt = Prompt(
        "\n".join(_text(m.get("content")) for m in systems).strip(),
        _text(users[-1].get("content")) if users else "",
    )
    has_code = bool(_CODE.search(prompt.user))
    field = _field_obstacle(body)
    obstacle = (
        field
        or _turn_obstacle(messages, others, users)
        or _text_obstacle(prompt, max_chars, has_code=has_code)
    )
    wants_more = field is not None or any(not _is_plain(m.get("content")) for m in messages)
    return Reading(prompt, len(others), has_code, wants_more, obstacle)


def _field_obstacle(body: Mapping[str, Any]) -> str | None:
    """Return the field that asks for more than a task's answer."""
    for name in ("tools", "functions", "audio", "prediction", "web_search_options", "logit_bias"):
        if body.get(name):
            return name
    for name in ("tool_choice", "function_call"):
        if body.get(name) not in (None, "none"):
            return name
    if body.get("n") not in (None, 1):
        return "n"
    if body.get("logprobs") or body.get("top_logprobs"):
        return "logprobs"
    shape = body.get("response_format")
    if shape is not None and not (isinstance(shape, Mapping) and shape.get("type") == "text"):
        return "response_format"
    if body.get("modalities") not in (None, ["text"]):
        return "modalities"
    return None


def _turn_obstacle(
    messages: list[Mapping[str, Any]],
    others: list[Mapping[str, Any]],
    users: list[Mapping[str, Any]],
) -> str | None:
    if len(others) != 1 or len(users) != 1:
        return "not exactly one user turn"
    if messages[-1] is not users[0]:
        return "a message after the user's"
    if any(not _is_plain(message.get("content")) for message in messages):
        return "content other than text"
    return None


def _text_obstacle(prompt: Prompt, max_chars: int, *, has_code: bool) -> str | None:
    if len(prompt.system) + len(prompt.user) > max_chars:
        return f"longer than {max_chars} characters"
    if not prompt.user.strip():
        return "no text"
    return "code" if has_code or _CODE.search(prompt.system) else None


def _instructs(message: Mapping[str, Any]) -> bool:
    return message.get("role") in _INSTRUCTING_ROLES


def _is_plain(content: object) -> bool:
    if isinstance(content, str):
        return True
    return (
        isinstance(content, list)
        and len(content) > 0
        and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content)
        and all(isinstance(p.get("text"), str) for p in content)
    )


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [p.get("text") for p in content if isinstance(p, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str))
