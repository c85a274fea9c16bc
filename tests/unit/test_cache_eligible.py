"""What may be looked up by meaning, before anything is embedded."""

from typing import Any

import pytest

from serving.cache.eligible import MOST_CHARACTERS, ineligible_chat, ineligible_text
from serving.contracts.requests import Message


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("How do I reset my password?", None),
        ("Wie kann ich Reis kochen?", None),
        ("Comment fonctionne un vaccin ?", None),
        ("¿Cómo funciona una vacuna?", None),
        ("Why is it dark at night?", None),
        ("What is the latest version of Python?", "time_dependent"),
        ("Was kostet Gold heute?", "time_dependent"),
        ("Where is my order?", "personal"),
        ("Which restaurants are near me?", "personal"),
        ("Mail bob@example.org about the plan", "personal"),
        ("and in Paris as well?", "elliptic"),
        ("What about the red one?", "elliptic"),
        ("Can you explain this picture?", "deictic"),
        ("What does the program below print?", "deictic"),
        ("Translate the sentence into German", "payload"),
        ("What is wrong here: the cat sat on the mat and slept all day", "payload"),
        ("Why does foo(bar) fail in the loop?", "code"),
        ("What does `ls` do on Linux?", "code"),
        ("Hello", "too_short"),
        ("", "too_short"),
        ("Какая столица Франции сейчас?", "language"),
        ("what is a cat " * 40, "too_long"),
    ],
)
def test_ineligible_text(text: str, reason: str | None) -> None:
    assert ineligible_text(text) == reason


def _message(role: str, content: Any) -> Message:
    return Message(role, content, {})


def test_a_chat_is_looked_up_by_its_last_turn() -> None:
    turns = [_message("system", "Be brief."), _message("user", "How do I boil an egg?")]
    assert ineligible_chat(turns, {}) is None
    assert ineligible_chat(turns, {"tools": []}) == "tools"
    assert ineligible_chat(turns[:1], {}) == "not_text"
    assert ineligible_chat([], {}) == "not_text"
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    assert ineligible_chat([_message("user", image)], {}) == "not_text"


def test_the_longest_text_fits_the_encoder() -> None:
    assert MOST_CHARACTERS <= 256 * 2
