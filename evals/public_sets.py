"""Public data sets by name, turned into suites.

A set comes from the hub at a commit, or from local files. Texts stay as they are in the source;
what a suite cannot hold is left out: a text that is empty, that comes again, that has two different
answers, or that the task's own prompt shows.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from evals.suite import SPEC_FILE
from evals.suite_check import few_shot_digests
from serving.contracts.errors import InvalidSuite
from serving.contracts.task_spec import ClassificationSpec, ExtractionSpec, TaskSpec
from serving.local.safe_write import refuse_used_output
from serving.tasks.fingerprint import text_digest

Row = dict[str, Any]

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_LOADERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
_WNUT = ("corporation", "creative-work", "group", "location", "person", "product")
_CONLL = {"PER": "person", "ORG": "organization", "LOC": "location", "MISC": "miscellaneous"}
# JSON leaves these as they are, and whoever reads the file by lines ends one there.
_LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
# FLORES' names of the languages; rows of its single-language tables carry the first part.
_FLORES = {"en": "eng_Latn", "de": "deu_Latn", "fr": "fra_Latn", "es": "spa_Latn"}


@dataclass(frozen=True, slots=True)
class PublicSet:
    """A data set known by name.

    task: the built-in task that it fits. configs, folder: which part of the repository. names: what
    the source's integers mean, in order. renamed: names of the source that are others here.
    """

    name: str
    kind: Literal["classification", "extraction", "translation"]
    task: str
    hub_id: str
    split: str
    configs: tuple[str | None, ...] = (None,)
    folder: str | None = None
    names: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)


def _bio(types: Sequence[str]) -> tuple[str, ...]:
    return ("O", *(f"{prefix}-{name}" for name in types for prefix in "BI"))


# CoNLL-2003 and WNUT-17 are loading scripts on their main branch, which `datasets` no longer runs;
# a commit of their refs/convert/parquet holds the same rows in `folder`.
SETS = {
    found.name: found
    for found in (
        PublicSet("sst2", "classification", "sentiment", "stanfordnlp/sst2", "validation",
                  names=("negative", "positive")),
        PublicSet("tweet_eval", "classification", "sentiment", "cardiffnlp/tweet_eval", "test",
                  configs=("sentiment",), names=("negative", "neutral", "positive")),
        PublicSet("ag_news", "classification", "topic", "fancyzhx/ag_news", "test",
                  names=("World", "Sports", "Business", "Sci/Tech"),
                  renamed={"Sci/Tech": "Sci-Tech"}),
        PublicSet("conll2003", "extraction", "ner", "eriktks/conll2003", "test",
                  folder="conll2003", names=_bio(tuple(_CONLL)), renamed=_CONLL),
        PublicSet("wnut17", "extraction", "ner", "leondz/wnut_17", "test", folder="wnut_17",
                  names=_bio(_WNUT),
                  renamed={"corporation": "organization", "group": "organization",
                           "creative-work": "miscellaneous", "product": "miscellaneous"}),
        PublicSet("flores", "translation", "translation", "openlanguagedata/flores_plus",
                  "devtest", configs=tuple(_FLORES.values())),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Origin:
    """Where rows came from. files: SHA-256 (hex) by name; none from the hub. limit: None: all."""

    source: PublicSet
    revision: str | None
    files: Mapping[str, str]
    limit: int | None
    seed: int


def origin_of(
    name: str, *, revision: str | None, files: Sequence[Path], limit: int | None, seed: int
) -> Origin:
    """Return the record of a fetch. Blocking: digests the files. Raises InvalidSuite."""
    _checked(name, revision, files)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
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
    CSV instead of the hub. limit: how many rows to draw, with the labels in the shares that they
    have; None for all. Blocking, and reaches the network where there are no files.
    Raises InvalidSuite.
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
    records = _from_files(files) if files else _from_hub(source, str(revision))
    rows = _distinct(list(_converted(source, spec, records)), spec)
    if not rows:
        raise InvalidSuite(f"{name} gave no row that task {spec.name!r} can use", field="suite")
    return rows if limit is None else sample(rows, limit, seed)


def sample(rows: Sequence[Row], limit: int, seed: int) -> list[Row]:
    """Return `limit` rows in their order, each label's share kept to within one row.

    The rows left over by rounding go to the labels with the largest remainders.
    """
    if limit >= len(rows):
        return list(rows)
    strata: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        strata.setdefault(str(row.get("label", "")), []).append(index)
    quotas = {name: limit * len(found) / len(rows) for name, found in strata.items()}
    taken = {name: int(quota) for name, quota in quotas.items()}
    order = sorted(strata, key=lambda name: (taken[name] - quotas[name], name))
    for name in order[: limit - sum(taken.values())]:
        taken[name] += 1
    random = np.random.default_rng(seed)
    chosen: list[int] = []
    for name in sorted(strata):
        chosen += random.choice(strata[name], taken[name], replace=False).tolist()
    return [rows[index] for index in sorted(chosen)]


def write_suite(rows: Sequence[Row], spec: TaskSpec, out: Path, origin: Origin) -> None:
    """Write a suite's folder: the examples, where they are from, and the task.

    out: absent or an empty folder. Blocking. Raises OutputInUse.
    """
    refuse_used_output(out)
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False).translate(_LINE_ENDS) + "\n" for row in rows]
    (out / "test.jsonl").write_text("".join(lines), encoding="utf-8")
    (out / "datasheet.md").write_text(datasheet(origin, len(rows), spec), encoding="utf-8")
    # Last: a folder without it is no suite.
    content = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    (out / SPEC_FILE).write_text(content, encoding="utf-8")


def datasheet(origin: Origin, number: int, spec: TaskSpec) -> str:
    """Return what a reader must know of a fetched suite, as Markdown. It holds no date."""
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
            "- left out: texts that are empty, repeated, answered in two ways or in the task's "
            "prompt",
            "- licence: check it at the source before passing this folder on", "",
        ]
    )  # fmt: skip


def _checked(name: str, revision: str | None, files: Sequence[Path]) -> PublicSet:
    if name not in SETS:
        raise InvalidSuite(
            f"no data set {name!r}", field="name", fix="use one of: " + ", ".join(sorted(SETS))
        )
    if bool(files) == (revision is not None):
        raise InvalidSuite(
            "a set comes either from the hub or from files",
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
        if path.suffix.lower() not in _LOADERS:
            raise InvalidSuite(
                f"{path.name} is no kind of file that is read",
                field="file",
                fix="use one of: " + ", ".join(_LOADERS),
            )
    return SETS[name]


def _from_hub(source: PublicSet, revision: str) -> Iterator[Row]:
    part = None
    if source.folder is not None:
        part = {source.split: f"{source.folder}/{source.split}/*.parquet"}
    for config in source.configs:
        yield from _load(
            f"{source.hub_id} at {revision}", source.hub_id,
            name=config, data_files=part, split=source.split, revision=revision,
        )  # fmt: skip


def _from_files(files: Sequence[Path]) -> Iterator[Row]:
    for path in files:
        # A cache of its own: the shared one would keep a copy of every file.
        with tempfile.TemporaryDirectory() as cache:
            rows = _load(
                path.name, _LOADERS[path.suffix.lower()],
                data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True,
            )  # fmt: skip
        yield from rows


def _load(what: str, path: str, **options: Any) -> list[Row]:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        dataset = load_dataset(path, **options)
        rows: list[Row] = dataset.to_list()
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise InvalidSuite(
            f"{what} cannot be read: {error}",
            field="suite",
            fix="check id, commit, access (HF_TOKEN) and network, or name local files; for a data "
            "set with a loading script use a commit of its refs/convert/parquet",
        ) from error
    for column, feature in dataset.features.items():
        if names := getattr(getattr(feature, "feature", feature), "names", None):
            for row in rows:
                row[column] = _named(row[column], names)
    return rows


def _named(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if isinstance(value, int):
        # -1 is how the hub writes that a test split's labels are withheld.
        if not 0 <= value < len(names):
            raise InvalidSuite(f"{value} is no class of {list(names)}", field="suite")
        return names[value]
    return value


def _converted(source: PublicSet, spec: TaskSpec, records: Iterator[Row]) -> Iterator[Row]:
    if source.kind == "translation":
        yield from _aligned(source, spec, records)
        return
    for index, record in enumerate(records):
        try:
            if isinstance(spec, ClassificationSpec):
                row = _classified(source, spec, record)
            else:
                assert isinstance(spec, ExtractionSpec)
                row = _extracted(source, spec, record)
        except (KeyError, ValueError) as error:
            raise InvalidSuite(
                f"{source.name}, row {index} with columns {sorted(record)}: {error}", field="suite"
            ) from error
        yield {"id": f"{source.name}-{index}", **row}


def _classified(source: PublicSet, spec: ClassificationSpec, record: Row) -> Row:
    text = record["sentence"] if "sentence" in record else record["text"]
    known = _named(record["label"], source.names)
    label = source.renamed.get(known, known)
    if label not in (allowed := [item.name for item in spec.labels]):
        raise ValueError(f"label {label!r} is none of {allowed}")
    return {"text": str(text).strip(), "label": label}


def _extracted(source: PublicSet, spec: ExtractionSpec, record: Row) -> Row:
    if "entities" in record:
        text, entities = str(record["text"]), record["entities"]
    else:
        text, entities = mentions(record["tokens"], _named(record["ner_tags"], source.names))
    renamed = [
        {"text": item["text"], "type": source.renamed.get(item["type"], item["type"])}
        for item in entities
    ]
    if unknown := {item["type"] for item in renamed} - {item.name for item in spec.entity_types}:
        raise ValueError(f"the task has no entity type {sorted(unknown)}")
    return {"text": text, "entities": renamed}


def mentions(tokens: Sequence[str], tags: Sequence[str]) -> tuple[str, list[dict[str, str]]]:
    """Return the text and its entities (text, type) in order of appearance.

    tokens, tags: (n,); tags are O, B-type or I-type, and an I- of another type than the tag before
    it begins an entity. Tokens are joined by single spaces, so that each entity occurs in the text.
    Raises ValueError for unequal lengths.
    """
    found: list[dict[str, str]] = []
    before = "O"
    for token, tag in zip(tokens, tags, strict=True):
        kind = tag[2:]
        if tag.startswith("I-") and before[2:] == kind:
            found[-1]["text"] += f" {token}"
        elif tag != "O":
            found.append({"text": token, "type": kind})
        before = tag
    return " ".join(tokens), found


def _aligned(source: PublicSet, spec: TaskSpec, records: Iterator[Row]) -> Iterator[Row]:
    """Yield one row a sentence, from columns a language or from tables a language."""
    sentences: dict[str, Row] = {}
    for index, record in enumerate(records):
        single = str(record.get("iso_639_3"))
        name = f"{source.name}-{record.get('id', index)}"
        row = sentences.setdefault(name, {"id": name})
        for code, flores in _FLORES.items():
            text = record.get(code) or record.get(f"sentence_{flores}")
            if flores.startswith(f"{single}_"):
                text = record.get("text")
            if text and code in getattr(spec, "languages", ()):
                row[code] = str(text).strip()
    yield from (row for row in sentences.values() if len(row) > 2)


def _distinct(rows: Sequence[Row], spec: TaskSpec) -> list[Row]:
    shown = few_shot_digests(spec)
    first: dict[str, Row] = {}
    contradicted: set[str] = set()
    kept = []
    for row in rows:
        texts = {code: row[code] for code in ("text", *_FLORES) if code in row}
        digests = {code: text_digest(text) for code, text in texts.items()}
        if not all(texts.values()) or shown & set(digests.values()):
            continue
        keys = [f"{code} {digest}" for code, digest in digests.items()]
        earlier = [first[key] for key in keys if key in first]
        contradicted |= {other["id"] for other in earlier if _answer(other) != _answer(row)}
        if not earlier:
            first |= dict.fromkeys(keys, row)
            kept.append(row)
    return [row for row in kept if row["id"] not in contradicted]


def _answer(row: Row) -> object:
    return row.get("label", row.get("entities"))
