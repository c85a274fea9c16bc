"""The check of a suite: problems, warnings, and the bounds that its size can certify."""

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evals.certification import accepted_needed, error_bound
from evals.commands import suite as command
from evals.suite import Example, Suite, built_in_suites, calibration_half
from evals.suite_check import (
    ALPHAS,
    FLIP_RATES,
    check,
    error_bound_for,
    few_shot_digests,
    refuse_unfit,
    smallest_margin,
)
from serving.contracts.answer import TaskRequest
from serving.contracts.errors import ConfigurationError, InvalidSuite, OutputInUse
from serving.contracts.task_spec import TaskSpec

from ..built_in_tasks import BUILT_IN_TASKS

NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
LABELS = ("negative", "neutral", "positive")


def classified(spec: TaskSpec, texts: dict[str, str]) -> Suite:
    return Suite(
        "sentiment",
        "here",
        spec,
        tuple(
            Example(str(number), str(number), TaskRequest("sentiment", text), label)
            for number, (text, label) in enumerate(texts.items())
        ),
    )


def many(spec: TaskSpec, counts: dict[str, int]) -> Suite:
    labels = [label for label, count in counts.items() for _ in range(count)]
    words = len(NUMBERS)
    texts = {
        f"{NUMBERS[n // words**2]} {NUMBERS[n // words % words]} {NUMBERS[n % words]}": label
        for n, label in enumerate(labels)
    }
    return classified(spec, texts)


def test_the_built_in_suites_are_fit(specs: dict[str, TaskSpec]) -> None:
    reports = {suite.name: check(suite) for suite in built_in_suites(specs, extended=True)}
    assert {name: report.problems for name, report in reports.items()} == dict.fromkeys(reports, ())
    assert {name: (r.examples, r.groups) for name, r in reports.items()} == {
        "ner": (208, 208),
        "sentiment": (435, 435),
        "topic": (468, 468),
        "translation": (1872, 156),
    }
    assert reports["sentiment"].counts == dict.fromkeys(LABELS, 145)
    assert set(reports["topic"].counts.values()) == {117}
    assert sum(reports["ner"].counts.values()) == 528
    assert reports["ner"].without_entities == 25 / 208
    assert set(reports["translation"].counts.values()) == {156}
    assert all(report.target.reachable for report in reports.values())


def test_a_good_suite_has_neither_problem_nor_warning(specs: dict[str, TaskSpec]) -> None:
    report = check(many(specs["sentiment"], dict.fromkeys(LABELS, 200)))
    assert (report.problems, report.warnings, report.fit) == ((), (), True)
    assert (report.words.fewest, report.words.median, report.words.most) == (3, 3, 3)


def test_repeated_texts_are_a_problem_and_similar_ones_a_warning(
    specs: dict[str, TaskSpec],
) -> None:
    suite = classified(
        specs["sentiment"],
        {"Fine  TEA.": "positive", "fine tea.": "positive", "Fine, tea 2": "neutral",
         "Bad": "negative", "?!": "neutral", "...": "neutral"},
    )  # fmt: skip
    report = check(suite)
    assert report.problems == ("1 texts occur more than once: 0 = 1",)
    assert "1 texts differ only in punctuation or digits: 0 = 2" in report.warnings
    with pytest.raises(InvalidSuite, match="unfit: 1 texts occur more than once"):
        refuse_unfit(suite)
    refuse_unfit(many(specs["sentiment"], dict.fromkeys(LABELS, 2)))


def test_labels_must_occur_and_should_be_balanced(specs: dict[str, TaskSpec]) -> None:
    report = check(many(specs["sentiment"], {"negative": 31, "positive": 10}))
    assert report.problems == ("no example of label neutral",)
    assert report.counts == {"negative": 31, "neutral": 0, "positive": 10}
    ratio = "the largest label has 3.1 times as many examples as the smallest"
    assert ratio in report.warnings
    balanced = check(many(specs["sentiment"], {"negative": 30, "neutral": 20, "positive": 10}))
    assert not any("largest" in warning for warning in balanced.warnings)


def test_texts_of_the_prompt_are_a_problem(specs: dict[str, TaskSpec]) -> None:
    spec = specs["sentiment"]
    shown = spec.examples[0].text.upper()  # type: ignore[union-attr]
    suite = classified(spec, {"Bad": "negative", "So": "neutral", shown: "positive"})
    assert check(suite).problems == ("1 texts are in the task's own prompt: 2",)
    assert len(few_shot_digests(specs["translation"])) == 12


def test_entity_types_must_occur(specs: dict[str, TaskSpec]) -> None:
    found = (("Nell", "person"), ("Ostby", "location"))
    rows = [("Nell of Ostby sings.", found), ("It rained.", ()), ("Nell sat.", (found[0],))]
    examples = [
        Example(str(n), str(n), TaskRequest("ner", text), entities)
        for n, (text, entities) in enumerate(rows)
    ]
    report = check(Suite("ner", "here", specs["ner"], tuple(examples)))
    assert report.problems == ("no example of entity type organization, miscellaneous",)
    assert report.counts["person"] == 2
    assert report.without_entities == 1 / 3


