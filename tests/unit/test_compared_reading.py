"""A task's answer to a chat beside the reference's: what is told without a judge."""

import json
from pathlib import Path
from typing import Any

import pytest

from serving.contracts.answer import Entity, TaskRequest, Translation
from serving.contracts.routing_settings import RoutingSettings
from serving.contracts.task_spec import TaskSpec
from serving.pipeline.compared_reading import ReadTask, loss_in_form
from serving.routing.router import reader_digest
from serving.tasks.task import bind

from .character_tokenizer import CharacterTokenizer
from .scripted import WINDOW


def read(specs: dict[str, TaskSpec], name: str, text: str, **more: Any) -> ReadTask:
    task = bind(specs[name], CharacterTokenizer(), WINDOW)
    labels = more.pop("labels", None)
    return ReadTask(task, TaskRequest(name, text, **more), labels)


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        ("World", 0.0),
        (" **world.**\n", 0.0),
        ("Sports", 1.0),
        ("Foreign affairs", 0.0),
        # Each may be what the client asked for: a reason, a form, a choice.
        ("World. The parliament is named.", None),
        ("World\n\nThe parliament is named.", None),
        ('{"label": "World"}', None),
        ("World or Sports", None),
        ("Topic: World", None),
        ("", None),
    ],
)
def test_labels(specs: dict[str, TaskSpec], text: str, loss: float | None) -> None:
    labels = {"World": "foreign affairs", "Sports": "games"}
    assert loss_in_form(read(specs, "topic", "x", labels=labels), "World", text) == loss


def test_entities_of_the_types_that_the_client_named(specs: dict[str, TaskSpec]) -> None:
    text = "Ada met Bo in Rome."
    kinds = [kind.name for kind in specs["ner"].entity_types]  # type: ignore[union-attr]
    value = (
        Entity(text="Ada", type=kinds[0], start=0, end=3),
        Entity(text="Rome", type=kinds[1], start=14, end=18),
    )
    only = {kinds[0]: "person"}
    same = json.dumps([{"text": "Ada", "type": kinds[0]}])
    more = json.dumps([{"text": "Ada", "type": kinds[0]}, {"text": "Bo", "type": kinds[0]}])
    found = read(specs, "ner", text, labels=only)
    assert loss_in_form(found, value, same) == 0.0
    assert loss_in_form(found, value, f"```json\n{same}\n```") == 0.0
    assert loss_in_form(found, value, more) == 1.0
    assert loss_in_form(read(specs, "ner", text), value, same) == 1.0
    assert loss_in_form(found, value, f"The person is Ada: {same}") is None
    assert loss_in_form(found, value, "- Ada (person)") is None


def test_a_translation_with_more_than_the_translation_is_not_told(
    specs: dict[str, TaskSpec],
) -> None:
    found = read(specs, "translation", "Guten Tag, mein Freund.", target_language="en")
    value = Translation(
        text="Good day, my friend.", source_language="de", target_language="en",
        source_detected=True,
    )  # fmt: skip
    assert loss_in_form(found, value, "Good day, my friend.") == 0.0
    assert loss_in_form(found, value, "Hello there, old chap.") is None
    note = "Good day, my friend. (Literally: a wish for a good day, here to a male friend.)"
    assert loss_in_form(found, value, note) is None


def test_another_router_is_another_reader(tmp_path: Path) -> None:
    usual = reader_digest(RoutingSettings())
    assert usual == reader_digest(RoutingSettings())
    model = tmp_path / "model.json"
    model.write_text("{}")
    seen = {
        usual,
        reader_digest(RoutingSettings(narrow_certainty=0.8)),
        reader_digest(RoutingSettings(narrow_max_chars=100)),
        reader_digest(RoutingSettings(model=tmp_path)),
    }
    model.write_text('{"other": 1}')
    seen.add(reader_digest(RoutingSettings(model=tmp_path)))
    assert len(seen) == 5
