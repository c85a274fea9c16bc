"""Runs lm-eval over one side of a pair."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.metrics import metric_of
from evals.pair import Side
from evals.suite import Suite
from serving.contracts.errors import InvalidSuite

if TYPE_CHECKING:
    from evals.adapter import Models


@dataclass(frozen=True, slots=True)
class General:
    """Public tasks of lm-eval that a gate runs in addition to the suites.

    include_path: folder with further task files. margin: largest acceptable loss of each task.
    """

    names: tuple[str, ...] = ()
    include_path: Path | None = None
    margin: float = 0.02


@dataclass(frozen=True, slots=True)
class HarnessResult:
    """Results of lm-eval. metrics: of the suites, by name. general: document scores by task."""

    metrics: dict[str, float]
    general: dict[str, list[float]]


def refuse_unknown_general(general: General) -> None:
    """Refuse general tasks that lm-eval does not have.

    Blocking: imports lm-eval if a task is named. Raises InvalidSuite.
    """
    if general.include_path is not None and not general.include_path.is_dir():
        raise InvalidSuite(
            f"--include-path {str(general.include_path)!r} is not a folder", field="include_path"
        )
    if not general.names:
        return
    known = frozenset(_task_manager(general).all_subtasks)
    for name in general.names:
        if name not in known:
            raise InvalidSuite(
                f"lm-eval has no task {name!r} (groups and tags are not tasks)",
                field="general",
                fix="use a task that `lm_eval ls subtasks` lists, or name its folder with "
                "--include-path",
            )


def run_harness(
    models: "Models", side: Side, suites: Sequence[Suite], general: General
) -> HarnessResult:
    """Evaluate one model with lm-eval. Blocking, minutes.

    Raises InvalidSuite for a general task that lm-eval does not have or cannot load.
    """
    # tqdm reads this at import. Its bars would mix with this program's output.
    os.environ["TQDM_DISABLE"] = "1"
    from lm_eval import evaluator, simple_evaluate

    from evals.adapter import ServedModel
    from evals.definition import PREFIX, SuiteTask

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # It runs git in the working folder. Outside a repository git writes an error to this terminal.
    evaluator.get_git_commit_hash = lambda: None
    # It lists the machine's packages and devices for a report that nobody reads here: 2 to 6 s of
    # processor time for each model.
    evaluator.add_env_info = lambda storage: None
    tasks: list[Any] = [SuiteTask(suite) for suite in suites]
    try:
        found = simple_evaluate(
            model=ServedModel(models, side),
            tasks=[*tasks, *general.names],
            task_manager=_task_manager(general),
            bootstrap_iters=0,
            log_samples=True,
        )
    except (KeyError, FileNotFoundError, ConnectionError) as error:
        raise InvalidSuite(
            f"lm-eval could not run {', '.join(general.names) or 'the suites'}: {error}",
            field="general",
            fix="name tasks that `lm_eval ls subtasks` lists and whose data can be loaded",
        ) from error
    assert found is not None
    return HarnessResult(
        metrics={
            suite.name: float(
                found["results"][PREFIX + suite.name][f"{metric_of(suite.spec).name},none"]
            )
            for suite in suites
        },
        general={name: _scores(found, name) for name in general.names},
    )


@lru_cache(maxsize=1)
def _task_manager(general: General) -> Any:
    """Return lm-eval's list of tasks, with its public ones where any general task is named.

    Made once a process: reading the 13,000 files of the public tasks takes 18 s of processor time.
    """
    from lm_eval.tasks import TaskManager

    included = str(general.include_path) if general.include_path else None
    return TaskManager(include_path=included, include_defaults=bool(general.names))


def _scores(found: Any, name: str) -> list[float]:
    samples = sorted(found["samples"].get(name, []), key=lambda sample: int(sample["doc_id"]))
    scores = []
    for sample in samples:
        values = [sample[metric] for metric in sample["metrics"]]
        if not values or not isinstance(values[0], int | float):
            raise InvalidSuite(
                f"lm-eval's task {name!r} does not score single documents with a number",
                field="general",
                fix="use a task with accuracy or another score of each document",
            )
        scores.append(float(values[0]))
    if not scores:
        raise InvalidSuite(f"lm-eval's task {name!r} returned no results", field="general")
    return scores