def test_directions_may_be_missing_and_languages_are_apart(specs: dict[str, TaskSpec]) -> None:
    def directed(number: int, text: str, reference: str) -> Example:
        request = TaskRequest("translation", text, "en", "de")
        return Example(str(number), str(number), request, reference, "en-de")

    # "Chef" is a text in two languages, "Hand" twice in the same.
    examples = (directed(0, "Chef", "Koch"), directed(1, "Boss", "Chef"),
                directed(2, "Hand", "Hand"), directed(3, "hand", "Pfote"))  # fmt: skip
    report = check(Suite("translation", "here", specs["translation"], examples))
    assert report.problems == ("1 texts occur more than once: 2 = 3 (en)",)
    assert report.counts["en-de"] == 4
    assert "11 of 12 directions have no example: en-fr, en-es, de-en and 8 more" in report.warnings
    assert report.without_entities is None


def test_too_small_a_suite_is_said_to_be(specs: dict[str, TaskSpec]) -> None:
    report = check(many(specs["sentiment"], dict.fromkeys(LABELS, 8)))
    assert report.fit
    assert not report.target.reachable
    assert any("needs 29 accepted texts" in warning for warning in report.warnings)
    margin = specs["sentiment"].margins.int8
    needed = math.ceil(0.05 * (1.645 / margin) ** 2)
    assert any(f"and {needed} are needed" in warning for warning in report.warnings)
    strict = specs["sentiment"].model_copy(
        update={"margins": specs["sentiment"].margins.model_copy(update={"int8": 0.0})}
    )
    warnings = check(many(strict, dict.fromkeys(LABELS, 8))).warnings
    assert any("no number of texts decides a margin of 0" in warning for warning in warnings)


@given(st.floats(0.001, 0.49), st.integers(0, 2000))
def test_a_reachable_bound_is_certified_by_the_accepted_texts(alpha: float, tested: int) -> None:
    bound = error_bound_for(alpha, tested)
    assert bound.reachable == (bound.needed <= tested)
    assert error_bound(0, bound.needed) <= alpha + 1e-12
    if bound.needed > 1:
        assert error_bound(0, bound.needed - 1) > alpha
    if bound.coverage is None:
        assert not bound.reachable
    else:
        assert 0.0 < bound.coverage <= 1.0
        assert round(bound.coverage * tested) == bound.needed == accepted_needed(alpha)


@given(st.sampled_from(FLIP_RATES), st.integers(1, 100_000))
def test_more_texts_decide_smaller_margins(flips: float, n: int) -> None:
    margin = smallest_margin(flips, n)
    assert smallest_margin(flips, n + 1) < margin
    assert smallest_margin(flips, 4 * n) == pytest.approx(margin / 2)
    assert math.ceil(flips * (1.645 / margin) ** 2 - 1e-6) == n


def test_the_margin_of_a_known_case() -> None:
    assert smallest_margin(0.05, 312) == pytest.approx(0.0208, abs=5e-5)


@given(st.lists(st.sampled_from(LABELS), min_size=1, max_size=60))
def test_a_report_adds_up(specs: dict[str, TaskSpec], labels: list[str]) -> None:
    counts = {label: labels.count(label) for label in LABELS}
    report = check(many(specs["sentiment"], counts))
    assert sum(report.counts.values()) == report.examples == len(labels)
    tested = sum(not calibration_half(str(number)) for number in range(len(labels)))
    assert report.certification_groups == tested
    assert [bound.alpha for bound in report.bounds] == list(ALPHAS)
    reachable = [bound.reachable for bound in report.bounds]
    assert reachable == sorted(reachable), "a laxer bound never takes more texts"
    assert report.fit == (min(counts.values()) > 0)


def run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    command.configure(parser)
    return command.run(parser.parse_args(arguments))


def test_the_subcommand_checks_the_built_in_suites(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", "builtin", "--json"]) == 0
    documents = json.loads(capsys.readouterr().out)
    assert [document["name"] for document in documents] == list(BUILT_IN_TASKS)
    assert all(document["fit"] for document in documents)
    assert run(["check", "builtin", "--task", "ner"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("ner (builtin): usable\n")
    assert "12% have no entity" in shown


def test_the_subcommand_fails_on_an_unfit_suite(
    tmp_path: Path, specs: dict[str, TaskSpec], capsys: pytest.CaptureFixture[str]
) -> None:
    content: dict[str, Any] = specs["sentiment"].model_dump(mode="json")
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text('{"text": "Tea.", "label": "neutral"}', encoding="utf-8")
    assert run(["check", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "NOT USABLE" in shown
    assert "problem    no example of label negative, positive" in shown
    assert "no error of 0.1: 29 accepted texts are needed, more than its half has" in shown


@pytest.mark.parametrize(
    ("arguments", "error", "field"),
    [
        (["check"], InvalidSuite, "what"),
        (["check", "/nowhere"], InvalidSuite, "suite"),
        (["check", "builtin", "--task", "poetry"], InvalidSuite, "task"),
        (["fetch", "sst2"], OutputInUse, "out"),
    ],
)
def test_what_is_wrong_is_said_with_its_field(
    arguments: list[str], error: type[ConfigurationError], field: str
) -> None:
    with pytest.raises(error) as raised:
        run(arguments)
    assert raised.value.field == field


def test_a_report_cannot_be_changed(specs: dict[str, TaskSpec]) -> None:
    report = check(many(specs["sentiment"], dict.fromkeys(LABELS, 2)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.problems = ()  # type: ignore[misc]
