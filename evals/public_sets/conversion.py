"""Converts records of a source to rows in a suite's format."""

from collections.abc import Iterator, Sequence

from evals.public_sets.catalog import FLORES, PublicSet, Row
from evals.public_sets.records import named
from serving.contracts.errors import InvalidSuite
from serving.contracts.task_spec import ClassificationSpec, ExtractionSpec, TaskSpec


def converted(source: PublicSet, spec: TaskSpec, records: Iterator[Row]) -> Iterator[Row]:
    """Yield one row per example, in the source's order. spec: a task of the set's kind.

    Raises InvalidSuite with the first record that the task cannot use.
    """
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
    known = named(record["label"], source.names)
    label = source.renamed.get(known, known)
    if label not in (allowed := [item.name for item in spec.labels]):
        raise ValueError(f"label {label!r} is not one of {allowed}")
    return {"text": str(text).strip(), "label": label}


def _extracted(source: PublicSet, spec: ExtractionSpec, record: Row) -> Row:
    if "entities" in record:
        text, entities = str(record["text"]), record["entities"]
    else:
        text, entities = mentions(record["tokens"], named(record["ner_tags"], source.names))
    renamed = [
        {"text": item["text"], "type": source.renamed.get(item["type"], item["type"])}
        for item in entities
    ]
    if unknown := {item["type"] for item in renamed} - {item.name for item in spec.entity_types}:
        raise ValueError(f"the task has no entity type {sorted(unknown)}")
    return {"text": text, "entities": renamed}


def mentions(tokens: Sequence[str], tags: Sequence[str]) -> tuple[str, list[dict[str, str]]]:
    """Return the text and its entities (text, type) in order of appearance.

    tokens, tags: (n,); tags are O, B-type or I-type, and an I- whose type differs from the previous
    tag's begins an entity. Tokens are joined by single spaces, so that each entity occurs in the
    text. Raises ValueError for unequal lengths.
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
    """Yield one row per sentence, from one column or one table per language."""
    sentences: dict[str, Row] = {}
    for index, record in enumerate(records):
        single = str(record.get("iso_639_3"))
        name = f"{source.name}-{record.get('id', index)}"
        row = sentences.setdefault(name, {"id": name})
        for code, flores in FLORES.items():
            text = record.get(code) or record.get(f"sentence_{flores}")
            if flores.startswith(f"{single}_"):
                text = record.get("text")
            if text and code in getattr(spec, "languages", ()):
                row[code] = str(text).strip()
    yield from (row for row in sentences.values() if len(row) > 2)
