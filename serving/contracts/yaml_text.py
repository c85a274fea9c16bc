"""Strict reading of YAML documents that people write."""

import re
from collections.abc import Hashable
from typing import Any

import yaml


class UnreadableYaml(ValueError):
    """The text is not UTF-8, not YAML, or says something twice. The message has the place."""


_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(
    r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|nan)", re.IGNORECASE
)


_MOST_VALUES = 1_000_000
_MOST_LEVELS = 100


class BoundedNesting(yaml.scanner.Scanner):
    """Mixin of a loader: brackets far deeper than a document may nest end in a RecursionError.

    PyYAML would raise it itself, after half a second: it looks 1,024 characters ahead, in time that
    is quadratic in the brackets there.
    """

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803  # PyYAML's name
        """Begin a list or mapping. What is a little too deep is refused by its levels, below."""
        if self.flow_level > 2 * _MOST_LEVELS:
            raise RecursionError
        super().fetch_flow_collection_start(TokenClass)


class _StrictLoader(BoundedNesting, yaml.SafeLoader):
    """Refuses a key that is written twice, and values that YAML 1.1 and 1.2 read differently.

    PyYAML reads YAML 1.1: the last of two equal keys counts, yes and on are true, 010 is 8, 2:13 is
    133 and 1_000 is 1000.
    """

    def construct_yaml_bool(self, node: yaml.ScalarNode) -> bool:
        if node.value.lower() not in ("true", "false"):
            raise _ambiguous(node, "true or false", "write true or false, or put it in quotes")
        return bool(node.value.lower() == "true")

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if not _WHOLE.fullmatch(node.value):
            raise _ambiguous(node, "a number", "write it in decimal digits, or put it in quotes")
        return int(node.value)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        if not _FLOAT.fullmatch(node.value):
            raise _ambiguous(node, "a number", "write it in decimal digits, or put it in quotes")
        return float(node.value.lower().replace(".inf", "inf").replace(".nan", "nan"))

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} is written twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


for _kind in ("bool", "int", "float"):
    _StrictLoader.add_constructor(
        f"tag:yaml.org,2002:{_kind}", getattr(_StrictLoader, f"construct_yaml_{_kind}")
    )


def _ambiguous(node: yaml.ScalarNode, kind: str, fix: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(
        None, None, f"YAML reads {node.value} as {kind}: {fix}", node.start_mark
    )


def parse_yaml(content: bytes | str) -> object:
    """Return the value of a YAML document: dicts, lists, strings, numbers, booleans, dates, None.

    Raises UnreadableYaml with the fault and its place.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UnreadableYaml(f"not UTF-8 text (line {line})") from error
    try:
        document = yaml.load(text, _StrictLoader)  # noqa: S506  # derived from SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        strict = isinstance(error, yaml.constructor.ConstructorError)
        kind = "not strict YAML" if strict else "not YAML"
        raise UnreadableYaml(f"{kind}: {error.problem or error.context}{place}") from error
    except yaml.YAMLError as error:
        raise UnreadableYaml(f"not YAML: {error}") from error
    except RecursionError as error:
        raise UnreadableYaml("not readable YAML: nested too deeply") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # PyYAML does not wrap Python's own errors for invalid dates and tagged values.
        raise UnreadableYaml(f"not readable YAML: {error}") from error
    _size(document, {}, 0)
    return document


def _size(value: object, known: dict[int, int | None], level: int) -> int:
    """Return how many values a document has where each alias counts as what it stands for.

    known: sizes by object; None while one is being counted. Raises UnreadableYaml beyond the
    bounds: ten lines of aliases can stand for more values than a memory holds.
    """
    if not isinstance(value, dict | list):
        return 1
    if level > _MOST_LEVELS:
        raise UnreadableYaml(f"nested more than {_MOST_LEVELS} levels deep")
    if id(value) in known:
        size = known[id(value)]
        if size is None:
            raise UnreadableYaml("not usable YAML: an alias (*) stands for what it is part of")
        return size
    known[id(value)] = None
    items = value.values() if isinstance(value, dict) else value
    size = 1 + sum(_size(item, known, level + 1) for item in items)
    if size > _MOST_VALUES:
        raise UnreadableYaml(f"not usable YAML: aliases make more than {_MOST_VALUES} values of it")
    known[id(value)] = size
    return size
