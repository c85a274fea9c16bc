"""Checks the JSON schema of a response format before an engine or a provider gets it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from serving.contracts.errors import InvalidRequest

_TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array", "null"})
_MAPS = ("properties", "$defs", "definitions", "patternProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SINGLE = (
    "items",
    "additionalProperties",
    "not",
    "contains",
    "propertyNames",
    "if",
    "then",
    "else",
)
_SAME_VALUE = ("allOf", "anyOf", "oneOf")
"""Keywords whose schemas describe the value itself, not a part of it."""
_MAX_VALUES = 10_000
_MAX_DEPTH = 64


def check_schema(schema: Any, path: str) -> None:
    """Raise InvalidRequest, with the path, for a schema that no value can be generated from.

    Refuses keywords of the wrong type, references to a missing place or outside the schema,
    references to themselves without a property or an item in between, and a schema of more than
    10,000 values or 64 levels.
    """
    _require_bounded(schema, path)
    for where, node in _schemas(schema, path):
        _check_keywords(node, where)
        if "$ref" in node:
            _resolved(schema, node["$ref"], f"{where}.$ref")
    done: set[int] = set()
    for where, node in _schemas(schema, path):
        _check_ends(schema, node, where, set(), done)


def _require_bounded(schema: Any, path: str) -> None:
    if count_values(schema, _MAX_VALUES, _MAX_DEPTH) is None:
        raise _broken(path, f"holds more than {_MAX_VALUES} values or {_MAX_DEPTH} levels")


def count_values(document: Any, max_values: int, max_levels: int) -> int | None:
    """Return how many values a JSON document holds, itself included; None beyond a limit."""
    level, count = [document], 0
    for _ in range(max_levels):
        count += len(level)
        if count > max_values:
            return None
        level = [item for outer in level for item in _items(outer)]
        if not level:
            return count
    return None


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list) else ()


def _schemas(node: Any, path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every schema in a schema, with its path. Raises InvalidRequest for an invalid one."""
    waiting = [(path, node)]
    while waiting:
        where, found = waiting.pop()
        if isinstance(found, bool):
            continue
        if not isinstance(found, Mapping):
            raise _broken(where, "is not a schema (an object or a boolean)")
        yield where, found
        for name in _MAPS:
            inner = found.get(name, {})
            if not isinstance(inner, Mapping):
                raise _broken(f"{where}.{name}", "is not an object of schemas")
            waiting += [(f"{where}.{name}.{key[:60]}", item) for key, item in inner.items()]
        for name in _LISTS:
            inner = found.get(name, [True])
            if not isinstance(inner, list) or not inner:
                raise _broken(f"{where}.{name}", "is not a list of at least one schema")
            waiting += [(f"{where}.{name}.{i}", item) for i, item in enumerate(inner)]
        waiting += [(f"{where}.{name}", found[name]) for name in _SINGLE if name in found]


def _check_keywords(node: Mapping[str, Any], path: str) -> None:
    kinds = node.get("type", "object")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if not kinds or any(not isinstance(kind, str) or kind not in _TYPES for kind in kinds):
        raise _broken(f"{path}.type", "is not one of " + ", ".join(sorted(_TYPES)))
    required = node.get("required", [])
    if not isinstance(required, list) or any(not isinstance(name, str) for name in required):
        raise _broken(f"{path}.required", "is not a list of strings")
    if "enum" in node and (not isinstance(node["enum"], list) or not node["enum"]):
        raise _broken(f"{path}.enum", "is not a list of at least one value")
    if "pattern" in node and not isinstance(node["pattern"], str):
        raise _broken(f"{path}.pattern", "is not a string")


def _resolved(root: Any, reference: Any, path: str) -> Any:
    """Return the schema that a reference names."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise _broken(path, "does not name a place in the schema, such as #/$defs/item")
    node = root
    for part in reference.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, Mapping) and key in node:
            node = node[key]
        elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            raise _broken(path, "names a place that the schema does not have")
    if not isinstance(node, Mapping | bool):
        raise _broken(path, "names a place that is not a schema")
    return node


def _check_ends(root: Any, node: Any, path: str, above: set[int], done: set[int]) -> None:
    """Raise InvalidRequest for a schema whose description of a value never ends."""
    if not isinstance(node, Mapping) or id(node) in done:
        return
    if id(node) in above:
        raise _broken(path, "refers to itself without a property or an item in between")
    if len(above) > _MAX_DEPTH:
        raise _broken(path, f"is over {_MAX_DEPTH} references long")
    above.add(id(node))
    if "$ref" in node:
        _check_ends(root, _resolved(root, node["$ref"], f"{path}.$ref"), path, above, done)
    for name in _SAME_VALUE:
        for item in node.get(name, []):
            _check_ends(root, item, path, above, done)
    above.remove(id(node))
    done.add(id(node))


def _broken(path: str, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path} {reason}", field=path, fix="correct the JSON schema of response_format"
    )
