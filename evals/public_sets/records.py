"""Reads the records of a public data set from the hub at a commit, or from local files."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from evals.public_sets.catalog import PublicSet, Row
from serving.contracts.errors import InvalidSuite

LOADERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
"""The loader of a local file, by suffix."""


def from_hub(source: PublicSet, revision: str) -> Iterator[Row]:
    """Yield the set's records at a commit. Blocking: downloads. Raises InvalidSuite."""
    part = None
    if source.folder is not None:
        part = {source.split: f"{source.folder}/{source.split}/*.parquet"}
    for config in source.configs:
        yield from _load(
            f"{source.hub_id} at {revision}", source.hub_id,
            name=config, data_files=part, split=source.split, revision=revision,
        )  # fmt: skip


def from_files(files: Sequence[Path]) -> Iterator[Row]:
    """Yield the records of files with known suffixes, in order. Blocking. Raises InvalidSuite."""
    for path in files:
        # A temporary cache: the shared cache would hold a copy of every file.
        with tempfile.TemporaryDirectory() as cache:
            rows = _load(
                path.name, LOADERS[path.suffix.lower()],
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
                row[column] = named(row[column], names)
    return rows


def named(value: Any, names: Sequence[str]) -> Any:
    """Replace class numbers by their names, also in nested lists; return other values unchanged.

    Raises InvalidSuite for a number without a name.
    """
    if isinstance(value, list):
        return [named(item, names) for item in value]
    if isinstance(value, int):
        # The hub writes -1 for the withheld labels of a test split.
        if not 0 <= value < len(names):
            raise InvalidSuite(f"{value} is not a class number of {list(names)}", field="suite")
        return names[value]
    return value
