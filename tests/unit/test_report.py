"""The gate's report: its numbers, its parts, and the escaping of hostile texts."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.certification import error_bound
from evals.findings import Findings, Outcome, OwnOutcome, TaskFindings, overall_verdict
from evals.report import curves
from evals.report.html import SHOWN_CHARS, SHOWN_FLIPS, render_html
from evals.report.markdown import HEADINGS, number, render_markdown
from serving.contracts.attestation import (
    Artifact,
    CalibrationMap,
    Certificate,
    Difference,
    Engine,
    Flips,
    GatePredicate,
    GeneralResult,
    Interval,
    Pair,
    Population,
    Speed,
    SuiteRecord,
    TaskResult,
    Verdict,
)
from serving.tasks.catalog import load_specs

SCRIPT = "<script>alert(1)</script>"
QUOTES = "\"'><img src=https://evil.example/x onerror=alert(2)>"
SPECS = load_specs(None)
examples = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.35, 0.5, 0.9, 1.0]), st.booleans()),
    min_size=1, max_size=60,
)  # fmt: skip


def outcome(number: int, expected: str, baseline: str, candidate: str, **fields: Any) -> Outcome:
    values: dict[str, Any] = {
        "id": f"example-{number}", "text": f"{SCRIPT} text {number}", "slice": None,
        "expected": expected, "baseline": baseline, "candidate": candidate,
        "baseline_right": baseline == expected, "candidate_right": candidate == expected,
        "raw": 0.5 + number % 10 / 20, "calibrated": None,
        "half": "certification" if number % 2 else "calibration",
    }  # fmt: skip
    return Outcome(**{**values, **fields})


def result(task: str, verdict: Verdict, **fields: Any) -> TaskResult:
    values: dict[str, Any] = {
        "verdict": verdict, "reasons": (f"reason of {task}", f"{SCRIPT} | pipe\nnewline"),
        "spec_digest": "sha256:1", "suite": SuiteRecord(name=task, source="s", digest="d", n=40),
        "metric": "accuracy", "baseline": None, "candidate": None, "difference": None,
        "margin": None, "floor": 0.5, "flips": Flips(changed=2, gained=1, lost=1, rate=0.05),
        "invalid": Pair(baseline=0.0, candidate=0.125), "calibration": None, "certificate": None,
        "ece_before": None, "ece_after": None, "speed": None,
    }  # fmt: skip
    return TaskResult(**{**values, **fields})


def interval(estimate: float, lower: float, upper: float) -> Interval:
    return Interval(estimate=estimate, lower=lower, upper=upper, method=f"method {SCRIPT}")


def sentiment() -> TaskFindings:
    answers = [("positive", "positive", "positive")] * 30 + [
        ("negative", "negative", "positive"),
        ("neutral", "positive", "neutral"),
        ("neutral", "positive", SCRIPT),
    ]
    outcomes = [outcome(i, *each, calibrated=0.9) for i, each in enumerate(answers)]
    certificate = Certificate(
        threshold=0.9, target_error=0.1, bound=0.0987, coverage=0.75, errors=1, accepted=16,
        tested=20,
    )  # fmt: skip
    speed = Speed(
        examples_per_s=Pair(baseline=4.0, candidate=5.0), ratio=1.25, lower=1.1, upper=1.4,
        blocks=6, required=1.0,
    )  # fmt: skip
    found = result(
        "sentiment", Verdict.PASS, baseline=0.9, candidate=interval(0.91, 0.85, 0.95),
        difference=interval(0.01, -0.011, 0.03), margin=0.02, certificate=certificate, speed=speed,
        calibration=CalibrationMap(knots=(0.5, 0.9), values=(0.8, 0.9)), ece_before=0.2,
        ece_after=0.1, label_offsets={"negative": -0.25},
    )  # fmt: skip
    return TaskFindings(SPECS["sentiment"], found, tuple(outcomes))


def ner() -> TaskFindings:
    expected = f"Siemens (organization) {QUOTES}"
    outcomes = [outcome(i, expected, expected, "secret answer " * 40) for i in range(60)]
    return TaskFindings(SPECS["ner"], result("ner", Verdict.FAIL), tuple(outcomes))


def translation() -> TaskFindings:
    outcomes = [outcome(i, "a", "a", "b", slice="de-en", calibrated=0.5) for i in range(4)]
    nothing = Certificate(
        threshold=None, target_error=0.1, bound=1.0, coverage=0.0, errors=0, accepted=0, tested=2
    )
    found = result(
        "translation", Verdict.INCONCLUSIVE, more_examples=700, baseline=0.6,
        candidate=interval(0.58, 0.5, 0.65), difference=interval(-0.02, -0.05, 0.01), margin=0.02,
        slices={"de-en": interval(-0.09, -0.12, -0.03)}, certificate=nothing,
    )  # fmt: skip
    return TaskFindings(SPECS["translation"], found, tuple(outcomes))


@pytest.fixture(scope="module")
def findings() -> Findings:
    tasks = {"sentiment": sentiment(), "ner": ner(), "translation": translation()}
    check = GeneralResult(
        verdict=Verdict.PASS, reasons=("no damage",), n=100, baseline=0.4,
        difference=interval(0.0, -0.01, 0.01), margin=0.03,
    )  # fmt: skip
    predicate = GatePredicate(
        narrowgate="0.1.0", date=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
        artifact=Artifact(files={}, precision="int4", recipe=SCRIPT,
                          weight_bytes=Pair(baseline=2e9, candidate=1e9)),
        baseline="b" * 64, tools={"lm-eval": "0.4.13"}, seed=7, general={"arc": check},
        engine=Engine(
            name="vllm", version="0.29.0", max_model_len=2048, hardware=f"{SCRIPT} | x",
            arguments={}, environment={},
        ),
        tasks={name: found.result for name, found in tasks.items()},
    )  # fmt: skip
    return Findings(f"tiny {SCRIPT}", "a" * 64, predicate, tasks)


@pytest.fixture(scope="module")
def page(findings: Findings) -> str:
    return render_html(findings)


def test_hostile_texts_stay_texts(page: str) -> None:
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; text 30" in page


def test_the_page_loads_nothing(page: str) -> None:
    targets = re.findall(
        r"(?:src|href)\s*=\s*[\"']?([^\"'\s>]+)", re.sub(r"&#?\w+;[^<]*", "", page)
    )
    targets += re.findall(r"url\(\s*[\"']?([^)\"']+)", page)
    assert targets
    assert all(target.startswith("#") for target in targets)
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_ids_referenced_in_a_plot_exist_once(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([\w-]+)', page)) <= set(ids)


def test_every_number_of_a_task_is_shown(page: str) -> None:
    for shown in ("0.010", "-0.011 to +0.030", "0.850 to 0.950", "≤ 9.9%", "75.0%", "12.5%",
                  "1.25x (1.10-1.40)", "-0.250", "reason of ner", "about 700 more examples",
                  "2.00 GB → 1.00 GB (0.50x)", "2026-01-02 03:04 UTC", "lm-eval", "no damage",
                  "every answer is an abstention", "a" * 64, "b" * 64):  # fmt: skip
        assert shown in page
    assert '<span class="fail">worse</span>' in page
    for verdict in Verdict:
        assert f'<span class="badge {verdict.value}">{verdict.value}</span>' in page


def test_plots_are_there_and_follow_the_colours_of_the_page(page: str) -> None:
    # Forest, speed; reliability three times; two curves of risk; one pair of confusion matrices.
    assert page.count("<svg ") == 8
    assert "var(--pass)" in page
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert not re.findall(r"(?:fill|stroke): #\w+", svg)
        assert "<metadata" not in svg
        assert "<style" not in svg


def test_examples_are_limited_and_shortened(page: str) -> None:
    assert f"{SHOWN_FLIPS} of 60 changed answers" in page
    assert "example-49<" in page
    assert "example-50<" not in page
    answers = re.findall(r"<bdi>(secret answer [^<]*)</bdi>", page)
    assert len(answers) == SHOWN_FLIPS
    assert {len(answer) for answer in answers} == {SHOWN_CHARS}


def test_without_texts_only_ids_are_shown(findings: Findings) -> None:
    page = render_html(findings, texts=False)
    assert "example-30<" in page
    assert "secret answer" not in page
    assert "Siemens" not in page
    assert "text 30" not in page


def test_the_same_findings_give_the_same_page(findings: Findings, page: str) -> None:
    assert render_html(findings) == page
    assert render_markdown(findings) == render_markdown(findings)


def test_labels_are_not_read_as_mathematics_and_may_be_in_any_script(findings: Findings) -> None:
    odd = [{"name": name, "verbalizer": "v" + str(i)} for i, name in
           enumerate(["$\\frac{$", "日本語", "<b>&", "#1f2328", "long " * 30 + "."])]  # fmt: skip
    spec = type(SPECS["sentiment"]).model_validate(
        {**SPECS["sentiment"].model_dump(), "labels": odd, "examples": []}
    )
    outcomes = tuple(outcome(i, item["name"], item["name"], SCRIPT) for i, item in enumerate(odd))
    task = TaskFindings(spec, result("odd", Verdict.PASS), outcomes)
    page = render_html(replace(findings, tasks={"odd": task}))
    assert "日本語" in page
    assert "$\\frac{$" in page
    assert "&lt;b&gt;&amp;" in page


def test_a_run_without_tasks_does_not_pass(findings: Findings) -> None:
    empty = replace(
        findings, tasks={}, predicate=findings.predicate.model_copy(update={"general": {}})
    )
    assert overall_verdict(empty) is Verdict.INCONCLUSIVE
    assert "No task was tested." in render_html(empty)
    assert "inconclusive" in render_markdown(empty)


def test_the_outcome_is_the_worst_of_all(findings: Findings) -> None:
    tasks = findings.tasks
    assert overall_verdict(findings) is Verdict.FAIL
    without = {name: found for name, found in tasks.items() if name != "ner"}
    assert overall_verdict(replace(findings, tasks=without)) is Verdict.INCONCLUSIVE
    assert (
        overall_verdict(replace(findings, tasks={"sentiment": tasks["sentiment"]})) is Verdict.PASS
    )
    bad = findings.predicate.general["arc"].model_copy(update={"verdict": Verdict.FAIL})
    predicate = findings.predicate.model_copy(update={"general": {"arc": bad}})
    only = replace(findings, tasks={"sentiment": tasks["sentiment"]}, predicate=predicate)
    assert overall_verdict(only) is Verdict.FAIL


def test_the_markdown_table_has_a_row_a_task(findings: Findings) -> None:
    odd = {"a|b\nc\\": findings.tasks["ner"], **findings.tasks}
    text = render_markdown(replace(findings, tasks=odd))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(odd)
    for line in table:
        assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) == len(HEADINGS) + 1
    assert "reason of translation" in text
    assert "<script" not in text
    assert len(text.splitlines()) < 60


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (-0.0004, "0.000"), (0.12345, "0.123"), (1.0, "1.000")],  # noqa: RUF001
)
def test_a_number_has_three_decimals_and_no_negative_zero(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_reliability_of_a_known_case() -> None:
    found = curves.reliability([0.05, 0.92, 0.94, 0.99, 1.0], [False, True, True, True, False])
    assert [(b.start, b.end, b.count) for b in found] == [(0.0, 0.1, 1), (0.9, 1.0, 4)]
    low, high = found
    assert (low.accuracy, low.lower) == (0.0, 0.0)
    # One wrong answer: the exact one-sided bound is 0.95.
    assert low.upper == pytest.approx(0.95)
    assert high.confidence == pytest.approx(3.85 / 4)
    assert high.accuracy == 0.75
    assert high.lower == pytest.approx(1.0 - error_bound(1, 4))
    assert curves.reliability([], []) == []


@given(examples)
def test_bins_hold_every_answer_within_their_bounds(pairs: list[tuple[float, bool]]) -> None:
    found = curves.reliability([c for c, _ in pairs], [right for _, right in pairs])
    assert sum(b.count for b in found) == len(pairs)
    assert sum(b.count * b.accuracy for b in found) == pytest.approx(sum(r for _, r in pairs))
    assert all(0.0 <= b.lower <= b.accuracy <= b.upper <= 1.0 for b in found)


def test_risk_and_coverage_of_a_known_case() -> None:
    found = curves.risk_coverage([0.5, 0.9, 0.7, 0.9], [False, True, True, False])
    assert [(p.threshold, p.coverage, p.errors, p.accepted) for p in found] == [
        (0.9, 0.5, 1, 2),
        (0.7, 0.75, 1, 3),
        (0.5, 1.0, 2, 4),
    ]
    assert found[1].risk == pytest.approx(1 / 3)
    assert found[1].bound == error_bound(1, 3)
    assert curves.risk_coverage([], []) == []


@given(examples)
def test_a_stricter_threshold_never_raises_coverage(pairs: list[tuple[float, bool]]) -> None:
    found = curves.risk_coverage([c for c, _ in pairs], [right for _, right in pairs])
    thresholds = [p.threshold for p in found]
    assert thresholds == sorted(set(thresholds), reverse=True)
    assert [p.coverage for p in found] == sorted(p.coverage for p in found)
    assert all(p.risk <= p.bound for p in found)
    assert found[-1].coverage == 1.0
    assert found[-1].risk == sum(not right for _, right in pairs) / len(pairs)


def test_confusion_counts_both_models_and_answers_without_a_label() -> None:
    outcomes = [outcome(0, "a", "a", "b"), outcome(1, "a", "a", "?"), outcome(2, "b", "a", "b")]
    baseline = curves.confusion(["a", "b"], outcomes, "baseline")
    candidate = curves.confusion(["a", "b"], outcomes, "candidate")
    assert baseline.labels == candidate.labels == ("a", "b", curves.OUTSIDE)
    assert baseline.counts.tolist() == [[2, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert candidate.counts.tolist() == [[0, 1, 1], [0, 1, 0], [0, 0, 0]]
    assert candidate.shares.tolist() == [[0, 0.5, 0.5], [0, 1, 0], [0, 0, 0]]
    assert curves.confusion(["a", "b"], outcomes[2:], "candidate").labels == ("a", "b")


def test_lost_answers_come_first_in_their_order() -> None:
    outcomes = [
        outcome(0, "a", "b", "c"),
        outcome(1, "a", "b", "a"),
        outcome(2, "a", "a", "b"),
        outcome(3, "a", "a", "a"),
        outcome(4, "a", "a", "c"),
    ]
    found = [(flip.kind, flip.outcome.id) for flip in curves.flips(outcomes)]
    assert found == [
        ("lost", "example-2"), ("lost", "example-4"), ("gained", "example-1"),
        ("changed", "example-0"),
    ]  # fmt: skip


def test_only_the_certification_half_is_plotted() -> None:
    outcomes = [outcome(i, "a", "a", "a") for i in range(5)]
    assert [o.id for o in curves.certification_half(outcomes)] == ["example-1", "example-3"]


def with_population(findings: Findings, *, visible: bool) -> Findings:
    difference = Difference(
        respect="length", distance=0.461, limit=0.2 if visible else 0.5,
        finding=f"a median of 37 words, in the suite 27 {SCRIPT}",
    )  # fmt: skip
    population = Population.of("file", f"mine {SCRIPT}", "sha256:feed", 1812, (difference,))
    task = findings.tasks["sentiment"]
    changed = task.result.model_copy(update={"population": population})
    return replace(findings, tasks={"sentiment": replace(task, result=changed)})


def test_the_population_and_its_warnings_are_stated_in_both_reports(findings: Findings) -> None:
    warned = with_population(findings, visible=True)
    page = render_html(warned)
    for report in (page, render_markdown(warned)):
        assert "1,812 inputs of mine" in report
        assert "differs from the suite in length: a median of 37 words, in the suite 27" in report
        assert "distance 0.461, visible above 0.200" in report
        assert "<script" not in report
    assert "sha256:feed" in page
    quiet = with_population(findings, visible=False)
    page = render_html(quiet)
    assert "differs from the suite" not in page + render_markdown(quiet)
    assert "0.461" in page


def test_the_curves_are_those_of_the_own_inputs(findings: Findings) -> None:
    task = findings.tasks["sentiment"]
    own = tuple(OwnOutcome(0.5 + n / 50, 0.9, n % 5 > 0) for n in range(20))
    page = render_html(replace(findings, tasks={"sentiment": replace(task, own_outcomes=own)}))
    assert "Own inputs. On the diagonal" in page
    assert "Certification half." not in page
