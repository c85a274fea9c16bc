"""A task as it is put to a frontier model, and the answer read back.

The instruction, examples and labels are those of the local prompt; they come first and are the same
for every input, so that a provider's prompt cache applies. Structured tasks ask for a JSON schema.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from serving.contracts.answer import TaskRequest, Translation, Value
from serving.contracts.errors import FrontierInvalidResponse
from serving.contracts.task_spec import ClassificationSpec, ExtractionSpec, TranslationSpec
from serving.tasks.extraction import ENTITY_SCHEMA_LIMITS, entity_schema, locate, parse_mentions
from serving.tasks.prompt import cleaned
from serving.tasks.task import Task
from serving.tasks.translation import TranslationTask

# Reasoning counts as output at every provider, and a model that runs out of it answers nothing.
_REASONING_TOKENS = 512
_STRUCTURE_TOKENS = 24
# Of any tokenizer and language a token is seldom shorter than this, in UTF-8 bytes.
_BYTES_A_TOKEN = 2.5


@dataclass(frozen=True, slots=True)
class FrontierPrompt:
    """Fields of a chat completion, and the bound of its answer in tokens."""

    body: dict[str, Any]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Reading:
    """What a frontier model answered, in the task's terms. notes: what was left out and why."""

    value: Value
    valid: bool
    notes: tuple[str, ...] = ()


def frontier_prompt(task: Task, request: TaskRequest) -> FrontierPrompt:
    """Return what to ask. Raises InvalidRequest, as the task's own `plan` does."""
    text = cleaned(request.text)
    spec = task.spec
    match spec:
        case ClassificationSpec():
            verbalizers = {label.name: label.verbalizer for label in spec.labels}
            shots = [
                (example.text, _json({"label": verbalizers[example.label]}))
                for example in spec.examples
            ]
            schema = _object({"label": {"type": "string", "enum": list(verbalizers.values())}})
            longest = max(len(name.encode()) for name in verbalizers.values())
            body = _body(spec.instruction, shots, text, _format("label", schema))
            return FrontierPrompt(body, _bound(longest))
        case ExtractionSpec():
            shots = [
                (example.text, _json({"entities": [_mention(item) for item in example.entities]}))
                for example in spec.examples
            ]
            schema = _object({"entities": _without_limits(entity_schema(spec))})
            body = _body(spec.instruction, shots, text, _format("entities", schema))
            # Every entity once more, with its type and the JSON around it.
            bound = min(_bound(3 * len(text.encode())), spec.max_output_tokens + _REASONING_TOKENS)
            return FrontierPrompt(body, bound)
        case TranslationSpec():
            assert isinstance(task, TranslationTask)
            source, target = task.direction(request)
            instruction = spec.instruction.replace("{source}", spec.languages[source]).replace(
                "{target}", spec.languages[target]
            )
            shots = [(example[source], example[target]) for example in spec.examples]
            length = math.ceil(spec.output_tokens_per_input_token * len(text.encode()))
            bound = min(_bound(length), spec.max_output_tokens + _REASONING_TOKENS)
            return FrontierPrompt(_body(instruction, shots, text, None), bound)


def read_frontier(task: Task, request: TaskRequest, text: str, finish_reason: str) -> Reading:
    """Return the answer in a completion's text.

    Raises FrontierInvalidResponse where there is none in it.
    """
    spec = task.spec
    cut = finish_reason == "length"
    match spec:
        case ClassificationSpec():
            names = {label.verbalizer: label.name for label in spec.labels}
            found = _field(text, "label")
            if not isinstance(found, str) or found not in names:
                raise _unreadable(spec.name)
            return Reading(names[found], valid=True)
        case ExtractionSpec():
            mentions, complete = parse_mentions(_json(_field(text, "entities")))
            if not complete:
                raise _unreadable(spec.name)
            known = {item.name for item in spec.entity_types}
            entities, notes = locate([item for item in mentions if item[1] in known], request.text)
            return Reading(tuple(entities), not cut, tuple(notes))
        case TranslationSpec():
            assert isinstance(task, TranslationTask)
            source, target = task.direction(request)
            if not text.strip():
                raise _unreadable(spec.name)
            value = Translation(
                text=text.strip(),
                source_language=source,
                target_language=target,
                source_detected=request.source_language is None,
            )
            return Reading(value, not cut, ("the output was cut at its bound",) if cut else ())


def _body(
    instruction: str,
    shots: list[tuple[str, str]],
    text: str,
    response_format: dict[str, Any] | None,
) -> dict[str, Any]:
    messages = [{"role": "system", "content": instruction}]
    for question, answer in shots:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    messages.append({"role": "user", "content": text})
    body: dict[str, Any] = {"messages": messages}
    if response_format is not None:
        body["response_format"] = response_format
    return body


def _bound(output_bytes: int) -> int:
    return _REASONING_TOKENS + _STRUCTURE_TOKENS + math.ceil(output_bytes / _BYTES_A_TOKEN)


def _format(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "json_schema",
        "json_schema": {"name": name, "strict": True, "schema": schema},
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    # Providers demand an object at the root, with every property required.
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _without_limits(schema: Any) -> Any:
    # Providers refuse schemas with limits that their decoding cannot enforce.
    if isinstance(schema, dict):
        return {
            key: _without_limits(value)
            for key, value in schema.items()
            if key not in ENTITY_SCHEMA_LIMITS
        }
    return schema


def _mention(item: Any) -> dict[str, str]:
    return {"text": item.text, "type": item.type}


def _field(text: str, name: str) -> object:
    try:
        document = json.loads(text)
        return document[name]
    except (ValueError, TypeError, KeyError):
        return None


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _unreadable(task: str) -> FrontierInvalidResponse:
    return FrontierInvalidResponse(
        f"the frontier model's output is no answer to the task {task!r}",
        fix="retry; if it recurs, use another model in frontier.tiers",
    )
