"""YAML documents that people write: read strictly, so that a file means what it says."""

from collections.abc import Hashable
from typing import Any

import yaml


class UnreadableYaml(ValueError):
    """The text is not UTF-8, not YAML, or says something twice. The message has the place."""


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that is written twice. PyYAML keeps the last one without a word."""

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


def parse_yaml(content: bytes | str) -> object:
    """Return the value of a YAML document: dicts, lists, strings, numbers, booleans, dates, None.

    Raises UnreadableYaml, which says what is wrong and where.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UnreadableYaml(f"not UTF-8 text (line {line})") from error
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506  # derived from SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""
        raise UnreadableYaml(f"not YAML: {error.problem or error.context}{place}") from error
    except yaml.YAMLError as error:
        raise UnreadableYaml(f"not YAML: {error}") from error
    except RecursionError as error:
        raise UnreadableYaml("not readable YAML: nested too deeply") from error
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # PyYAML lets through what Python says of a date or a tagged value that does not exist.
        raise UnreadableYaml(f"not readable YAML: {error}") from error
