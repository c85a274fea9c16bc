"""The prompt of a task for a frontier model.

Instruction, examples and labels are those of the local prompt. They come first and are equal for
every input, so that a provider's prompt cache applies. Tasks with structured answers ask for a JSON
schema.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from serving.contracts.answer import TaskRequest, Usage
from serving.contracts.task_spec import ClassificationSpec, ExtractionSpec, TranslationSpec
from serving.tasks.extraction import ENTITY_SCHEMA_LIMITS, entity_schema
from serving.tasks.prompt import cleaned
from serving.tasks.task import Task
from serving.tasks.translation import TranslationTask

# Every provider counts reasoning as output. A model that has no tokens left for it returns nothing.
_REASONING_TOKENS = 512
_STRUCTURE_TOKENS = 24
# UTF-8 bytes. Few tokens of any tokenizer and language are shorter.
_BYTES_A_TOKEN = 2.5
# Of English, by the tokenizers of current frontier models.
_BYTES_AN_ESTIMATED_TOKEN = 4


@dataclass(frozen=True, slots=True)
class FrontierPrompt:
    """body: fields of a chat completion. max_tokens: bound on its answer."""

    body: dict[str, Any]
    max_tokens: int


def frontier_prompt(task: Task, request: TaskRequest) -> FrontierPrompt:
    """Return the chat completion that asks for a task's answer.

    Raises InvalidRequest as the task's own `plan` does.
    """
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
            # An answer repeats every entity, with its type and JSON syntax.
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


def estimated_usage(task: Task, request: TaskRequest, label: str) -> Usage:
    """Return about how many tokens a frontier model would take to answer with a label.

    Four UTF-8 bytes count as a token, the schema of the answer as none: the estimate is low rather
    than high. Raises InvalidRequest as frontier_prompt.
    """
    messages = frontier_prompt(task, request).body["messages"]
    return Usage(
        uncached_input_tokens=_tokens(*(message["content"] for message in messages)),
        output_tokens=_tokens(_json({"label": label})),
    )


def _tokens(*texts: str) -> int:
    return math.ceil(sum(len(text.encode()) for text in texts) / _BYTES_AN_ESTIMATED_TOKEN)


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
    # Providers require an object at the root that lists every property as required.
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _without_limits(schema: Any) -> Any:
    # Providers reject schemas with limits that their decoders cannot enforce.
    if isinstance(schema, dict):
        return {
            key: _without_limits(value)
            for key, value in schema.items()
            if key not in ENTITY_SCHEMA_LIMITS
        }
    return schema


def _mention(item: Any) -> dict[str, str]:
    return {"text": item.text, "type": item.type}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
