"""Problems that pydantic finds in settings and files, in the words of these pages. Pure."""

import re
from collections.abc import Mapping
from typing import Any

_NAME_RULE = "small letters, digits, hyphens"
_PATTERNS: Mapping[str, str] = {
    r"^[a-z][a-z0-9-]{0,63}/\S{1,200}$": "provider/model, such as openai/gpt-6-luna",
    r"^[a-z][a-z0-9-]{0,63}$": f"up to 64 {_NAME_RULE}, a letter first",
    r"^[a-z0-9][a-z0-9-]{0,62}$": f"up to 63 {_NAME_RULE}, a letter or digit first",
    r"^[a-z][a-z0-9_-]{0,31}$": f"up to 32 {_NAME_RULE} and underscores, a letter first",
    r"^[a-z][a-z0-9_-]{0,62}$": f"up to 63 {_NAME_RULE} and underscores, a letter first",
    r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$": (
        "up to 128 letters, digits, dots, underscores, slashes and hyphens, a letter or digit first"
    ),
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": "up to 64 letters, digits, dots, underscores and hyphens",
    r"^[A-Za-z_][A-Za-z0-9_]{0,127}$": "the name of an environment variable",
    r"^sha256-[0-9a-f]{64}$": "sha256- and 64 hexadecimal digits",
    r"^[a-z]{2}$": "two small letters, such as en",
    r"^\S(.*\S)?$": "one line without white space at its ends",
    r"^[0-9a-f]{40}$": "40 hexadecimal digits, 0 to 9 and a to f",
    r"^[0-9a-f]{64}$": "64 hexadecimal digits, 0 to 9 and a to f",
    r"^(\*|https?://[^/\s]+)$": "* or an origin, such as https://app.example.com",
    r"^https?://": "an address that begins with https:// or http://",
    r"^[^.\s]{1,60}(\.[^.\s]{1,60}){0,9}$": "the path of a field, such as messages.prefix",
    r"^[^:]*$": "a text without a colon",
}
_KINDS: Mapping[str, str] = {
    "missing": "it is missing",
    "extra_forbidden": "there is no such field",
    "model_attributes_type": "it must be a mapping",
    "model_type": "it must be a mapping",
    "dict_type": "it must be a mapping",
    "mapping_type": "it must be a mapping",
    "list_type": "it must be a list",
    "tuple_type": "it must be a list",
    "string_type": "it must be a text",
    "path_type": "it must be a path; put it in quotes",
    "bool_type": "it must be true or false",
    "bool_parsing": "it must be true or false",
    "int_type": "it must be a whole number",
    "int_parsing": "it must be a whole number",
    "int_parsing_size": "it must be a whole number with fewer digits",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a number",
    "float_parsing": "it must be a number",
    "finite_number": "it must be a number that is not infinite",
    "decimal_type": "it must be a number",
    "decimal_parsing": "it must be a number",
    "json_invalid": "it is not JSON",
    "none_required": "it must be null",
}
_SHOULD = re.compile(r"^(Input|String|Value|List|Tuple|Set|Dictionary|Decimal input) should")
_AFTER = re.compile(r" after validation")


def problem_words(problem: Mapping[str, Any]) -> str:
    """Return what is wrong with a value. problem: one of ValidationError.errors()."""
    kind, message = problem["type"], problem["msg"]
    if kind in _KINDS:
        return _KINDS[kind]
    context = problem.get("ctx") or {}
    if kind == "string_pattern_mismatch":
        pattern = context.get("pattern", "")
        return f"it must be {_PATTERNS.get(pattern, f'a text of the pattern {pattern}')}"
    if kind == "union_tag_not_found":
        return f"it must be a mapping with the field {context['discriminator']}"
    if kind == "union_tag_invalid":
        field, tags = context["discriminator"], context["expected_tags"]
        return f"its field {field} is {context['tag']!r:.60}; it must be one of {tags}"
    text = _AFTER.sub("", message.removeprefix("Value error, "))
    return _SHOULD.sub("it must", text).replace(" should ", " must ")


def problem_with_value(problem: Mapping[str, Any]) -> str:
    """Return what is wrong with a value, and the value where it is short and no secret."""
    words, value = problem_words(problem), problem["input"]
    name = next((part for part in reversed(problem["loc"]) if isinstance(part, str)), "")
    is_plain = isinstance(value, str | int | float) and not _SECRET.search(name)
    if not is_plain or not words.startswith("it must"):
        # An unknown field may hold a secret, too.
        return words
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{words}, not {shown if len(shown) <= _SHOWN_CHARS else shown[:_SHOWN_CHARS] + '...'}"


_SECRET = re.compile("url|key|secret|password|token$", re.IGNORECASE)
_SHOWN_CHARS = 60


def problem_place(problem: Mapping[str, Any], whole: str) -> str:
    """Return the path of a problem's field. whole: what stands for the document itself."""
    return ".".join(str(part) for part in problem["loc"]) or whole
