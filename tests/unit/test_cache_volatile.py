"""Moving times and personal data: one list, for equal requests and for lookups by meaning."""

import time

import pytest

from serving.cache.cacheable import unfit_chat
from serving.cache.eligible import ineligible_text
from serving.cache.volatile import asks_to_draw, holds_personal_data, names_moving_time
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
DRAWN = [
    "Generate a strong password for me.", "Please create a UUID.", "Can you make up a 6 digit PIN?",
    "Pick a random number between 1 and 10.", "Roll two dice.", "Flip a coin for me, please.",
    "Tell me a random joke.", "Give me an API key for my test.", "Shuffle the numbers 1 to 9.",
    "Generiere bitte ein sicheres Passwort.", "Wirf eine Münze.", "Würfle zweimal.",
    "Nenne eine zufällige Zahl.", "Génère un mot de passe de 12 caractères.",
    "Donne-moi un nombre aléatoire.", "Dame una contraseña segura.", "Elige un número al azar.",
]  # fmt: skip
NEITHER = [
    "How do I choose a strong password?", "What is a random forest?", "How do I flip a table?",
    "Write a password reset page.", "Explain random access memory.", "Why does a coin roll?",
    "Give me the definition of a coin.", "Make a pinboard out of cork.", "How are dice made?",
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
    assert not asks_to_draw(text)


@pytest.mark.parametrize("text", DRAWN)
def test_what_is_drawn_anew(text: str) -> None:
    assert asks_to_draw(text)
    request = read_chat({"model": "m", "messages": [{"role": "user", "content": text}]}, 1)
    assert unfit_chat(request, "exact_only") == "random"


@pytest.mark.parametrize(
    "unit", ["1", "a", "1 ", "+1 ", "a.", "1-", "A1 ", "give ", "please give "]
)
def test_a_long_text_takes_linear_time(unit: str) -> None:
    text = unit * 20_000
    started = time.process_time()
    assert not names_moving_time(text)
    holds_personal_data(text)
    asks_to_draw(text)
    # A search that is quadratic in the length takes minutes.
    assert time.process_time() - started < 20


def _reasons(text: str) -> set[str | None]:
    body = {"model": "auto", "messages": [{"role": "user", "content": text}]}
    # A lookup by meaning refuses fewer words than three before it reads them.
    return {
        unfit_chat(read_chat(body, 8), "exact_only"), ineligible_text(f"Tell me about {text}"),
    }  # fmt: skip
