"""Fetches the rows of a public data set and writes them as a suite, with their origin."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from evals.public_sets.catalog import SETS, PublicSet, Row
from evals.public_sets.conversion import converted
from evals.public_sets.records import LOADERS, from_files, from_hub
from evals.public_sets.selection import distinct, sample
from evals.suite import SPEC_FILE
from serving.contracts.errors import InvalidSuite
from serving.contracts.plain_file import opened_plain
from serving.contracts.task_spec import TaskSpec
from serving.host.safe_write import refuse_used_output

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
# JSON does not escape these characters, and some readers split lines at them.
_LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a suite's rows. files: SHA-256 (hex) by name, empty for the hub. limit: None
    for all.
    """

    source: PublicSet
    revision: str | None
    files: Mapping[str, str]
    limit: int | None
    seed: int


def origin_of(
    name: str, *, revision: str | None, files: Sequence[Path], limit: int | None, seed: int
) -> Origin:
    """Return the origin of a fetch. Blocking: digests the files. Raises InvalidSuite."""
    _checked(name, revision, files)
    digests = {path.name: _digest(path) for path in files}
    return Origin(SETS[name], revision, digests, limit, seed)


def fetch(
    name: str,
    spec: TaskSpec,
    *,
    revision: str | None,
    files: Sequence[Path],
    limit: int | None,
    seed: int,
) -> list[Row]:
    """Return the set's rows in a suite's format, in the source's order.

    revision: the commit on the hub, 40 hex digits; None with files. files: parquet, JSON, JSONL or
    CSV instead of the hub. limit: number of rows to draw, stratified by label; None for all.
    Blocking; downloads if there are no files. Raises InvalidSuite.
    """
    source = _checked(name, revision, files)
    if source.kind != spec.kind:
        raise InvalidSuite(
            f"{name} is a {source.kind}, and task {spec.name!r} is a {spec.kind}",
            field="task",
            fix=f"name a task such as {source.task}",
        )
    if limit is not None and limit < 1:
        raise InvalidSuite(f"limit is {limit}", field="limit", fix="use 1 or more")
    records = from_files(files) if files else from_hub(source, str(revision))
    rows = distinct(list(converted(source, spec, records)), spec)
    if not rows:
        raise InvalidSuite(f"{name} has no row that task {spec.name!r} can use", field="suite")
    return rows if limit is None else sample(rows, limit, seed)


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


def _digest(path: Path) -> str:
    try:
        with opened_plain(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidSuite(
            f"{str(path)!r} cannot be read: {error.strerror}", field="file"
        ) from error


def _checked(name: str, revision: str | None, files: Sequence[Path]) -> PublicSet:
    if name not in SETS:
        raise InvalidSuite(
            f"no data set {name!r}", field="name", fix="use one of: " + ", ".join(sorted(SETS))
        )
    if bool(files) == (revision is not None):
        raise InvalidSuite(
            "the source is ambiguous: pass a revision or files, not both or neither",
            field="revision",
            fix="pass --revision COMMIT or --file PATH",
        )
    if revision is not None and not _COMMIT.match(revision):
        raise InvalidSuite(
            f"revision is {revision!r}: a branch or tag can move",
            field="revision",
            fix="pass the commit, 40 hex digits",
        )
    for path in files:
        if not path.is_file():
            raise InvalidSuite(f"no file {str(path)!r}", field="file")
        if path.suffix.lower() not in LOADERS:
            raise InvalidSuite(
                f"{path.name} has an unknown suffix",
                field="file",
                fix="use one of: " + ", ".join(LOADERS),
            )
    return SETS[name]
