"""Requests that are explained word by word, and what known words alone must not ask for."""

import pytest

from serving.contracts.task_spec import TaskSpec
from serving.routing.clauses import Normaliser
from serving.routing.closed_request import closed_task
from serving.routing.closed_vocabulary import fold, mistyped, unexplained_words, vocabulary
from serving.routing.conversation import Prompt
from serving.routing.heads import load_model
from serving.routing.narrow import NarrowDetector, mixed
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
        ("Classify this: 1) World 2) Sports 3) Business 4) Sci-Tech.", "topic"),
        ("Choose from (a) positive, (b) neutral, (c) negative.", "sentiment"),
        ("It is one of Business, Sports, Sci-Tech or World - which?", "topic"),
        ("List the entities and their types.", "ner"),
        ("Give the sentiment and nothing else.", "sentiment"),
        ("es a de", "translation"),
        ("¿Puedes darme este texto en inglés?", "translation"),
        ("¿Cómo se traduciría este texto al español?", "translation"),
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
        "Sentiment and emotion of this text.",
        "Entitäten und alle Zahlen:",
        "Entités et tous les nombres :",
        "Tag this comment with a sentiment and write back to the guest.",
        "Dime con humor si esto es positivo o negativo.",
        "Übersetze ins Deutsche und beantworte die Frage:",
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


def test_a_question_about_an_entity_is_no_request(specs: dict[str, TaskSpec]) -> None:
    clauses = Normaliser(specs).clauses(f"Zählt „{GAP}“ als Entität?")
    assert closed_task(clauses, OFFERED).startswith("no ")


def detected(specs: dict[str, TaskSpec], message: str) -> tuple[str, str] | None:
    detector = NarrowDetector(load_model(None), specs, None, 0.9)  # type: ignore[arg-type]
    found = detector.by_clauses(Prompt("", message)).request
    return None if found is None else (found.task, found.text)


@pytest.mark.parametrize(
    ("message", "task", "text"),
    [
        ('Tarea: polaridad (positivo / negativo / neutro). Entrada: "Me colgaron dos veces." '
         "Salida:", "sentiment", "Me colgaron dos veces."),
        ("<doc>Voters in Moldova go to the polls.</doc>\nClassify <doc> into one of: World, "
         "Sports, Business, Sci-Tech.", "topic", "Voters in Moldova go to the polls."),
        ("Is [the room was cold and damp] positive or negative in sentiment?", "sentiment",
         "the room was cold and damp"),
        ("Sentiment, please:\n\n[It was cold and damp in there.]", "sentiment",
         "It was cold and damp in there."),
        ("en a es\nThe keys are under the mat.", "translation", "The keys are under the mat."),
    ],
)  # fmt: skip
def test_the_text_is_what_marks_hold(
    specs: dict[str, TaskSpec], message: str, task: str, text: str
) -> None:
    assert detected(specs, message) == (task, text)


@pytest.mark.parametrize(
    "message",
    [
        'Is this World, Sports, Business or Sci-Tech? Plus a short teaser. "Shares fell again."',
        "Positiv oder negativ? Antworte wie ein Pirat. „Danke für nichts.“",
        "Positif ou négatif ? Réponds comme un pirate. « Une honte. »",
        "The item has lost its title and its section (World, Sports, Business, Sci-Tech). "
        "Supply both: A comet will be visible this week.",
        "EN -> FR\nPlease wipe your shoes.\nThank you!",
    ],
)
def test_an_order_beside_marked_text_is_no_part_of_the_text(
    specs: dict[str, TaskSpec], message: str
) -> None:
    """What marks hold is the whole text: a weaker reading would take the order into it."""
    assert detected(specs, message) is None
