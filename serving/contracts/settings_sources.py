"""Reads the settings from their sources. The first wins: command line, environment, file.

A variable is `NARROWGATE_` and the names of the levels, joined by `__`. It holds a list or mapping
as JSON. An empty variable counts as unset. Unknown keys and variables are refused.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from serving.contracts.errors import InvalidSettings
from serving.contracts.plain_file import read_plain
from serving.contracts.settings import Settings
from serving.contracts.validation_words import problem_with_value
from serving.contracts.yaml_text import UnreadableYaml, parse_yaml

ENV_PREFIX = "NARROWGATE_"
_NO_SETTINGS = frozenset({"NARROWGATE_KEY", "NARROWGATE_SIGNING_KEY", "NARROWGATE_PUBLIC_KEY"})
"""The API key that commands send to a gateway, and the keys of a gate in CI (docs/ci.md)."""
_LEVEL = "__"
_MOST_BYTES = 4 * 2**20
_LISTED = "docs/settings.md lists every field with its unit and range"


def load_settings(
    file: Path | None, overrides: Mapping[str, Any], environ: Mapping[str, str] | None = None
) -> Settings:
    """Return the settings merged from a file, the environment and the command line.

    overrides: top-level fields given on the command line; None means not given. environ: this
    process's environment where None. Blocking. Raises InvalidSettings, which names the field, the
    variable or the line at fault.
    """
    merged: dict[str, Any] = {}
    if file is not None:
        merged = _from_file(file)
    for variable, value in sorted((os.environ if environ is None else environ).items()):
        is_setting = variable.upper().startswith(ENV_PREFIX) and variable not in _NO_SETTINGS
        if is_setting and value != "":
            _refuse_lower_case(variable)
            merged = _joined(merged, _from_variable(variable, value))
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return Settings.model_validate(_joined(merged, given))
    except ValidationError as error:
        raise _invalid(error, "the settings are invalid") from error


def _from_file(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise InvalidSettings(
            f"no settings file at {str(file)!r}", field="config", fix="correct the path of --config"
        )
    try:
        content = parse_yaml(read_plain(file, _MOST_BYTES))
    except UnreadableYaml as error:
        raise InvalidSettings(
            f"{str(file)!r} is {error}",
            field="config",
            fix="write YAML in UTF-8; docs/settings.md says which values need quotes",
        ) from error
    except OSError as error:
        raise InvalidSettings(
            f"{str(file)!r} cannot be read: {error.strerror}",
            field="config",
            fix="name a file that this user may read",
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidSettings(
            f"{str(file)!r} does not hold a mapping of settings",
            field="config",
            fix="write one `name: value` a line; narrowgate config prints an example",
        )
    _refuse_bent(content, f"{str(file)!r} is invalid")
    return content


def _refuse_lower_case(variable: str) -> None:
    """Raise InvalidSettings for narrowgate_port: with NARROWGATE_PORT, either could count."""
    if variable != variable.upper():
        raise InvalidSettings(
            f"the environment sets {variable!r}, and names of settings are in capital letters",
            field=variable,
            fix=f"write {variable.upper()}, or unset it",
        )


def _from_variable(variable: str, value: str) -> dict[str, Any]:
    """Return a variable's value below the names of its levels."""
    names = variable[len(ENV_PREFIX) :].lower().split(_LEVEL)
    place = _place(names, variable)
    nested: Any = value
    if place.structured:
        try:
            nested = json.loads(value, object_pairs_hook=_distinct)
        except (ValueError, RecursionError) as error:
            # Not the value: it may hold a secret.
            raise InvalidSettings(
                f"the environment variable {variable} does not hold JSON: {_json_fault(error)}",
                field=variable,
                fix=f"{'.'.join(names)} is a {place.kind}: write it as JSON, such as {place.shown}",
            ) from error
    else:
        _refuse_notation(variable, value, names, place)
    for name in reversed(names):
        nested = {name: nested}
    _refuse_bent(
        nested, f"the environment variable {variable} is invalid", names, strict=place.structured
    )
    return dict(nested)


