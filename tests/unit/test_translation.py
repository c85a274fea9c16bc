"""Translation: directions, bounds, stops."""

import pytest

from serving.contracts.answer import TaskRequest
from serving.contracts.engine import GenerateOutput, GenerateWork, TokenCounts
from serving.contracts.errors import UnknownLanguage
from serving.contracts.task_spec import TaskSpec, TranslationSpec
from serving.tasks.translation import LinguaDetector, TranslationTask

from .character_tokenizer import CharacterTokenizer


@pytest.fixture(scope="module")
def task(specs: dict[str, TaskSpec]) -> TranslationTask:
    spec = specs["translation"]
    assert isinstance(spec, TranslationSpec)
    return TranslationTask(spec, CharacterTokenizer(), 8192)


def planned(
    task: TranslationTask, text: str, source: str | None, target: str | None
) -> GenerateWork:
    return task.plan(TaskRequest("translation", text, source, target))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The train leaves from platform nine.", "en"),
        ("Der Zug fährt heute von Gleis neun.", "de"),
        ("Le train part du quai numéro neuf.", "fr"),
        ("El tren sale del andén número nueve.", "es"),
    ],
)
def test_the_source_is_detected(task: TranslationTask, text: str, language: str) -> None:
    target = "en" if language != "en" else "de"
    assert task.direction(TaskRequest("translation", text, None, target)) == (language, target)


def test_every_direction_has_its_own_prompt(task: TranslationTask) -> None:
    codes = ["en", "de", "fr", "es"]
    prompts = {
        "".join(map(chr, planned(task, "Hallo", a, b).prompt_token_ids))
        for a in codes
        for b in codes
        if a != b
    }
    assert len(prompts) == 12
    assert sum("from German to French" in prompt for prompt in prompts) == 1


@pytest.mark.parametrize(
    ("text", "source", "target", "field", "message"),
    [
        ("Hello there", "en", None, "target_language", "missing"),
        ("Hello there", "en", "it", "target_language", "no language 'it'"),
        ("Hello there", "xx", "de", "source_language", "no language 'xx'"),
        ("Hello there", "en", "en", "target_language", "both 'en'"),
        ("Hello there, my friend", None, "en", "target_language", "was detected"),
        ("12345 67890", None, "en", "source_language", "could not be detected"),
    ],
)
def test_a_direction_that_is_none_is_refused(
    task: TranslationTask,
    text: str,
    source: str | None,
    target: str | None,
    field: str,
    message: str,
) -> None:
    with pytest.raises(UnknownLanguage, match=message) as caught:
        planned(task, text, source, target)
    assert caught.value.field == field


def test_language_codes_do_not_depend_on_case(task: TranslationTask) -> None:
    assert task.direction(TaskRequest("translation", "Hello", "EN", "Fr")) == ("en", "fr")
    with pytest.raises(UnknownLanguage, match="both 'en'"):
        task.direction(TaskRequest("translation", "Hello", "EN", "en"))


def test_the_output_is_bounded_by_the_input(task: TranslationTask) -> None:
    assert planned(task, "x" * 10, "en", "de").max_tokens == 36
    assert planned(task, "x" * 2000, "en", "de").max_tokens == task.spec.max_output_tokens


def test_a_single_line_stops_at_the_line_end_and_several_do_not(task: TranslationTask) -> None:
    assert planned(task, "One line.", "en", "de").stop == ("\n",)
    assert planned(task, "One line.\nAnother.", "en", "de").stop == ()


@pytest.mark.parametrize(
    ("text", "finish_reason", "valid"),
    [("Guten Tag", "stop", True), ("Guten Tag Guten Tag", "length", False), ("  ", "stop", False)],
)
def test_reading(task: TranslationTask, text: str, finish_reason: str, valid: bool) -> None:
    output = GenerateOutput(text, (-0.5,), finish_reason, TokenCounts(9, 0, 3))
    answer = task.read(TaskRequest("translation", "Good day", "en", "de"), output)
    assert answer.valid is valid
    assert answer.value.text == text.strip()
    assert (answer.value.source_language, answer.value.source_detected) == ("en", False)


@pytest.mark.parametrize(
    ("source", "translation", "note"),
    [
        ("Hello {name}!", "Hallo!", "placeholders"),
        ("Hello {{ user }}, %s and ${total}.", "Hallo, %s und ${total}.", "placeholders"),
        ("Press <b>here</b>.", "Hier klicken.", "placeholders"),
        ("See https://example.org/a?b=1.", "Siehe dort.", "addresses"),
        ("Write to ann@example.org.", "Schreiben Sie an Ann.", "addresses"),
        ("It opened in 1987.", "Es wurde eröffnet.", "numbers"),
        ("One.\nTwo.\nThree.", "Eins. Zwei.\nDrei.", "3 lines"),
        ("Good day.", "I'm sorry, but I cannot.", "refused"),
        ("Good day.", "Es tut mir leid, dabei kann ich nicht helfen.", "refused"),
        ("Good day.", "As an AI, I do not translate.", "refused"),
    ],
)
def test_a_translation_that_lost_a_part_is_not_valid(
    task: TranslationTask, source: str, translation: str, note: str
) -> None:
    output = GenerateOutput(translation, (-0.5,), "stop", TokenCounts(9, 0, 3))
    answer = task.read(TaskRequest("translation", source, "en", "de"), output)
    assert not answer.valid
    assert any(note in each for each in answer.notes)


@pytest.mark.parametrize(
    ("source", "translation"),
    [
        ("Hello {name}, {count} of {{total}}: %s.", "%s: {count} von {{total}}, hallo {name}."),
        ("See https://example.org/a.", "Siehe (https://example.org/a)"),
        ("Pay 1,000.50 by 10:30.", "Zahlen Sie 1.000,50 bis 10.30 Uhr."),
        ("10,000 people", "10 000 Menschen"),
        ("Click <a title='Next'>here</a>.", "Hier <a title='Weiter'>klicken</a>."),
        ("I'm sorry, but I cannot come.", "Es tut mir leid, aber ich kann nicht kommen."),
        ("One.\n\nTwo.", "Eins.\nZwei."),
    ],
)
def test_a_translation_that_kept_everything_is_valid(
    task: TranslationTask, source: str, translation: str
) -> None:
    output = GenerateOutput(translation, (-0.5,), "stop", TokenCounts(9, 0, 3))
    answer = task.read(TaskRequest("translation", source, "en", "de"), output)
    assert (answer.valid, answer.notes) == (True, ())


def test_a_digit_that_may_be_spelled_out_is_noted(task: TranslationTask) -> None:
    output = GenerateOutput("Ich habe drei Katzen.", (-0.5,), "stop", TokenCounts(9, 0, 3))
    answer = task.read(TaskRequest("translation", "I have 3 cats.", "en", "de"), output)
    assert answer.valid
    assert answer.notes == ("digits of the input that are not in the translation: 1",)


def test_a_language_that_is_not_offered_is_taken_for_one_that_is() -> None:
    # Detection chooses among the task's languages; documented, and worth knowing.
    assert LinguaDetector(["en", "de"]).detect("Il treno parte adesso") in {"en", "de"}
