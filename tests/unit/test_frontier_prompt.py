"""A task put to a frontier model, and the answer read back."""

import json

import pytest

from serving.contracts.answer import TaskRequest, Translation
from serving.contracts.errors import EmptyInput, FrontierInvalidResponse, UnknownLanguage
from serving.contracts.task_spec import TaskSpec, parse_task_spec
from serving.tasks.frontier_prompt import frontier_prompt, read_frontier
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
    # What the examples show is what the schema allows.
    shown = [json.loads(m["content"]) for m in messages if m["role"] == "assistant"]
    assert shown
    assert all(set(item) == {"label"} and item["label"] in labels for item in shown)
    assert 500 < prompt.max_tokens < 600
    reading = read_frontier(task, TaskRequest("sentiment", "Fine."), '{"label": "neutral"}', "stop")
    assert (reading.value, reading.valid) == ("neutral", True)


def test_what_comes_before_the_input_is_the_same_for_every_input(tasks: dict[str, Task]) -> None:
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
    assert reading.notes == ("entities left out because they are not in the input: 1",)
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
    assert read_frontier(task, english("Hello."), "Hal", "length").valid is False


def test_what_the_request_lacks_is_its_own_error(tasks: dict[str, Task]) -> None:
    with pytest.raises(EmptyInput):
        frontier_prompt(tasks["topic"], TaskRequest("topic", " "))
    with pytest.raises(UnknownLanguage):
        frontier_prompt(tasks["translation"], english("Hello.", "xx"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("topic", ""), ("topic", "Sports"), ("topic", "[]"), ("topic", "null"),
        ("topic", '{"label": 3}'), ("topic", '{"label": "Weather"}'), ("topic", '{"label": "Wor'),
        ("ner", ""), ("ner", "{}"), ("ner", '{"entities": "Ann"}'), ("ner", '{"entities": [1]}'),
        ("translation", " \n "),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused(tasks: dict[str, Task], name: str, text: str) -> None:
    with pytest.raises(FrontierInvalidResponse):
        read_frontier(tasks[name], TaskRequest(name, "Hello Ann.", "en", "de"), text, "stop")
