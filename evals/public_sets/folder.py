"""Writes the folder of a fetched suite."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from evals.public_sets.catalog import Row
from evals.public_sets.fetch import Origin
from evals.suite import SPEC_FILE
from serving.contracts.task_spec import TaskSpec
from serving.host.safe_write import refuse_used_output

# JSON does not escape these characters, and some readers split lines at them.
_LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


def write_suite(rows: Sequence[Row], spec: TaskSpec, out: Path, origin: Origin) -> None:
    """Write a suite's folder: the examples, their origin, and the task.

    out: absent or an empty folder. Blocking. Raises OutputInUse.
    """
    refuse_used_output(out)
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False).translate(_LINE_ENDS) + "\n" for row in rows]
    (out / "test.jsonl").write_text("".join(lines), encoding="utf-8")
    (out / "datasheet.md").write_text(datasheet(origin, len(rows), spec), encoding="utf-8")
    # Written last: a folder without it is not a suite.
    content = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (out / SPEC_FILE).write_text(content, encoding="utf-8")


def datasheet(origin: Origin, number: int, spec: TaskSpec) -> str:
    """Return the origin and selection of a fetched suite as Markdown, without a date."""
    source = origin.source
    if origin.files:
        where = [f"- file: `{name}`, SHA-256 `{hash_}`" for name, hash_ in origin.files.items()]
    else:
        configs = ", ".join(config for config in source.configs if config)
        part = f", {configs}" if configs else ""
        where = [f"- hub: `{source.hub_id}`{part}, split {source.split}",
                 f"- revision: `{origin.revision}`"]  # fmt: skip
    drawn = (
        "all that the task can use"
        if origin.limit is None
        else f"at most {origin.limit}, drawn with seed {origin.seed}, labels in their shares"
    )
    return "\n".join(
        [
            f"# {source.name}", "",
            f"- data set: {source.name} (usually from `{source.hub_id}`)", *where,
            f"- task: {spec.name}, {spec.digest()}",
            f"- examples: {number} ({drawn})",
            "- left out: rows that a suite cannot hold (a text without a visible character or of "
            "more than 20,000 characters), and texts that are repeated, answered in two ways or in "
            "the task's prompt",
            "- licence: check it at the source before passing this folder on", "",
        ]
    )  # fmt: skip
