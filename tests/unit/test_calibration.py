"""Calibration sets: rendered as served, disjoint from the suites, repeatable, never padded."""

import json
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize import calibration
from quantize.calibration import (
    Example,
    batches,
    build_calibration,
    built_in_examples,
    built_in_suites,
    held_out_digests,
    read_examples,
    refuse_overlap,
)
from quantize.recipe import CalibrationNeed
from serving.contracts.answer import TaskRequest
from serving.contracts.errors import CalibrationOverlap, InvalidCalibration
from serving.contracts.task_spec import TaskSpec
from serving.tasks.fingerprint import text_digest
from serving.tasks.task import bind

from .character_tokenizer import CharacterTokenizer

Specs = dict[str, TaskSpec]
NEED = CalibrationNeed(samples=40, max_tokens=4000)


def build(examples: list[Example], specs: Specs, need: CalibrationNeed = NEED, seed: int = 0):  # type: ignore[no-untyped-def]
    return build_calibration(examples, need, specs, CharacterTokenizer(), source="test", seed=seed)


def texts(number: int, task: str | None = "sentiment") -> list[Example]:
    return [Example(text=f"a text with the number {n}", task=task) for n in range(number)]


def test_a_prompt_is_the_one_that_serving_sends(specs: Specs) -> None:
    (example,) = texts(1)
    made = build([example], specs)
    task = bind(specs["sentiment"], CharacterTokenizer(), 4000)
    assert example.text is not None
    served = task.plan(TaskRequest("sentiment", example.text)).prompt_token_ids
    assert made.sequences == (served,)


def test_an_answer_is_what_the_model_should_go_on_with(specs: Specs) -> None:
    example = Example(text="Guten Tag.", task="translation", source_language="de",
                      target_language="en", answer="Good day.")  # fmt: skip
    (ids,) = build([example], specs).sequences
    assert "".join(map(chr, ids)).endswith("assistant\nGood day.\x03")


def test_the_built_in_texts_cover_the_tasks_and_none_is_in_a_suite(specs: Specs) -> None:
    examples = built_in_examples(specs, seed=0)
    counts = {name: sum(example.task == name for example in examples) for name in specs}
    assert all(count >= 60 for count in counts.values()), counts
    held_out = held_out_digests([built_in_suites()])
    assert len(held_out) > 1000
    refuse_overlap(examples, held_out)


def test_no_language_of_a_calibration_text_is_in_a_suite() -> None:
    # An example names one direction; none of the other languages may be in the suite either.
    held_out = held_out_digests([built_in_suites()])
    folder = Path(__file__).parents[2] / "quantize" / "builtin_texts"
    for line in (folder / "translation.jsonl").read_text(encoding="utf-8").splitlines():
        assert not {text_digest(text) for text in json.loads(line).values()} & set(held_out)


@pytest.mark.parametrize("variant", ["A  Text\n with CAPITALS ", "\uff41 text with capitals"])
def test_overlap_is_found_however_it_is_written(tmp_path: Path, variant: str) -> None:
    suite = tmp_path / "suite" / "sentiment" / "test.jsonl"
    suite.parent.mkdir(parents=True)
    row = {"id": "1", "text": "a text with capitals", "label": "neutral"}
    suite.write_text(json.dumps(row) + "\n", encoding="utf-8")
    held_out = held_out_digests([tmp_path / "suite"])
    refuse_overlap([Example(text="neutral"), Example(text="another")], held_out)
    with pytest.raises(CalibrationOverlap, match=r"1 calibration examples .* number 2, in test"):
        refuse_overlap([Example(text="another"), Example(text=variant)], held_out)


def test_missing_suites_stop_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed = ModuleSpec("evals", None, is_package=True)
    installed.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(calibration, "find_spec", lambda name: installed)
    with pytest.raises(InvalidCalibration, match="suites are missing"):
        built_in_suites()


