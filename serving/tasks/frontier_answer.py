"""Reads a frontier model's answer to a task.

Models put JSON into code fences and sentences, change the case of a label and leave out a wrapper
object. Unambiguous answers are read, and notes list what is left out. An ambiguous answer is
unreadable.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.contracts.answer import TaskRequest, Translation, Value
from serving.contracts.errors import FrontierInvalidResponse
from serving.contracts.task_spec import (
    ClassificationSpec,
    ExtractionSpec,
    TranslationSpec,
    folded_name,
)
from serving.tasks.blank_text import is_blank
from serving.tasks.entity_location import locate
from serving.tasks.task import Task
from serving.tasks.translation import TranslationTask
from serving.tasks.translation_check import losses

_FENCE = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)
# Documents looked for in an answer's prose, and characters of the answer that are searched.
_MAX_DOCUMENTS = 300
# Of lists and objects in a document; deeper ones hold no answer.
_MAX_LEVELS = 8
_SEARCHED_CHARS = 200_000
_MARKUP = " \t\r\n*_`\"'“”„«».,;:!#>"
# "Sci-Tech" is also written "Sci/Tech" and "sci tech".
_SEPARATORS = re.compile(r"[\s/&_-]+")
_INTRODUCTION = re.compile(
    r"\A(?:(?:sure|certainly|of course)[,.!]? *)?here(?: is|'s|’s) (?:the|your) "  # noqa: RUF001
    r"(?:[a-z]{1,20} )?translation[^:\n]{0,60}:\s*",
    re.IGNORECASE,
)
_UNFINISHED: Mapping[str, str] = {
    "length": "the output was cut at its bound",
    "content_filter": "the provider's content filter ended the output",
    "refusal": "the model refused the request",
}
# What models call the fields of an entity; the prompt's own names first.
_TEXT_NAMES = ("text", "entity", "mention", "span")
_TYPE_NAMES = ("type", "label", "entity_type", "category")
_FINISHED = frozenset({"stop", "end_turn", "stop_sequence", "eos", "none", ""})


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """A frontier model's answer in the task's terms.

    valid: the answer is whole. notes: what is missing or was left out, and why.
    """

    value: Value
    valid: bool
    notes: tuple[str, ...] = ()


def read_frontier(task: Task, request: TaskRequest, text: str, finish_reason: str) -> ParsedAnswer:
    """Return the answer in a completion's text.

    finish_reason: of the completion, in OpenAI's words. An answer that ended for another reason
    than `stop` is not valid. Raises FrontierInvalidResponse where the text holds no answer or more
    than one.
    """
    spec = task.spec
    unfinished = _unfinished(finish_reason)
    text = _without_reasoning(text)
    match spec:
        case ClassificationSpec():
            label = _label(spec, text)
            if label is None:
                raise _unreadable(spec.name, text, unfinished)
            return ParsedAnswer(label, not unfinished, unfinished)
        case ExtractionSpec():
            items = _items(text)
            if items is None:
                raise _unreadable(spec.name, text, unfinished)
            mentions, notes = _mentions(spec, items)
            if items and not mentions and notes.get("malformed"):
                raise _unreadable(spec.name, text, unfinished)
            entities, missing = locate(mentions, request.text)
            valid = not unfinished and "malformed" not in notes
            return ParsedAnswer(tuple(entities), valid, (*notes.values(), *missing, *unfinished))
        case TranslationSpec():
            assert isinstance(task, TranslationTask)
            source, target = task.direction(request)
            translated = _translation(text, request.text)
            if is_blank(translated):
                raise _unreadable(spec.name, text, unfinished)
            check = losses(request.text, translated, source, target)
            value = Translation(
                text=translated,
                source_language=source,
                target_language=target,
                source_detected=request.source_language is None,
            )
            return ParsedAnswer(value, check.valid and not unfinished, (*unfinished, *check.notes))


def _without_reasoning(text: str) -> str:
    """Return an answer without the reasoning that some open models write in front of it."""
    if not text.lstrip().startswith("<think>"):
        return text
    return text.rpartition("</think>")[2]


def _unfinished(finish_reason: str) -> tuple[str, ...]:
    """Return a note for an output that did not end by itself."""
    if finish_reason.casefold() in _FINISHED:
        return ()
    ended = f"the output ended with finish_reason {finish_reason!r}"
    return (_UNFINISHED.get(finish_reason, ended),)


def _label(spec: ClassificationSpec, text: str) -> str | None:
    """Return the name of the one label that an answer holds; None for none or several."""
    names = {label.verbalizer: label.name for label in spec.labels}
    folded = _by_folded_name(names)

    def named(written: str) -> str | None:
        for form in (written.strip(), written.strip(_MARKUP)):
            if name := names.get(form) or folded.get(_folded(form)):
                return name
        return None

    documents = list(_documents(text))
    found = {named(written) for document in documents for written in _label_texts(document)}
    if not found:
        found = {named(value) for value in _strings(documents)} - {None}
    if not found - {None} and _json(text) is _NOT_JSON:
        lines = [line for line in text[:_SEARCHED_CHARS].splitlines() if not is_blank(line)]
        after_colon = [line.rpartition(":")[2] for line in lines]
        found = {named(candidate) for candidate in (text, *lines, *after_colon)} - {None}
    return found.pop() if len(found) == 1 else None


def _by_folded_name(names: Mapping[str, str]) -> dict[str, str]:
    """Return the names by their verbalizers' folded form, without forms that two of them share."""
    forms = Counter(map(_folded, names))
    return {_folded(text): name for text, name in names.items() if forms[_folded(text)] == 1}


