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
# Milliseconds of one core, fitted to xgrammar on AMD EPYC and a vocabulary of 49,000 tokens: each
# optional property may follow every other one, each bounded length of a text is compared with the
# whole vocabulary, and repetitions in patterns are written out.
_MAX_COST_MS = 4_500.0
_OPTIONAL_PAIR_MS, _PATTERN_PAIR_MS = 0.0014, 0.00024
_CHARACTER_MS, _MOST_LENGTH_MS = 7.0, 1_400.0
_MOST_STEPS = 100_000
_BRACES = re.compile(r"\{(\d{1,9})?(?:,(\d{1,9})?)?\}")
# Applied to the same value as the schema that holds them: a cycle through these never ends.
_IN_PLACE = ("allOf", "anyOf", "oneOf")


def refuse_broken_schema(body: Mapping[str, Any]) -> None:
    """Raise InvalidRequest for a response format whose schema no grammar can be made of.

    Refused are references to a missing place, outside the schema or to themselves, and a schema
    of more than 10,000 values or 64 levels, or of which a grammar would take more than about four
    seconds.
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
    if _cost_ms(nodes) > _MAX_COST_MS:
        raise InvalidRequest(
            "a grammar of this schema would take the engine too long",
            field=field,
            fix="require more of its properties (about 1,500 of an object may be optional), use "
            "at most three different lengths of texts, or repeat less in patterns",
        )


def _cost_ms(nodes: list[Mapping[str, Any]]) -> float:
    """Return about what a grammar costs. Equal lengths cost once, and repeated items nothing."""
    lengths = {
        (_count(node, "minLength"), _count(node, "maxLength"))
        for node in nodes
        if "minLength" in node or "maxLength" in node
    }
    texts = sum(min(_MOST_LENGTH_MS, _CHARACTER_MS * max(pair)) for pair in lengths)
    return texts + sum(map(_own_cost_ms, nodes))


def _own_cost_ms(node: Mapping[str, Any]) -> float:
    properties, required, pattern = map(node.get, ("properties", "required", "pattern"))
    cost = 0.0
    if isinstance(properties, Mapping):
        names = required if isinstance(required, list) else ()
        optional = len(properties) - len({name for name in names if isinstance(name, str)})
        cost += _OPTIONAL_PAIR_MS * max(0, optional) ** 2
    if isinstance(pattern, str):
        steps = 1
        for low, high in _BRACES.findall(pattern):
            # Nested repetitions multiply; those side by side are taken for nested ones.
            steps = min(_MOST_STEPS, steps * max(1, int(low or 1), int(high or 1)))
        cost += _PATTERN_PAIR_MS * steps**2
    return cost


def _count(node: Mapping[str, Any], name: str) -> float:
    value: Any = node.get(name)
    return float(value) if type(value) in (int, float) and 0 <= value < 1e12 else 0.0


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
