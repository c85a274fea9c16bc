"""Where an instruction ends and the text begins."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.routing.conversation import is_persona
from serving.routing.corpus import shipped_corpus
from serving.routing.languages import Direction, direction
from serving.routing.payload import holds_list, split_message

TEXT = "We left at nine, and nobody said: stay."
LANGUAGES = ("en", "de", "fr", "es")


@pytest.mark.parametrize(
    "message",
    [
        f"Classify the sentiment: {TEXT}",
        f"Classify the sentiment.\n\n{TEXT}",
        f'Classify the sentiment: "{TEXT}"',
        f"Classify the sentiment of '{TEXT}'",
        f"Classify the sentiment of “{TEXT}” please.",
        f"Bestimme die Stimmung: „{TEXT}“",
        f"Quel est le sentiment de « {TEXT} » ?",
        f"Sentiment of the text in tags\n<text>\n{TEXT}\n</text>",
        f'Sentiment?\n"""{TEXT}"""',
        f"Sentiment?\n'''\n{TEXT}\n'''\nOne word.",
        f"What is the sentiment?\n> {TEXT}",
        f"What is the sentiment?\n---\n{TEXT}\n---",
        f"Is it positive?\n\nReview: {TEXT}\nSentiment:",
        f"{TEXT}\n\nWhat is the sentiment of this?",
        f'"{TEXT}"\nWhat is the sentiment of this?',
        f"Tweet: {TEXT}\n\nWhat is its sentiment?",
        f"Choose one of: positive, negative, neutral.\n\n{TEXT}",
        f"Translate the memo into German.\n\nMemo: {TEXT}",
    ],
)
def test_the_payload_is_found_to_the_character(message: str) -> None:
    assert TEXT in [split.payload for split in split_message(message)]


@pytest.mark.parametrize(
    "message",
    [
        "What is sentiment analysis?",
        "Text: one.\nText: two.",
        "<a>one thing</a> and <b>another thing</b>",
        '"one whole thing" or "another whole thing"',
        '"""one""" """two"""',
        "> one\n> two",
        'Translate: "Hello there", she said to him.',
        "",
    ],
)
def test_an_uncertain_payload_is_not_split(message: str) -> None:
    assert split_message(message) == ()


def test_quotes_inside_quotes_stay_in_the_payload() -> None:
    (split,) = split_message('What is the sentiment of "He said "never" and left."')
    assert split.payload == 'He said "never" and left.'


def test_a_quotation_inside_the_text_is_not_taken_for_it() -> None:
    for text in ('He said "hello" to me.', 'He said "hello".'):
        assert [s.payload for s in split_message(f"Translate to German: {text}")] == [text]


def test_a_text_that_begins_with_a_quotation_has_two_readings() -> None:
    splits = split_message('Label the sentiment: "Never again" is what Tom said')
    assert {split.payload for split in splits} in (
        set(),
        {"Never again", '"Never again" is what Tom said'},
    )


@given(st.text(max_size=300))
def test_a_payload_is_always_a_piece_of_the_message(message: str) -> None:
    for split in split_message(message):
        assert split.payload in message
        assert split.payload


_PIECES = st.sampled_from(
    ['"', "'", "“", "”", "„", "«", "»", ":", "\n", "\n\n", "> ", "<t>", "</t>", '"""', "---\n",
     "Text: ", "word", "Sentiment", " ", ".", "1. ", "- ", "positive, negative", "…", "é"]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=25).map("".join))
def test_no_arrangement_of_marks_breaks_the_splitter(message: str) -> None:
    for split in split_message(message):
        assert split.payload in message
    holds_list(message)


@given(st.text(max_size=200))
def test_rules_on_any_text_never_raise(text: str) -> None:
    direction(text, LANGUAGES)
    is_persona(text)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("Translate to German: …", Direction(None, "de")),
        ("Translate from French to English. …", Direction("fr", "en")),
        ("EN -> ES …", Direction("en", "es")),
        ("Übersetze aus dem Englischen ins Französische: …", Direction("en", "fr")),
        ("Traduis cette phrase de l'anglais vers l'espagnol : …", Direction("en", "es")),
        ("Traduce al alemán: …", Direction(None, "de")),
        ("Give me the Spanish version: …", Direction(None, "es")),
        ("Translate to Italian: …", None),
        ("Translate to German and French: …", None),
        ("Translate to Swiss German: …", None),
        ("Translate from Italian to English: …", None),
        ("Translate: …", None),
        ("Answer in German. …", None),
        ("Translate English to English: …", None),
    ],
)
def test_the_direction_is_read_from_names(instruction: str, expected: Direction | None) -> None:
    assert direction(instruction, LANGUAGES) == expected


@pytest.mark.parametrize(
    ("system", "expected"),
    [
        ("You are a helpful assistant.", True),
        ("You are a helpful, friendly AI. Be concise.", False),
        ("You are a helpful AI assistant. Answer concisely.", True),
        ("You are an assistant that answers in French.", False),
        ("Classify the sentiment.", False),
    ],
)
def test_personas_are_told_from_orders(system: str, expected: bool) -> None:
    assert is_persona(system) == expected


def test_nearly_every_shipped_instruction_can_be_split() -> None:
    rows = [row for row in shipped_corpus().prompts if row.payload and not row.prompt.system]
    found = [
        row.payload in [split.payload for split in split_message(row.prompt.user)] for row in rows
    ]
    assert sum(found) / len(found) > 0.98
