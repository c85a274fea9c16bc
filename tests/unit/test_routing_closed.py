"""Requests that are explained word by word, and what known words alone must not ask for."""

import pytest

from serving.contracts.task_spec import TaskSpec
from serving.routing.clauses import Normaliser
from serving.routing.closed_request import closed_task
from serving.routing.closed_vocabulary import fold, mistyped, unexplained_words, vocabulary
from serving.routing.narrow import mixed
from serving.routing.payload import GAP, beginnings

OFFERED = ("sentiment", "topic", "ner", "translation")


def task_of(specs: dict[str, TaskSpec], instruction: str) -> str:
    return closed_task(Normaliser(specs).clauses(f"{instruction}\n{GAP}"), OFFERED)


@pytest.mark.parametrize(
    ("instruction", "task"),
    [
        ("Could you kindly tell me whether this is positive, negative or neutral?", "sentiment"),
        ("Ist diese Hotelbewertung positiv, negativ oder neutral? Keine Erklärung.", "sentiment"),
        ("Which desk gets this story: World, Sports, Business or Sci-Tech?", "topic"),
        ("Relève toutes les entités nommées du texte suivant :", "ner"),
        ("Mi colega me envió esto y no hablo alemán. Tradúcelo al español, por favor.",
         "translation"),
        ("Determine the overall sentiment of this parargaph.", "sentiment"),
    ],
)  # fmt: skip
def test_a_request_is_explained(specs: dict[str, TaskSpec], instruction: str, task: str) -> None:
    assert task_of(specs, instruction) == task


@pytest.mark.parametrize(
    "instruction",
    [
        "What is the sentiment of this review? Mention its weather.",
        "Explain the sentiment of this review.",
        "Write a positive, negative or neutral review.",
        "I don't need the sentiment of this.",
        "List all of World, Sports, Business and Sci-Tech that apply.",
        "Which of World, Sports, Business and Sci-Tech does not fit?",
        "Give the two best of World, Sports, Business, Sci-Tech.",
        "Answer this customer in German.",
        "Übersetze nur die Überschrift ins Englische.",
        "What would you have written instead? Positive, negative or neutral.",
        "Are there named entities in this text?",
        "How would you feel, positive or negative?",
        "Give a sentiment score for this text.",
    ],
)
def test_known_words_that_ask_for_something_else_refuse(
    specs: dict[str, TaskSpec], instruction: str
) -> None:
    assert task_of(specs, instruction).startswith("no ")


def test_a_negated_word_is_explained_only_after_a_negation() -> None:
    assert unexplained_words(["the sentiment without explanation"], "sentiment") == []
    assert unexplained_words(["the sentiment with an explanation"], "sentiment") == ["explanation"]


def test_a_typing_error_is_not_another_word() -> None:
    english = vocabulary("en")
    assert mistyped("sentimnet", english, "sentiment") == "sentiment"
    assert mistyped("translations", english, "translation") is None
    assert fold("Übersetze") == "ubersetze"


def test_a_text_that_begins_with_an_order_is_mixed() -> None:
    assert mixed('Answer in Japanese. "The update broke it."', weak=True) is not None
    assert mixed("The update broke it.", weak=True) is None
    assert mixed("The coat is warm. Text: and soft.", weak=False) is not None


def test_beginnings_are_pieces_of_the_message() -> None:
    message = "What is the sentiment? One word. The coat is warm and soft."
    payloads = [one.split.payload for one in beginnings(message)]
    assert payloads == ["One word. The coat is warm and soft.", "The coat is warm and soft."]
