"""Figures about the router: intervals, cost curves, and reading samples."""

import argparse
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.commands import router as command
from serving.contracts.errors import InvalidRequest
from serving.routing.corpus import shipped_corpus
from serving.routing.evaluation.cost import cost_report, tiers_by_category
from serving.routing.evaluation.detection import Outcome, detection_report
from serving.routing.evaluation.intervals import wilson
from serving.routing.evaluation.run import earns_trust
from serving.routing.evaluation.samples import read_samples


@given(st.integers(0, 500), st.integers(1, 500))
def test_an_interval_holds_its_share(count: int, of: int) -> None:
    share = wilson(min(count, of), of)
    assert 0.0 <= share.low <= share.value + 1e-12
    assert share.value - 1e-12 <= share.high <= 1.0


def test_a_share_of_zero_has_no_value() -> None:
    assert math.isnan(wilson(0, 0).value)


def test_scores_that_know_beat_random_and_noise_does_not() -> None:
    draw = np.random.default_rng(3)
    cheap = draw.random(400) < 0.6
    expensive = cheap | (draw.random(400) < 0.7)
    benefit = (expensive & ~cheap).astype(np.float64)
    knowing = cost_report(benefit + 0.3 * draw.normal(size=400), cheap, expensive)
    assert knowing.beats_random
    assert all(row.router <= row.oracle + 1e-12 for row in knowing.rates)
    noise = cost_report(draw.normal(size=400), cheap, expensive)
    assert not noise.beats_random
    assert earns_trust({"one": knowing})
    assert not earns_trust({"one": knowing, "two": noise})
    assert not earns_trust({})


def test_wrong_payloads_count_against_precision_and_recall() -> None:
    report = detection_report(
        [
            Outcome("ner", "ner", True, "a"),
            Outcome("ner", "ner", False, "a"),
            Outcome("ner", None, False, "a"),
            Outcome(None, None, False, "b"),
            Outcome(None, "ner", True, "b"),
        ]
    )
    assert report.tasks["ner"].precision.value == pytest.approx(1 / 3)
    assert report.tasks["ner"].recall.value == pytest.approx(1 / 3)
    assert report.wrongly_narrow["b"].value == 0.5


def test_tiers_are_counted_by_category() -> None:
    counts = tiers_by_category(["economy", "frontier", "economy"], ["a", "a", "b"])
    assert counts["a"] == {"economy": 1, "standard": 0, "frontier": 1}


def test_samples_are_wrapped_in_both_kinds_of_instructions(tmp_path: Path) -> None:
    (tmp_path / "sst2.jsonl").write_text('{"text": "a fine film"}\n', encoding="utf-8")
    routed = {"prompt": "1 + 1?", "mixtral_correct": False, "gpt4_correct": True}
    (tmp_path / "gsm8k_routing.jsonl").write_text(json.dumps(routed), encoding="utf-8")
    samples = read_samples(tmp_path, 10)
    assert [sample.task for sample in samples.tasks] == ["sentiment", None, None]
    assert "a fine film" in samples.tasks[0].prompt.text
    assert samples.routing[0].expensive_right
    with pytest.raises(InvalidRequest):
        read_samples(tmp_path / "nothing", 10)


def test_the_command_prints_one_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = shipped_corpus()
    # A part of the texts, and one part of the phrasings: embedding all takes 30 s.
    sample = dataclasses.replace(corpus, prompts=corpus.prompts[::8])
    monkeypatch.setattr("serving.routing.corpus.shipped_corpus", lambda: sample)
    monkeypatch.setattr("serving.routing.evaluation.held_out.HALVES", ("C",))
    (tmp_path / "sst2.jsonl").write_text('{"text": "a fine film"}\n', encoding="utf-8")
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    command.configure(parser)
    where = ["--state", str(tmp_path / "state"), "--data", str(tmp_path), "--json"]
    assert command.run(parser.parse_args(["evaluate", *where])) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["held_out"]["overall"]["precision"]["of"] > 20
    assert document["samples"]["wrongly_narrow"]["all"]["value"] == 0.0
    assert document["scores_earn_trust"] is False
    assert list(document["phrasings"]) == ["C"]
