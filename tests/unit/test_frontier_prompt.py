"""A task put to a frontier model, and the answer read back."""

import json

import pytest

from serving.contracts.answer import TaskRequest, Translation
from serving.contracts.errors import EmptyInput, FrontierInvalidResponse, UnknownLanguage
from serving.contracts.task_spec import TaskSpec, parse_task_spec
from serving.tasks.frontier_answer import read_frontier
from serving.tasks.frontier_prompt import frontier_prompt
from serving.tasks.task import Task, bind

from .character_tokenizer import CharacterTokenizer


@pytest.fixture
def tasks(specs: dict[str, TaskSpec]) -> dict[str, Task]:
    return {name: bind(spec, CharacterTokenizer(), 8192) for name, spec in specs.items()}


def english(text: str, target: str = "de") -> TaskRequest:
    return TaskRequest("translation", text, "en", target)


def test_a_classification_asks_for_one_of_its_labels(tasks: dict[str, Task]) -> None:
    task = tasks["sentiment"]
    prompt = frontier_prompt(task, TaskRequest("sentiment", "  Fine.  "))
    messages = prompt.body["messages"]
    assert messages[0] == {"role": "system", "content": task.spec.instruction}
    assert messages[-1] == {"role": "user", "content": "Fine."}
    schema = prompt.body["response_format"]["json_schema"]["schema"]
    labels = schema["properties"]["label"]["enum"]
    # The examples' answers fit the schema.
    shown = [json.loads(m["content"]) for m in messages if m["role"] == "assistant"]
    assert shown
    assert all(set(item) == {"label"} and item["label"] in labels for item in shown)
    assert 500 < prompt.max_tokens < 600
    reading = read_frontier(task, TaskRequest("sentiment", "Fine."), '{"label": "neutral"}', "stop")
    assert (reading.value, reading.valid) == ("neutral", True)


def test_the_prompt_before_the_input_is_the_same_for_every_input(tasks: dict[str, Task]) -> None:
    for name, task in tasks.items():
        bodies = [
            frontier_prompt(task, TaskRequest(name, text, "en", "de")).body
            for text in ("One text.", "Another text, longer than the first.")
        ]
        assert bodies[0]["messages"][:-1] == bodies[1]["messages"][:-1]
        assert bodies[0].get("response_format") == bodies[1].get("response_format")


def test_a_label_is_read_by_what_the_model_writes_for_it() -> None:
    spec = parse_task_spec(
        {"name": "spam", "kind": "classification", "instruction": "Is it spam?", "floor": 0.5,
         "labels": [{"name": "yes", "verbalizer": "unwanted"}, "no"], "target_error": 0.1},
        "here",
    )  # fmt: skip
    task = bind(spec, CharacterTokenizer(), 4096)
    request = TaskRequest("spam", "Buy!")
    assert read_frontier(task, request, '{"label": "unwanted"}', "stop").value == "yes"
    with pytest.raises(FrontierInvalidResponse):
        read_frontier(task, request, '{"label": "yes"}', "stop")


