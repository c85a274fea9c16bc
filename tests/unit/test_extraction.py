"""Entities are substrings with right offsets, and no output can break the parser."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts.answer import TaskRequest
from serving.contracts.engine import GenerateOutput, GenerateWork, TokenCounts
from serving.contracts.task_spec import TaskSpec
from serving.tasks.entity_location import locate
from serving.tasks.extraction import entity_schema, parse_mentions
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


@pytest.mark.parametrize(
    ("text", "mentions", "spans"),
    [
        ("Annual report by Ann.", ["Ann"], [(17, 20)]),
        ("Mayor May spoke in Mayfair.", ["May"], [(6, 9)]),
        ("Annual report.", ["Ann"], []),
        ("The 1984 edition of 19845.", ["1984"], [(4, 8)]),
        ("Ann's and Ann-Marie's", ["Ann", "Ann"], [(0, 3), (10, 13)]),
        # Composed and decomposed spellings are the same letters.
        ("Zoe\u0308 in Ko\u0308ln", ["Zoë", "Köln"], [(0, 4), (8, 13)]),
        ("Zoë in Köln", ["Zoe\u0308", "Ko\u0308ln"], [(0, 3), (7, 11)]),
        ("Zoe\u0308 left.", ["Zoe"], []),
        # An occurrence of its own, not a part of a longer mention.
        ("New York is far from York.", ["New York", "York"], [(0, 8), (21, 25)]),
        ("New York is far from York.", ["York", "New York"], [(0, 8), (21, 25)]),
        ("the Bank of England", ["Bank of England", "England"], [(4, 19), (12, 19)]),
        ("In May, Ann met May.", ["Ann", "May"], [(8, 11), (16, 19)]),
        ("Ann met Bo in Rome", ["Rome", "Ann", "Bo"], [(0, 3), (8, 10), (14, 18)]),
        # The text's own spelling.
        ("Mara\nLindt met mara.", ["Mara Lindt"], [(0, 10)]),
        ("SIEMENS grew.", ["Siemens"], [(0, 7)]),
        ("Mr O’Brien", ["O'Brien"], [(3, 10)]),  # noqa: RUF001
        ("Ｔｏｋｙｏ", ["Tokyo"], [(0, 5)]),  # noqa: RUF001
        # A soft hyphen or a joiner does not end a word, a zero-width space does.
        ("Mün\u00adchen lobt Mün.", ["Mün"], [(14, 17)]),
        ("Mün\u00adchen", ["München"], [(0, 8)]),
        ("An\u2060na met An", ["An"], [(10, 12)]),
        ("Ann\u200bmet Bo", ["Ann"], [(0, 3)]),
        # Scripts without spaces between words.
        ("私は東京都に住む", ["東京都"], [(2, 5)]),
        ("김철수는 갔다", ["김철수"], [(0, 3)]),
        ("🙂 Ann", ["Ann"], [(2, 5)]),
    ],
)  # fmt: skip
def test_a_mention_is_found_at_word_borders_and_at_its_own_occurrence(
    text: str, mentions: list[str], spans: list[tuple[int, int]]
) -> None:
    entities, notes = locate([(mention, "thing") for mention in mentions], text)
    assert [(entity.start, entity.end) for entity in entities] == spans
    assert all(text[entity.start : entity.end] == entity.text for entity in entities)
    assert bool(notes) == (len(spans) < len(mentions))


@given(st.lists(st.sampled_from(["Ann", "May", "Zoe\u0308", "New York", "York", "é"]), max_size=6),
       st.lists(st.sampled_from(["Ann", "Zoë", "New York", "Annual", " ", ", ", "é", "\u0301"]))
       .map("".join))  # fmt: skip
def test_no_entity_begins_or_ends_inside_a_word(mentions: list[str], text: str) -> None:
    entities, _ = locate([(mention, "thing") for mention in mentions], text)
    for entity in entities:
        assert text[entity.start : entity.end] == entity.text
        for position in (entity.start, entity.end):
            around = text[max(0, position - 1) : position + 1]
            assert not (len(around) == 2 and around.isalpha() and 0 < position < len(text))
            assert text[position : position + 1] != "\u0301"


def test_mentions_absent_from_the_input_are_omitted_and_noted() -> None:
    entities, notes = locate([("Bob", "person"), ("Ann", "person")], "Ann met nobody.")
    assert [entity.text for entity in entities] == ["Ann"]
    assert notes == ["entities left out because they are not in the input: 1"]


@given(st.text() | st.integers(1, 200_000).map("[".__mul__))
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
