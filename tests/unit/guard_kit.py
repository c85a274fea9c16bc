"""Shipped pairs of questions, and what the guards say of one."""

import json
from importlib.resources import files
from typing import Any

from serving.cache.guards.refusal import refusal
from serving.cache.guards.words import Words


def shipped(name: str) -> list[dict[str, Any]]:
    text = (files("serving.cache.evaluation") / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def refused(a: str, b: str) -> str | None:
    """Return why two questions are not the same; asserts that their order has no part in it."""
    one, other = refusal(Words(a), Words(b)), refusal(Words(b), Words(a))
    assert one == other, f"not symmetric: {a!r} {b!r}"
    return one