def _json_fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, json.JSONDecodeError | _TwiceWritten):
        return str(error)
    # Python's own words for a number of more than 4,300 digits.
    return "a number has too many digits"


_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_AMOUNT = re.compile(r"(0|[1-9][0-9]*)(\.[0-9]+)?|\.[0-9]+")
_NUMBER = re.compile(r"-?((0|[1-9][0-9]*)(\.[0-9]+)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_TRUTH_VALUE = re.compile("true|false", re.IGNORECASE)
_PLAIN: Mapping[Any, tuple[re.Pattern[str], str]] = {
    bool: (_TRUTH_VALUE, "true or false"),
    int: (_INTEGER, "a whole number in decimal digits"),
    float: (_NUMBER, "a number in decimal digits"),
    Decimal: (_AMOUNT, "an amount in decimal digits, such as 2.50"),
}


def _refuse_notation(variable: str, value: str, names: list[str], place: "_Place") -> None:
    """Raise InvalidSettings for a number or truth value that a file could not hold as written.

    Python also reads 8_001, +5, other alphabets' digits and white space as numbers, and pydantic
    reads yes, on and 1 as true.
    """
    if place.plain is None or place.plain[0].fullmatch(value):
        return
    raise InvalidSettings(
        f"the environment variable {variable} is invalid: {'.'.join(names)} is {value[:60]!r}, "
        f"which is not {place.plain[1]}",
        field=".".join(names),
        fix=f"write {place.plain[1]}, without quotes, white space or separators",
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """The kind of value of a setting.

    structured: a list or mapping, which a variable holds as JSON. plain: how a number or a truth
    value is written, as a pattern and in words.
    """

    structured: bool
    kind: str = "value"
    shown: str = ""
    plain: tuple[re.Pattern[str], str] | None = None


def _place(names: list[str], variable: str) -> _Place:
    """Return the setting at a path of names. Raises InvalidSettings for an unknown path."""
    annotation: Any = Settings
    for name in names:
        models = _models(annotation)
        if models:
            fields = {key: field for model in models for key, field in model.model_fields.items()}
            if name not in fields:
                raise InvalidSettings(
                    f"the environment sets {variable!r}, which is not a setting",
                    field=variable,
                    fix="unset it or correct the name; levels are joined by two underscores. In "
                    "Kubernetes a Service's name makes such variables: set enableServiceLinks: "
                    "false in the pod",
                )
            annotation = fields[name].annotation
        elif _origin(annotation) is dict:
            annotation = get_args(_plain(annotation))[1]
        else:
            raise InvalidSettings(
                f"the environment sets {variable}, and a list or a value has no settings below it",
                field=variable,
                fix="set the whole list as JSON in one variable",
            )
    if _models(annotation) or _origin(annotation) is dict:
        return _Place(True, "mapping", '{"name": "value"}')
    if _origin(annotation) is tuple:
        return _Place(True, "list", '["first", "second"]')
    return _Place(False, plain=_PLAIN.get(_plain(annotation)))


def _plain(annotation: Any) -> Any:
    """Return a type without Annotated and without None."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return _plain(kinds[0]) if len(kinds) == 1 else annotation
    return annotation


def _origin(annotation: Any) -> Any:
    return get_origin(_plain(annotation))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Return the settings models in a type."""
    plain = _plain(annotation)
    kinds = get_args(plain) if get_origin(plain) in (Union, UnionType) else (plain,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def _refuse_bent(
    content: dict[str, Any], what: str, names: list[str] | None = None, *, strict: bool = True
) -> None:
    """Raise InvalidSettings where a source by itself is wrong at a field that it sets.

    strict: true and texts are not numbers, and 1.0 is not a whole number. names: the path that the
    source sets; another source may set the fields that are missing there.
    """
    for path, value in _scalars(content):
        _refuse_value(value, path, what)
    try:
        text = json.dumps(content, default=str)
        Settings.model_validate_json(text, strict=strict)
    except ValidationError as error:
        prefix = tuple(names or ())
        found = [
            item
            for item in error.errors(include_url=False)
            if item["loc"] and item["type"] != "missing" and _below(item["loc"], prefix)
        ]
        if found:
            raise _invalid(error, what, only=found) from error


def _refuse_value(value: object, path: str, what: str) -> None:
    """Raise InvalidSettings for a value that no setting can hold."""
    # Not the value of a text: it may hold a secret.
    fault, fix = None, _LISTED
    if isinstance(value, float) and not math.isfinite(value):
        fault = f"is {value}, which is not a number of its unit"
    elif isinstance(value, str) and "\0" in value:
        fault = "holds the character NUL, which no path and no name may have"
        fix = "remove the character"
    elif isinstance(value, str) and _HALF_CHARACTER.search(value):
        fault, fix = "holds half of a character, or is not UTF-8", "write it in UTF-8"
    elif not isinstance(value, str | int | float | None):
        fault = f"is read as a {type(value).__name__}, which no setting is"
        fix = "put it in quotes, if it is a text"
    if fault is not None:
        raise InvalidSettings(f"{what}: {path} {fault}", field=path, fix=fix)


_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_MOST_LEVELS = 100


def _scalars(value: Any, path: str = "", level: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield every key of a source's content, and every value that is no list and no mapping.

    With its path. Raises InvalidSettings for a mapping with a key that is no text, and for one that
    is nested too deeply.
    """
    if level > _MOST_LEVELS:
        raise InvalidSettings(
            f"{path[:60]!r} is nested more than {_MOST_LEVELS} levels deep",
            field=path[:60],
            fix=_LISTED,
        )
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from _scalars(item, f"{path}.{number}", level + 1)
    elif isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise InvalidSettings(
                    f"{path or 'the file'} has the key {str(name)[:60]}, which is not a name",
                    field=path or "config",
                    fix="put the key in quotes, if it is a name",
                )
            where = f"{path}.{name}" if path else name
            yield where.encode(errors="replace").decode(), name
            yield from _scalars(item, where, level + 1)
    else:
        yield path, value


def _below(location: tuple[int | str, ...], prefix: tuple[str, ...]) -> bool:
    return location[: len(prefix)] == prefix


class _TwiceWritten(ValueError):
    """A key of a mapping is written twice."""


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _TwiceWritten(f"the key {key!r} is written twice")
        found[key] = value
    return found


def _joined(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return both merged level by level; a value in `above` takes precedence."""
    joined = dict(below)
    for key, value in above.items():
        current = joined.get(key)
        if isinstance(current, dict) and isinstance(value, dict):
            joined[key] = _joined(current, value)
        else:
            joined[key] = value
    return joined


def _invalid(error: ValidationError, what: str, only: Any = None) -> InvalidSettings:
    problems = only or error.errors(include_url=False)
    shown = problems[:_SHOWN_PROBLEMS]
    placed = [_placed(item) for item in shown]
    listed = "; ".join(f"{place}: {words}" for place, words in placed)
    if len(shown) < len(problems):
        listed += f"; and {len(problems) - len(shown)} more"
    return InvalidSettings(f"{what}: {listed}", field=placed[0][0], fix=_LISTED)


_SHOWN_PROBLEMS = 10


def _placed(problem: Mapping[str, Any]) -> tuple[str, str]:
    """Return the field of a problem, and what is wrong with it."""
    location, words = problem["loc"], _words(problem)
    # Our checks of a whole group name the field in it themselves.
    named = _NAMED.fullmatch(words) if problem["type"] == "value_error" else None
    if named is None:
        return _dotted(location), words
    return _dotted((*location, named["field"])), named["words"]


_NAMED = re.compile(r"(?P<field>[a-z][a-z0-9_.-]*): (?P<words>.+)", re.DOTALL)


def _words(problem: Mapping[str, Any]) -> str:
    if problem["type"] == "extra_forbidden":
        return "there is no such setting"
    return problem_with_value(problem)


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "settings"
