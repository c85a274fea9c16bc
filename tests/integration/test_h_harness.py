"""lm-eval itself over scripted engines: all kinds of task, both of its request types."""

from pathlib import Path

import pytest

from evals.harness import General, run_harness
from evals.metrics import metric_of
from evals.suite import Suite, built_in_suites
from serving.contracts.errors import InvalidSuite
from serving.tasks.catalog import load_specs

from ..built_in_tasks import BUILT_IN_TASKS
from ..unit.test_pair import pair_of


@pytest.fixture
def suites() -> dict[str, Suite]:
    return {suite.name: suite.first(12) for suite in built_in_suites(load_specs(None))}


def test_lm_eval_reports_what_the_gate_computes(
    suites: dict[str, Suite],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """All four kinds of task through the real harness, with both of its request types.

    The folder is no git repository, which lm-eval reports on the terminal unless it is stopped.
    """
    monkeypatch.chdir(tmp_path)
    pair = pair_of(list(suites.values()), [])
    found = run_harness(pair, "candidate", list(suites.values()), General())
    assert set(found.metrics) == set(BUILT_IN_TASKS)
    for name, suite in suites.items():
        metric = metric_of(suite.spec)
        expected = [example.expected for example in suite.examples]
        rows = metric.rows(pair.answered("candidate", name).predictions, expected)
        assert found.metrics[name] == pytest.approx(metric.value(rows.sum(axis=0)))
    assert "git" not in capfd.readouterr().err


def test_an_unknown_general_task_is_named(suites: dict[str, Suite]) -> None:
    with pytest.raises(InvalidSuite, match="no_such_task"):
        run_harness(
            pair_of([suites["topic"]], []), "candidate", [suites["topic"]],
            General(("no_such_task",)),
        )  # fmt: skip
