"""Vectors of instructions are kept for the tenant that sent them, and for no other."""

import numpy as np
import pytest
from pydantic import ValidationError

from serving.contracts.routing_settings import RoutingSettings
from serving.pipeline.known_vectors import KnownVectors

from .chat_kit import chat_body
from .scripted import Server

ONE, OTHER = np.full(4, 1, np.float32), np.full(4, 2, np.float32)
ORDER = "Guess the age of the writer:"


def test_each_tenant_has_its_own() -> None:
    known = KnownVectors(8)
    known.add("acme", {ORDER: ONE})
    assert known.find("acme", ORDER) is ONE
    assert known.find("other", ORDER) is None
    assert known.find("acme", ORDER + " ") is None
    known.add("other", {ORDER: OTHER})
    assert known.find("acme", ORDER) is ONE


def test_the_longest_unused_are_dropped() -> None:
    known = KnownVectors(2)
    known.add("acme", {"a": ONE, "b": ONE})
    assert known.find("acme", "a") is ONE
    known.add("acme", {"c": ONE})
    assert [known.find("acme", text) is not None for text in "abc"] == [True, False, True]
    none = KnownVectors(0)
    none.add("acme", {"a": ONE})
    assert none.find("acme", "a") is None


def test_texts_longer_than_any_instruction_are_not_kept() -> None:
    known = KnownVectors(8)
    known.add("acme", {"x" * 500: ONE, "x" * 501: ONE})
    assert known.find("acme", "x" * 500) is ONE
    assert known.find("acme", "x" * 501) is None


def test_any_text_can_be_a_key() -> None:
    known = KnownVectors(8)
    known.add("acme", {"\ud800\0": ONE})
    assert known.find("acme", "\ud800\0") is ONE


async def test_a_second_request_with_the_same_instruction_embeds_nothing(server: Server) -> None:
    server.router.needed = (ORDER,)
    await server.post("/v1/chat/completions", json=chat_body(model="auto"))
    assert server.router.known == {ORDER: None}
    await server.post("/v1/chat/completions", json=chat_body(model="auto"))
    assert server.router.known[ORDER] is not None
    server.context.path.known.add("other", {"theirs": ONE})
    server.router.needed = ("theirs",)
    await server.post("/v1/chat/completions", json=chat_body(model="auto"))
    assert server.router.known == {"theirs": None}


def test_a_count_below_zero_is_refused() -> None:
    with pytest.raises(ValidationError, match="known_instructions"):
        RoutingSettings(known_instructions=-1)
