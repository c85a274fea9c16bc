"""Entities are substrings with right offsets, and no output can break the parser."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts.answer import TaskRequest
from serving.contracts.engine import GenerateOutput, GenerateWork, TokenCounts
from serving.contracts.task_spec import TaskSpec
from serving.tasks.extraction import entity_schema, locate, parse_mentions
from serving.tasks.task import bind

from .character_tokenizer import CharacterTokenizer

MENTIONS = st.lists(
    st.tuples(st.text("ab cé", min_size=0, max_size=4), st.sampled_from(["person", "place"])),
    max_size=8,
)


def output(text: str, finish_reason: str = "stop") -> GenerateOutput:
    return GenerateOutput(text, (-0.1, -0.3), finish_reason, TokenCounts(10, 5, 2))


@given(MENTIONS, st.text("ab cé", max_size=40))
def test_every_entity_is_the_text_at_its_offsets(
    mentions: list[tuple[str, str]], text: str
) -> None:
    entities, notes = locate(mentions, text)
    assert all(text[entity.start : entity.end] == entity.text for entity in entities)
    assert len(entities) <= len(mentions)
    assert bool(notes) == (len(entities) < len(mentions))
    spans = [(entity.start, entity.end, entity.text) for entity in entities]
    assert len(set(spans)) == len(spans)
    assert spans == sorted(spans, key=lambda span: span[:2])


def test_the_second_mention_is_the_second_occurrence() -> None:
    entities, notes = locate([("Ann", "person"), ("Ann", "person")], "Ann met Ann.")
    assert [(entity.start, entity.end) for entity in entities] == [(0, 3), (8, 11)]
    assert notes == []


def test_what_is_not_in_the_input_is_left_out_and_noted() -> None:
    entities, notes = locate([("Bob", "person"), ("Ann", "person")], "Ann met nobody.")
    assert [entity.text for entity in entities] == ["Ann"]
    assert notes == ["entities left out because they are not in the input: 1"]


@given(st.text())
def test_no_output_breaks_the_parser(text: str) -> None:
    mentions, complete = parse_mentions(text)
    assert isinstance(complete, bool)
    assert all(isinstance(mention, str) for mention, _ in mentions)


JSON_MENTIONS = st.lists(
    st.fixed_dictionaries({"text": st.text(min_size=1, max_size=9), "type": st.just("person")}),
    max_size=5,
)


@given(JSON_MENTIONS, st.data())
def test_a_cut_output_yields_the_entities_before_the_cut(
    items: list[dict[str, str]], data: st.DataObject
) -> None:
    whole = json.dumps(items, ensure_ascii=False)
    expected = [(item["text"], item["type"]) for item in items]
    assert parse_mentions(whole) == (expected, True)
    cut = data.draw(st.integers(0, len(whole) - 1))
    mentions, complete = parse_mentions(whole[:cut])
    assert not complete
    assert mentions == expected[: len(mentions)]
    assert len(mentions) >= whole[:cut].count('"type": "person"}') - sum(
        '"type": "person"}' in item["text"] for item in items
    )


def test_plan_and_read(specs: dict[str, TaskSpec], tokenizer: CharacterTokenizer) -> None:
    spec = specs["ner"]
    task = bind(spec, tokenizer, 4096)
    request = TaskRequest("ner", "Zoë flew to Oslo.")
    work = task.plan(request)
    assert isinstance(work, GenerateWork)
    assert work.json_schema == entity_schema(spec)
    assert work.max_tokens == 24 + 3 * len("Zoë flew to Oslo.")
    answer = task.read(
        request,
        output('[{"text": "Zoë", "type": "person"}, {"text": "Oslo", "type": "location"}]'),
    )
    assert [(e.text, e.type, e.start, e.end) for e in answer.value] == [
        ("Zoë", "person", 0, 3),
        ("Oslo", "location", 12, 16),
    ]
    assert answer.valid
    assert answer.confidence == pytest.approx(2.718281828459045**-0.2)
    assert answer.label_probabilities is None


def test_a_cut_output_is_not_valid(
    specs: dict[str, TaskSpec], tokenizer: CharacterTokenizer
) -> None:
    task = bind(specs["ner"], tokenizer, 4096)
    request = TaskRequest("ner", "Zoë flew to Oslo.")
    answer = task.read(request, output('[{"text": "Zoë", "type": "person"}, {"te', "length"))
    assert [entity.text for entity in answer.value] == ["Zoë"]
    assert not answer.valid
    assert "cut at its bound" in answer.notes[0]
