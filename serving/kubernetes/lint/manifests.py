"""Reads manifests with the line of every key, bounded in size and in depth."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from serving.contracts.errors import InvalidRequest

MAX_BYTES = 8 * 2**20
"""The CRD of a RayService is 1 MB; a rendered overlay a tenth of that."""

_MAX_NODES = 500_000
_MAX_DEPTH = 100
_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"


class Fields(dict[str, Any]):
    """A mapping that knows where it was written. line, lines: 1-based; of itself, of its keys."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[str, int] = {}

    def line_of(self, key: str) -> int:
        """Return the line of a key, or of the mapping where it lacks the key."""
        return self.lines.get(key, self.line)


EMPTY = Fields(1)


@dataclass(frozen=True, slots=True)
class Resource:
    """One object. file: as the user named it."""

    file: str
    fields: Fields

    @property
    def kind(self) -> str:
        """Return the kind, or an empty string."""
        return text(self.fields.get("kind"))

    @property
    def name(self) -> str:
        """Return the name, or an empty string."""
        return text(section(self.fields, "metadata").get("name"))

    @property
    def title(self) -> str:
        """Return kind and name, as messages name the object."""
        return f"{self.kind} {self.name!r}"

    @property
    def spec(self) -> Fields:
        """Return the spec, which may be empty."""
        return section(self.fields, "spec")


def read_manifests(file: str, content: bytes) -> list[Resource]:
    """Return the objects of a YAML or JSON file; the items of a List one by one.

    Raises InvalidRequest, which names the file, the line and the fix.
    """
    if len(content) > MAX_BYTES:
        raise _unreadable(file, f"has {len(content)} bytes; at most {MAX_BYTES} are read",
                          "name the files that hold the manifests")  # fmt: skip
    try:
        source = content.decode("utf-8-sig")
        _refuse_too_large(source)
        documents = [_Builder(0).built(node) for node in yaml.compose_all(source, yaml.CSafeLoader)]
    except UnicodeDecodeError as error:
        raise _unreadable(file, f"is not UTF-8 (byte {error.start})", "name a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = "" if mark is None else f" at line {mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error)
        raise _unreadable(file, f"is not YAML: {problem}{place}", "correct the line") from error
    except _TooLarge as error:
        raise _unreadable(
            file,
            f"nests deeper than {_MAX_DEPTH} levels or has more than {_MAX_NODES} values",
            "name the files that hold the manifests",
        ) from error
    except _WrittenTwice as error:
        raise _unreadable(
            file, str(error), "remove one: kustomize and the API server refuse it"
        ) from error
    seen: set[int] = set()
    return [found for document in documents for found in _objects(file, document, seen)]


def section(fields: Mapping[str, Any], *keys: str) -> Fields:
    """Return the mapping under the keys; an empty one where it is absent or no mapping."""
    found: Any = fields
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Fields) else EMPTY


def items(fields: Mapping[str, Any], key: str) -> list[Fields]:
    """Return the mappings of a list; whatever else is in it is left out."""
    found = fields.get(key)
    if not isinstance(found, Sequence) or isinstance(found, str):
        return []
    return [each for each in found if isinstance(each, Fields)]


def text(value: Any) -> str:
    """Return a scalar as text; an empty string for anything else."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int | float) else ""


def mappings(fields: Any) -> Iterator[Fields]:
    """Yield every mapping inside, each once, an alias not again."""
    seen: set[int] = set()
    left = [fields]
    while left:
        found = left.pop()
        if not isinstance(found, Fields | list) or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, Fields):
            yield found
            left.extend(found.values())
        else:
            left.extend(found)


def embedded(source: str, line: int) -> Any:
    """Return a YAML document inside a string of a manifest, or None where it is not YAML.

    line: of the string's first line, so that findings inside point into the file.
    """
    try:
        _refuse_too_large(source)
        node = yaml.compose(source, yaml.CSafeLoader)
        return None if node is None else _Builder(line - 1).built(node)
    except (yaml.YAMLError, _TooLarge, _WrittenTwice):
        return None


def _objects(file: str, document: Any, seen: set[int]) -> Iterator[Resource]:
    """Yield the objects of a document.

    seen: what was yielded; by aliases a List may hold itself, or another List many times.
    """
    if document is None or id(document) in seen:
        return
    seen.add(id(document))
    if not isinstance(document, Fields) or not text(document.get("kind")):
        raise _unreadable(
            file, "holds a document without a kind", "each document must be a Kubernetes object"
        )
    if text(document["kind"]).endswith("List") and isinstance(document.get("items"), list):
        for each in document["items"]:
            yield from _objects(file, each, seen)
        return
    yield Resource(file, document)


class _TooLarge(Exception):
    pass


class _WrittenTwice(Exception):
    pass


def _refuse_too_large(source: str) -> None:
    """Raise _TooLarge before the document is composed: libyaml's composer recurses in C, so that
    50,000 brackets end the process.
    """
    depth = values = 0
    for event in yaml.parse(source, yaml.CSafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        values += isinstance(event, yaml.NodeEvent)
        if depth > _MAX_DEPTH or values > _MAX_NODES:
            raise _TooLarge


class _Builder:
    """Builds values from nodes: each node once, so that aliases of aliases cost nothing."""

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._done: dict[int, Any] = {}

    def built(self, node: yaml.Node) -> Any:
        if id(node) in self._done:
            return self._done[id(node)]
        if isinstance(node, yaml.MappingNode):
            found: Any = Fields(self._line(node))
            self._done[id(node)] = found
            self._fill(found, node)
        elif isinstance(node, yaml.SequenceNode):
            found = self._done[id(node)] = []
            found.extend(self.built(each) for each in node.value)
        else:
            found = self._done[id(node)] = _scalar(node)
        return found

    def _line(self, node: yaml.Node) -> int:
        return int(node.start_mark.line) + 1 + self._offset

    def _fill(self, found: Fields, node: yaml.MappingNode) -> None:
        merged: list[Any] = []
        for key, value in node.value:
            built = self.built(value)
            if key.tag == _MERGE:
                merged.extend(built if isinstance(built, list) else [built])
                continue
            name = str(key.value)
            if name in found:
                raise _WrittenTwice(f"has the key {name!r} twice (line {self._line(key)})")
            found[name] = built
            found.lines[name] = self._line(key)
        # Of a merge (`<<: *base`) what the mapping itself has not counts.
        for other in merged:
            if isinstance(other, Fields) and other is not found:
                for name in other.keys() - found.keys():
                    found[name], found.lines[name] = other[name], other.line_of(name)


def _scalar(node: yaml.Node) -> Any:
    kind = node.tag.removeprefix(_TAG)
    value = str(node.value)
    if kind == "null":
        return None
    if kind == "bool":
        return value.lower() in ("true", "yes", "on")
    if kind == "int" and re.fullmatch(r"[-+]?\d{1,300}", value):
        return int(value)
    if kind == "float" and re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?", value):
        return float(value)
    return value


def _unreadable(file: str, problem: str, fix: str) -> InvalidRequest:
    return InvalidRequest(f"{file!r} {problem}", field="file", fix=fix)
