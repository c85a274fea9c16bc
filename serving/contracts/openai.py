"""The OpenAI-style surface between gateway and engine."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class OpenAIReply:
    """The first item of an OpenAI-style answer.

    status: HTTP status. body: the JSON document, or None where server-sent events follow.
    """

    status: int
    body: dict[str, Any] | None