def test_entities_are_those_in_the_text_of_known_types(tasks: dict[str, Task]) -> None:
    task = tasks["ner"]
    request = TaskRequest("ner", "Ann met Bo in Rome.")
    schema = frontier_prompt(task, request).body["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["entities"]
    assert "maxItems" not in json.dumps(schema)
    text = json.dumps({"entities": [
        {"text": "Rome", "type": "location"}, {"text": "Ann", "type": "person"},
        {"text": "Paris", "type": "location"}, {"text": "Bo", "type": "alien"},
    ]})  # fmt: skip
    reading = read_frontier(task, request, text, "stop")
    assert isinstance(reading.value, tuple)
    assert [getattr(item, "text", None) for item in reading.value] == ["Ann", "Rome"]
    assert reading.notes == (
        "entities left out because the task has no such type: 'alien'",
        "entities left out because they are not in the input: 1",
    )
    assert read_frontier(task, request, '{"entities": []}', "stop").value == ()


def test_a_translation_is_plain_text_bounded_by_its_input(tasks: dict[str, Task]) -> None:
    task = tasks["translation"]
    short = frontier_prompt(task, english("Hello."))
    long = frontier_prompt(task, english("Hello there. " * 40))
    assert "response_format" not in short.body
    assert "from English to German" in short.body["messages"][0]["content"]
    assert short.max_tokens < long.max_tokens
    reading = read_frontier(task, english("Hello."), " Hallo. \n", "stop")
    assert isinstance(reading.value, Translation)
    assert (reading.value.text, reading.value.target_language) == ("Hallo.", "de")


def test_a_missing_part_of_the_request_is_the_clients_error(tasks: dict[str, Task]) -> None:
    with pytest.raises(EmptyInput):
        frontier_prompt(tasks["topic"], TaskRequest("topic", " "))
    with pytest.raises(UnknownLanguage):
        frontier_prompt(tasks["translation"], english("Hello.", "xx"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("topic", ""), ("topic", "Weather"), ("topic", "[]"), ("topic", "null"),
        ("topic", '{"label": 3}'), ("topic", '{"label": "Weather"}'), ("topic", '{"label": "Wor'),
        ("topic", '{"label": "Sports"} or {"label": "World"}'), ("topic", "World\nSports"),
        ("topic", "I cannot answer that."), ("topic", "Not Sports"), ("topic", "[" * 100_000),
        ("topic", "[" * 490 + "]" * 490), ("topic", '{"label":' * 490 + "1" + "}" * 490),
        ("topic", '{"label": {"first": "Sports", "second": "World"}}'),
        ("topic", '{"label": null, "reason": "Sports"}'), ("topic", '{"label": {}}'),
        ("ner", ""), ("ner", "{}"), ("ner", '{"entities": "Ann"}'), ("ner", '{"entities": [1]}'),
        ("ner", "I cannot answer that."), ("ner", "[" * 100_000),
        ("ner", '[{"text": "Ann", "type": "person"}] or []'),
        ("translation", " \n "), ("translation", "\u200b"),
    ],
)  # fmt: skip
def test_texts_without_an_answer_are_refused(tasks: dict[str, Task], name: str, text: str) -> None:
    with pytest.raises(FrontierInvalidResponse, match=rf"was paid for an answer to task '{name}'"):
        read_frontier(tasks[name], TaskRequest(name, "Hello Ann.", "en", "de"), text, "stop")


@pytest.mark.parametrize(
    "text",
    [
        '{"label": "Sports"}', '{"label": "sports"}', '{"label": " Sports "}',
        '{"Label": "Sports"}',
        '```json\n{"label": "Sports"}\n```', '```\nSports\n```', 'Sure! {"label": "Sports"}',
        '{"label": "Sports"}\n\nThe text is about a match.', '[{"label": "Sports"}]', '"Sports"',
        "Sports", "sports.", "**Sports**", "Label: Sports", "The topic is: Sports",
        "Sports\n\nThe text names a match, which World news would not.",
        '{"label": {"name": "Sports"}}', '{"result": {"label": "sports"}}',
        '{"labels": ["Sports"]}', '{"answer": [{"topic": "Sports", "score": 1}]}',
        '{"topic": "Sports", "confidence": 0.9}', '{"label": ["Sports"]}', "\ufeffSports",
        '<think>World, or Sports?</think>{"label": "Sports"}',
    ],
)  # fmt: skip
def test_a_label_that_a_person_would_read_is_read(tasks: dict[str, Task], text: str) -> None:
    reading = read_frontier(tasks["topic"], TaskRequest("topic", "A goal."), text, "stop")
    assert (reading.value, reading.valid, reading.notes) == ("Sports", True, ())


def test_labels_are_read_with_other_separators_and_as_numbers(tasks: dict[str, Task]) -> None:
    request = TaskRequest("topic", "A chip.")
    for text in ('{"label": "Sci/Tech"}', "sci tech"):
        assert read_frontier(tasks["topic"], request, text, "stop").value == "Sci-Tech"
    spec = parse_task_spec(
        {"name": "stars", "kind": "classification", "instruction": "How many stars?",
         "labels": ["1", "2", "true"], "floor": 0.5, "target_error": 0.1},
        "here",
    )  # fmt: skip
    stars = bind(spec, CharacterTokenizer(), 4096)
    for text, label in (("2", "2"), ('{"label": 2}', "2"), ('{"label": true}', "true")):
        assert read_frontier(stars, TaskRequest("stars", "Fine."), text, "stop").value == label


ENTITY = '{"text": "Mara Lindt", "type": "person"}'


@pytest.mark.parametrize(
    "text",
    [
        f'{{"entities": [{ENTITY}]}}', f"[{ENTITY}]", f'```json\n{{"entities": [{ENTITY}]}}\n```',
        f"Here they are: [{ENTITY}]", ENTITY, f'{{"result": [{ENTITY}]}}',
        '{"Entities": [{"Text": "Mara Lindt", "Type": "Person"}]}',
        '{"entities": [{"text": "Mara Lindt", "type": " PERSON "}]}',
        '{"entities": [{"text": "Mara Lindt", "label": "person"}]}',
        '[{"Entity": "Mara Lindt", "entity_type": "Person"}]',
        '{"mention": "Mara Lindt", "category": "person"}',
    ],
)  # fmt: skip
def test_entities_that_a_person_would_read_are_read(tasks: dict[str, Task], text: str) -> None:
    reading = read_frontier(tasks["ner"], TaskRequest("ner", "By Mara Lindt."), text, "stop")
    assert [(e.text, e.type, e.start) for e in reading.value] == [("Mara Lindt", "person", 3)]  # type: ignore[union-attr]
    assert (reading.valid, reading.notes) == (True, ())


def test_entities_in_lines_of_json_are_read(tasks: dict[str, Task]) -> None:
    text = '{"text": "Ann", "type": "person"}\n{"text": "Rome", "type": "location"}'
    reading = read_frontier(tasks["ner"], TaskRequest("ner", "Ann in Rome."), text, "stop")
    assert [item.text for item in reading.value] == ["Ann", "Rome"]  # type: ignore[union-attr]


def test_entities_that_cannot_be_read_are_noted(tasks: dict[str, Task]) -> None:
    text = '{"entities": [{"text": "Ann", "type": "person"}, {"text": "Rome"}, 3]}'
    reading = read_frontier(tasks["ner"], TaskRequest("ner", "Ann in Rome."), text, "stop")
    assert len(reading.value) == 1
    assert reading.valid is False
    assert reading.notes == ("entities left out because they could not be read: 2",)


@pytest.mark.parametrize("name", ["topic", "ner", "translation"])
@pytest.mark.parametrize(
    ("finish_reason", "note"),
    [
        ("length", "cut at its bound"), ("content_filter", "content filter"),
        ("refusal", "refused"), ("pause_turn", "'pause_turn'"),
    ],
)  # fmt: skip
def test_an_incomplete_answer_is_marked(
    tasks: dict[str, Task], name: str, finish_reason: str, note: str
) -> None:
    texts = {"topic": '{"label": "World"}', "ner": '{"entities": []}', "translation": "Hallo"}
    request = TaskRequest(name, "Hello", "en", "de")
    reading = read_frontier(tasks[name], request, texts[name], finish_reason)
    assert reading.valid is False
    assert note in reading.notes[0]
    with pytest.raises(FrontierInvalidResponse, match=note):
        read_frontier(tasks[name], request, "", finish_reason)


@pytest.mark.parametrize(
    "text",
    [
        "Hallo, Welt", "```\nHallo, Welt\n```", '"Hallo, Welt"', '{"translation": "Hallo, Welt"}',
        "Here is the translation:\n\nHallo, Welt",
        "Sure! Here's the German translation: Hallo, Welt",
    ],
)  # fmt: skip
def test_text_around_a_translation_is_removed(tasks: dict[str, Task], text: str) -> None:
    reading = read_frontier(tasks["translation"], english("Hello, world"), text, "stop")
    assert isinstance(reading.value, Translation)
    assert (reading.value.text, reading.valid) == ("Hallo, Welt", True)


def test_the_case_of_a_finish_reason_is_of_no_account(tasks: dict[str, Task]) -> None:
    request = TaskRequest("topic", "A goal.")
    assert read_frontier(tasks["topic"], request, "Sports", "STOP").valid
    assert not read_frontier(tasks["topic"], request, "Sports", "MAX_TOKENS").valid


def test_quotes_and_braces_of_the_input_stay_in_its_translation(tasks: dict[str, Task]) -> None:
    for source, text in (('"Hello"', '"Hallo"'), ('{"a": "Hello"}', '{"a": "Hallo"}')):
        reading = read_frontier(tasks["translation"], english(source), text, "stop")
        assert reading.value.text == text  # type: ignore[union-attr]


def test_a_translation_that_lost_a_placeholder_is_not_valid(tasks: dict[str, Task]) -> None:
    reading = read_frontier(tasks["translation"], english("Hello {name}"), "Hallo", "stop")
    assert reading.valid is False
    assert reading.notes == ("placeholders of the input that are not in the translation: 1",)