def test_a_suite_that_cannot_be_read_stops_the_run(tmp_path: Path) -> None:
    broken = tmp_path / "test.jsonl"
    broken.write_text("{", encoding="utf-8")
    for path in (broken, tmp_path / "nowhere.jsonl"):
        with pytest.raises(InvalidCalibration):
            held_out_digests([path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidCalibration, match=r"no \*.jsonl"):
        held_out_digests([tmp_path / "empty"])


def test_duplicates_count_once_and_tasks_take_turns(specs: Specs) -> None:
    examples = (
        texts(30) + texts(30) + texts(30, "topic") + [Example(text="A text with the number 1 ")]
    )
    made = build(examples, specs, CalibrationNeed(samples=10, max_tokens=4000))
    assert len(made.sequences) == len(set(made.example_digests)) == 10
    both = build(examples, specs, CalibrationNeed(samples=1000, max_tokens=4000))
    # The same text for two tasks is one example.
    assert len(both.sequences) == 30


def test_the_seed_decides(specs: Specs) -> None:
    examples = texts(200)
    assert build(examples, specs).digest() == build(list(examples), specs).digest()
    assert build(examples, specs, seed=1).digest() != build(examples, specs).digest()


def test_half_of_the_texts_can_go_without_their_prompt(specs: Specs) -> None:
    need = CalibrationNeed(samples=10, max_tokens=4000, plain_share=0.5)
    made = build(texts(40), specs, need)
    short = [ids for ids in made.sequences if len(ids) < 100]
    assert len(short) == 5


def test_texts_that_do_not_fit_are_omitted_and_too_few_are_refused(specs: Specs) -> None:
    long = [Example(text="x" * 5000 + str(n), task="sentiment") for n in range(20)]
    made = build(texts(20) + long, specs, CalibrationNeed(samples=20, max_tokens=4000))
    assert len(made.sequences) == 20
    assert all(len(ids) <= 4000 for ids in made.sequences)
    with pytest.raises(InvalidCalibration, match="0 of 20"):
        build(long, specs)
    with pytest.raises(InvalidCalibration, match="0 of 0"):
        build([], specs)


def test_an_unknown_task_is_refused(specs: Specs) -> None:
    with pytest.raises(InvalidCalibration, match="'weather'"):
        build(texts(3, "weather"), specs)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": "a", "messages": []}', None),
        ('{"text": ""}', "line 2: text"),
        ('{"task": "topic"}', "either text or messages"),
        ('{"text": "a", "typo": 1}', "typo"),
        ('{"messages": [{"role": "wizard", "content": "a"}]}', "role"),
        ("[]", "line 2"),
        ("nonsense", "line 2"),
    ],
)
def test_a_users_file_is_read_line_by_line(
    tmp_path: Path, line: str, complaint: str | None
) -> None:
    file = tmp_path / "mine.jsonl"
    good = '{"messages": [{"role": "user", "content": "hello there"}]}'
    file.write_text(f"{good}\n{line}\n\n", encoding="utf-8")
    if complaint is None:
        assert len(read_examples(file)) == 2
        return
    with pytest.raises(InvalidCalibration, match=complaint):
        read_examples(file)


@given(
    lengths=st.lists(st.integers(1, 40), max_size=60).map(sorted),
    limit=st.integers(1, 200),
)
def test_a_batch_has_one_length_and_nothing_is_lost(lengths: list[int], limit: int) -> None:
    sequences = [tuple(range(length)) for length in lengths]
    made = list(batches(sequences, limit))
    assert [sequence for batch in made for sequence in batch] == sequences
    for batch in made:
        assert len({len(sequence) for sequence in batch}) == 1
        assert len(batch) == 1 or len(batch) * len(batch[0]) <= limit


def test_the_digest_of_a_text() -> None:
    assert text_digest("Straße  ist\tNASS") == text_digest("strasse ist nass")
    assert text_digest("a b") != text_digest("ab")
    assert text_digest("\ud800") != text_digest("")
