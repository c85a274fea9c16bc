"""Moving times and personal data: one list, for equal requests and for lookups by meaning."""

import time

import pytest

from serving.cache.cacheable import unfit_chat
from serving.cache.eligible import ineligible_text
from serving.cache.volatile import holds_personal_data, names_moving_time
from serving.pipeline.read import read_chat

MOVING = [
    "What is the weather in Paris?", "Who is the current president?", "What's the time?",
    "What time is it in Rome?", "the latest iPhone", "What happened yesterday?",
    "this week's menu", "3 days until Easter", "the exchange rate of the franc", "NOW please",
    "at the moment", "upcoming concerts", "these days", "Monday's news", "last season's winner",
    "Was läuft heute im Kino?", "der aktuelle Stand", "nächste Woche", "wie spät ist es",
    "zurzeit offen", "die Nachrichten", "Quelle heure est-il ?", "en ce moment",
    "les actualités d'aujourd\u2019hui", "la semaine prochaine", "¿Qué hora es?",
    "las últimas noticias", "el presidente actual", "esta noche", "pronóstico de mañana",
]  # fmt: skip
PERSONAL = [
    "Write to ann.lee+x@example.org", "My IBAN is DE89 3704 0044 0532 0130 00",
    "card 4111 1111 1111 1111", "call +49 (30) 1234567", "call 555-010-4477", "SSN 078-05-1120",
    "the account 123456789 of a client", "call (555) 010 4477",
]  # fmt: skip
NEITHER = [
    "Explain the snow line.", "How do I knowingly open a file?", "What is 1234567 times 2?",
    "the number 2026-11-02", "the time stamp 2026-11-02 10:30:00", "a daytime of Mars",
    "user@host in ssh means what?", "chapter 12345-67", "Was bedeutet Morgenstern?",
    "What is the time complexity of a search?", "years 1990 2000 2010", "0.123456789 as a fraction",
    "10 000 000 000 as a word",
]  # fmt: skip


@pytest.mark.parametrize("text", MOVING)
def test_a_time_that_moves(text: str) -> None:
    assert names_moving_time(text)
    assert _reasons(text) == {"time_dependent"}


@pytest.mark.parametrize("text", PERSONAL)
def test_personal_data(text: str) -> None:
    assert holds_personal_data(text)
    assert _reasons(text) == {"personal"}


@pytest.mark.parametrize("text", NEITHER)
def test_words_that_only_look_alike(text: str) -> None:
    assert not names_moving_time(text)
    assert not holds_personal_data(text)


@pytest.mark.parametrize("unit", ["1", "a", "1 ", "+1 ", "a.", "1-", "A1 "])
def test_a_long_text_takes_linear_time(unit: str) -> None:
    text = unit * 20_000
    started = time.perf_counter()
    assert not names_moving_time(text)
    holds_personal_data(text)
    # A search that is quadratic in the length takes minutes.
    assert time.perf_counter() - started < 5


def _reasons(text: str) -> set[str | None]:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    # A lookup by meaning refuses fewer words than three before it reads them.
    return {
        unfit_chat(read_chat(body, 8), "exact_only"), ineligible_text(f"Tell me about {text}"),
    }  # fmt: skip