def _folded(name: str) -> str:
    return " ".join(_SEPARATORS.split(folded_name(name))).strip()


def _label_texts(document: object, levels: int = _MAX_LEVELS) -> list[str]:
    """Return what a JSON document gives as its label; empty where it has no field for one."""
    if not levels:
        return []
    match document:
        case str():
            return [document]
        case bool() | int() | float():
            return [json.dumps(document)]
        case list():
            return [text for item in document for text in _label_texts(item, levels - 1)]
        case dict():
            fields = {key.strip().casefold(): value for key, value in document.items()}
            if "label" not in fields:
                return []
            inner = fields["label"]
            return _label_texts(inner, levels - 1) or list(_strings(inner)) or [""]
    return []


def _strings(document: object) -> Iterator[str]:
    """Yield every string value in the upper levels of a JSON document."""
    level = [document]
    for _ in range(_MAX_LEVELS):
        yield from (value for value in level if isinstance(value, str))
        lists = (each for each in level if isinstance(each, list))
        objects = (each.values() for each in level if isinstance(each, dict))
        level = [value for values in (*lists, *objects) for value in values]


def _items(text: str) -> list[Any] | None:
    """Return the entities that an answer lists, as JSON; None where it holds no list or several."""
    documents = list(_documents(text))
    wrapped = [items for each in documents if (items := _wrapped(each)) is not None]
    if wrapped:
        return wrapped[0] if all(items == wrapped[0] for items in wrapped) else None
    single = [each for each in documents if isinstance(each, dict) and None not in _mention(each)]
    if single:
        return single
    lists = [each for each in documents if isinstance(each, list)]
    if len(lists) > 1:
        lists = [each for each in lists if all(isinstance(item, dict) for item in each)]
    return lists[0] if lists and all(each == lists[0] for each in lists) else None


def _wrapped(document: object) -> list[Any] | None:
    """Return the list in the field `entities` of an object, or in an object's only list."""
    if isinstance(document, list) and len(document) == 1:
        document = document[0]
    if not isinstance(document, dict):
        return None
    for key, value in document.items():
        if key.strip().casefold() == "entities":
            return value if isinstance(value, list) else None
    lists = [value for value in document.values() if isinstance(value, list)]
    return lists[0] if len(lists) == 1 else None


def _mention(item: object) -> tuple[str | None, str | None]:
    """Return text and type of an entity; None if one is missing or not a text."""
    fields = item if isinstance(item, dict) else {}
    fields = {key.strip().casefold(): value for key, value in fields.items()}
    text, written = (
        next((fields[name] for name in names if isinstance(fields.get(name), str)), None)
        for names in (_TEXT_NAMES, _TYPE_NAMES)
    )
    return text, written


def _mentions(
    spec: ExtractionSpec, items: Sequence[Any]
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Return (text, type) pairs, and a note for each kind of item that was left out."""
    types = {folded_name(item.name): item.name for item in spec.entity_types}
    mentions: list[tuple[str, str]] = []
    malformed, unknown = 0, set()
    for item in items:
        text, written = _mention(item)
        if text is None or written is None:
            malformed += 1
            continue
        known = types.get(folded_name(written))
        if known is None:
            unknown.add(written[:40])
        else:
            mentions.append((text, known))
    notes = {}
    if malformed:
        notes["malformed"] = f"entities left out because they could not be read: {malformed}"
    if unknown:
        listed = ", ".join(sorted(map(repr, unknown))[:5])
        notes["unknown"] = f"entities left out because the task has no such type: {listed}"
    return mentions, notes


def _translation(text: str, source: str) -> str:
    """Return the translation without text that a model adds around it."""
    found, source = text.strip(), source.strip()
    fenced = _FENCE.fullmatch(found)
    if fenced and "```" not in source:
        found = fenced[1].strip()
    if not _INTRODUCTION.match(source):
        found = found[match.end() :] if (match := _INTRODUCTION.match(found)) else found
    if found.startswith("{") and not source.startswith("{"):
        document = _json(found)
        texts = list(document.values()) if isinstance(document, dict) else []
        if len(texts) == 1 and isinstance(texts[0], str):
            found = texts[0].strip()
    is_quoted = len(found) > 2 and found[0] == found[-1] == '"' and '"' not in found[1:-1]
    return found[1:-1].strip() if is_quoted and '"' not in source else found


def _documents(text: str) -> Iterator[object]:
    """Yield the JSON documents of an answer: the whole of it, or those in its prose."""
    text = text.strip()
    whole = _json(text)
    if whole is not _NOT_JSON:
        yield whole
        return
    text = text[:_SEARCHED_CHARS]
    decoder = json.JSONDecoder()
    position = 0
    for _ in range(_MAX_DOCUMENTS):
        match = _OPENING.search(text, position)
        if match is None:
            return
        try:
            document, position = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            position = match.start() + 1
        else:
            yield document


_OPENING = re.compile(r"[\[{]")
_NOT_JSON = object()


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _unreadable(task: str, text: str, unfinished: Sequence[str]) -> FrontierInvalidResponse:
    why = unfinished[0] if unfinished else "it holds no answer, or more than one"
    return FrontierInvalidResponse(
        f"the frontier model was paid for an answer to task {task!r} that cannot be read "
        f"({len(text)} characters): {why}",
        fix="use another model in frontier.tiers if it recurs; a repeat is paid for again",
    )
