"""What the semantic step serves, in which state, and how it treats a doubtful entry."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from serving.cache.evaluation.measure import Pair, Question, measure_pairs, measure_stream
from serving.cache.semantic import (
    CachedAnswer,
    Candidate,
    Served,
    choose,
    is_refinement,
)
from serving.contracts.evidence import Shortcut

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SHORTCUT = CachedAnswer("frontier", "all-minilm-l6-v2-int8-x-1", 0.95, "1")


def test_it_is_a_shortcut_of_its_own_scope() -> None:
    shortcut: Shortcut = SHORTCUT
    scope = shortcut.scope("acme", pooled=False, taken=("cached_answer",), rules="r")
    assert scope.shortcuts == ("cached_answer",)
    assert shortcut.target_error == 0.05
    for other in (replace(SHORTCUT, threshold=0.9), replace(SHORTCUT, encoder="e"),
                  replace(SHORTCUT, guards="2"),
                  replace(SHORTCUT, subject="sentiment")):  # fmt: skip
        assert other.scope("acme", pooled=False, taken=("cached_answer",), rules="r") != scope


@pytest.mark.parametrize(("similarity", "served"), [(0.94, False), (0.949, False), (0.951, True)])
def test_an_added_word_needs_a_higher_cosine(similarity: float, served: bool) -> None:
    near = [Candidate("tyres", "Why do dogs chase vehicle tyres?", similarity)]
    choice = choose("Why do dogs chase tyres?", near, 0.90)
    assert (choice.match is not None) is served
    assert dict(choice.refusals) == ({} if served else {"tyres": "modifier"})


def test_the_nearest_that_no_guard_refuses_is_chosen() -> None:
    candidates = [
        Candidate("off", "How do I turn off Bluetooth?", 0.99),
        Candidate("aside", "How can I turn on Bluetooth?", 0.98, is_aside=True),
        Candidate("on", "How can I turn on Bluetooth?", 0.96),
        Candidate("far", "How do I turn on Bluetooth?", 0.94),
    ]
    choice = choose("How do I turn on Bluetooth?", candidates, 0.95)
    assert choice.match is not None
    assert choice.match.entry == "on"
    assert dict(choice.refusals) == {"off": "antonyms", "aside": "aside"}
    assert choose("How do I turn on Bluetooth?", candidates, 0.97).match is None


def test_labels_are_equal_or_not() -> None:
    label = replace(SHORTCUT, is_label=True)
    assert (label.loss, label.loss_of("positive", "positive")) == ("exact", 0.0)
    assert label.loss_of("positive", "negative") == 1.0


@pytest.mark.parametrize(
    ("question", "after_s", "expected"),
    [
        ("How do I boil an egg well?", 10, True),
        ("No, I meant poaching", 10, True),
        ("Nein, falsch", 10, True),
        ("Who painted Guernica?", 10, False),
        ("How do I boil an egg well?", 600, False),
    ],
)
def test_refinement(question: str, after_s: int, expected: bool) -> None:
    served = Served("e", "How do I boil an egg?", NOW, "c")
    at = NOW + timedelta(seconds=after_s)
    assert is_refinement(served, question, at, timedelta(seconds=60)) is expected


def _encode(texts: object) -> np.ndarray:
    """Return one vector for all texts: to a cosine they are all the same."""
    return np.tile(np.float32([1.0, 0.0]), (len(texts), 1))  # type: ignore[arg-type]


def test_pairs_are_measured_beside_fixed_cosines() -> None:
    pairs = [
        Pair("How do I boil an egg?", "How can I boil an egg?", True),
        Pair("How do I open a bank account?", "How do I close a bank account?", False),
    ]
    ways = {(one.name, one.cosine): one for one in measure_pairs(pairs, _encode)}
    guarded, alone = ways["guards, default", 0.90], ways["cosine alone", 0.95]
    assert (guarded.hits, guarded.wrong, alone.hits, alone.wrong) == (1, 0, 2, 1)
    assert guarded.refused == {"antonyms": 1}
    assert alone.wrong_share is not None
    assert alone.wrong_share.low < 0.5 < alone.wrong_share.high
    assert json.dumps([one.document() for one in ways.values()])


def test_a_stream_is_measured_in_its_order() -> None:
    stream = [
        Question("How do I boil an egg?", "boil"),
        Question("How can I boil an egg?", "boil"),
        Question("How do I open a bank account?", "open"),
        Question("How do I close a bank account?", "close"),
    ]
    ways = {(one.name, one.cosine): one for one in measure_stream(stream, _encode)}
    assert (ways["guards, default", 0.90].hits, ways["guards, default", 0.90].wrong) == (1, 0)
    assert (ways["cosine alone", 0.95].hits, ways["cosine alone", 0.95].wrong) == (3, 2)


def test_the_command_prints_every_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    from serving.commands.cache_evaluate import configure_evaluate, evaluate

    file = tmp_path / "pairs.jsonl"
    rows = [
        {"a": "How do I boil an egg?", "b": "How can I boil an egg?", "duplicate": True},
        {"a": "How do I turn on Wi-Fi?", "b": "How do I turn off Wi-Fi?", "duplicate": False},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    parser = argparse.ArgumentParser()
    configure_evaluate(parser)
    assert evaluate(parser.parse_args([str(file), "--pairs", "--json"])) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == 2
    assert [way["cosine"] for way in document["ways"] if not way["guarded"]] == [0.85, 0.9, 0.95]
    assert all(way["wrong"] == 0 for way in document["ways"] if way["guarded"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "no such file or directory"),
        ("", "holds no pair"),
        ('{"a": "x"', "line 1"),
        ("\n[1]", "line 2"),
        ('{"a": "x", "b": 5, "duplicate": true}', "no object with a, b"),
        ('{"a": "x", "b": "y"}', "`duplicate` is None"),
        ('{"a": "x", "b": "y", "duplicate": "yes"}', "'yes'"),
        ("\xff", "byte 0 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_list_of_pairs_is_refused(
    tmp_path: Path, text: str | None, says: str
) -> None:
    import argparse

    from serving.commands.cache_evaluate import configure_evaluate, evaluate
    from serving.contracts.errors import InvalidArgument

    file = tmp_path / "pairs.jsonl"
    if text is not None:
        file.write_text(text, encoding="latin-1")
    parser = argparse.ArgumentParser()
    configure_evaluate(parser)
    with pytest.raises(InvalidArgument, match=says) as caught:
        evaluate(parser.parse_args([str(file), "--pairs"]))
    assert caught.value.fix
