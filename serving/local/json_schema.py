"""Checks a client's JSON schema before a grammar is made of it, in time linear in its size.

The engine makes grammars beside its requests, and a request's deadline does not stop it: a schema
that takes it seconds delays every request. So what a schema costs is estimated before.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from serving.contracts.errors import InvalidRequest

_MAX_NODES = 10_000
_MAX_DEPTH = 64
# Cost in tenths of a millisecond of one core, fitted to xgrammar on AMD EPYC: each optional
# property may follow every other one, and a bounded repetition is written out.
_MAX_COST = 10_000
_OPTIONAL_PAIR, _CHARACTER, _REPEATED_CHARACTER, _PATTERN_STEP = 0.014, 0.7, 0.14, 1.0
_BRACES = re.compile(r"\{(\d{1,9})?(?:,(\d{1,9})?)?\}")
# Applied to the same value as the schema that holds them: a cycle through these never ends.
_IN_PLACE = ("allOf", "anyOf", "oneOf")


def refuse_broken_schema(body: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for a response format whose schema no grammar can be made of.

    Refused are references to a missing place, outside the schema or to themselves, and a schema
    of more than 10,000 values or 64 levels, or of which a grammar would take more than about a
    second.
    """
    form = body.get("response_format")
    if not isinstance(form, Mapping) or form.get("type") != "json_schema":
        return
    wrapper = form.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, Mapping) else None
    if isinstance(schema, Mapping):
        _check(schema, "response_format.json_schema.schema")


def _check(schema: Mapping[str, Any], field: str) -> None:
    nodes = list(_nodes(schema, field))
    edges: dict[int, list[object]] = {}
    for node in nodes:
        targets: list[object] = []
        if "$ref" in node:
            targets.append(_target(schema, node["$ref"], field))
        for keyword in _IN_PLACE:
            members = node.get(keyword)
            targets += members if isinstance(members, list) else []
        edges[id(node)] = targets
    _refuse_cycle(nodes, edges, field)
    if _cost(schema) > _MAX_COST:
        raise InvalidRequest(
            "a grammar of this schema would take the engine too long",
            field=field,
            fix="require more of its properties (about 800 of an object may be optional), or lower "
            "maxLength, maxItems and the repetitions of patterns",
        )


def _cost(schema: Mapping[str, Any]) -> float:
    """Return about what a grammar costs, in tenths of a millisecond. References cost nothing."""
    total, waiting = 0.0, [(schema, 1)]
    while waiting and total <= _MAX_COST:
        node, times = waiting.pop()
        total += times * _own_cost(node, is_repeated=times > 1)
        items = _largest(node, "minItems", "maxItems")
        for name, child in node.items():
            is_repeated = name in ("items", "contains") and items > 1
            each = times * items if is_repeated else times
            waiting += [(found, each) for found in _schemas(child)]
    return total


def _own_cost(node: Mapping[str, Any], *, is_repeated: bool) -> float:
    properties, required = node.get("properties"), node.get("required")
    cost = 1.0
    if isinstance(properties, Mapping):
        names = required if isinstance(required, list) else ()
        optional = len(properties) - len({name for name in names if isinstance(name, str)})
        cost += _OPTIONAL_PAIR * max(0, optional) ** 2
    character = _REPEATED_CHARACTER if is_repeated else _CHARACTER
    cost += character * _largest(node, "minLength", "maxLength")
    pattern = node.get("pattern")
    if isinstance(pattern, str):
        steps = 1
        for low, high in _BRACES.findall(pattern):
            # Nested repetitions multiply; those side by side are taken for nested ones.
            steps = min(_MAX_COST, steps * max(1, int(low or 1), int(high or 1)))
        cost += _PATTERN_STEP * steps
    return cost


def _largest(node: Mapping[str, Any], *names: str) -> int:
    counts: list[Any] = [node.get(name) for name in names]
    return max((int(n) for n in counts if type(n) in (int, float) and 0 <= n < 1e12), default=0)


def _schemas(value: object) -> Iterator[Mapping[str, Any]]:
    """Yield the objects directly within a keyword's value: schemas, or properties of schemas."""
    if isinstance(value, Mapping):
        yield value
    elif isinstance(value, list):
        yield from (item for item in value if isinstance(item, Mapping))


def _nodes(schema: Mapping[str, Any], field: str) -> Iterator[Mapping[str, Any]]:
    waiting: list[tuple[object, int]] = [(schema, 0)]
    seen = 0
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if seen > _MAX_NODES or depth > _MAX_DEPTH:
            raise InvalidRequest(
                f"the schema has more than {_MAX_NODES} values or {_MAX_DEPTH} levels",
                field=field,
                fix="send a smaller schema",
            )
        if isinstance(node, Mapping):
            yield node
            waiting += [(child, depth + 1) for child in node.values()]
        elif isinstance(node, list):
            waiting += [(child, depth + 1) for child in node]


def _target(schema: Mapping[str, Any], reference: object, field: str) -> object:
    if isinstance(reference, str) and reference.startswith("#"):
        node: object = schema
        for part in reference.removeprefix("#").split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(node, Mapping) and name in node:
                node = node[name]
            elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            else:
                break
        else:
            return node
    raise InvalidRequest(
        f"$ref {str(reference)[:100]!r} names no part of the schema",
        field=field,
        fix="refer to a part of the same schema, such as #/$defs/NAME",
    )


def _refuse_cycle(
    nodes: list[Mapping[str, Any]], edges: Mapping[int, list[object]], field: str
) -> None:
    done: set[int] = set()
    for start in nodes:
        # Depth first without recursion; `open_` holds the nodes on the present path.
        stack: list[tuple[int, Iterator[object]]] = []
        open_: set[int] = set()
        if id(start) not in done:
            stack.append((id(start), iter(edges[id(start)])))
            open_.add(id(start))
        while stack:
            current, targets = stack[-1]
            target = next(targets, None)
            if target is None:
                stack.pop()
                open_.discard(current)
                done.add(current)
            elif id(target) in open_:
                raise InvalidRequest(
                    "the schema refers to itself without a property or an item in between",
                    field=field,
                    fix="put the reference under properties or items",
                )
            elif id(target) in edges and id(target) not in done:
                stack.append((id(target), iter(edges[id(target)])))
                open_.add(id(target))
