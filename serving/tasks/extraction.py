"""Extraction: a JSON list constrained by a schema; every entity is located in the input."""

import json
import math
from typing import Any

from serving.contracts.answer import Prediction, TaskRequest
from serving.contracts.engine import EngineOutput, GenerateOutput, GenerateWork
from serving.contracts.task_spec import ExtractionSpec
from serving.tasks.confidence import sequence_confidence
from serving.tasks.entity_location import locate
from serving.tasks.prompt import PromptFrame, PromptTokenizer, cleaned, longest_input

# An entity takes its own tokens, its type and about ten tokens of JSON. Inputs that consist of
# entities alone are rare: 3 output tokens an input token covered every development sample whose
# output ended by itself.
_OUTPUT_TOKENS_PER_INPUT_TOKEN = 3.0
_OUTPUT_TOKENS_BASE = 24
ENTITY_SCHEMA_LIMITS = frozenset({"maxItems", "minLength", "maxLength"})
"""Keywords of the entities' schema that bound its size."""


class ExtractionTask:
    """Typed spans of a text. Raw confidence: geometric mean of the output tokens' probabilities."""

    def __init__(
        self, spec: ExtractionSpec, tokenizer: PromptTokenizer, max_model_len: int
    ) -> None:
        self.spec = spec
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._max_chars = longest_input(tokenizer, max_model_len)
        shots = [
            (
                example.text,
                _dump([{"text": item.text, "type": item.type} for item in example.entities]),
            )
            for example in spec.examples
        ]
        self._frame = PromptFrame.build(tokenizer, spec.instruction, shots)
        self._schema = entity_schema(spec)
        self._frame.require_space(spec.name, _OUTPUT_TOKENS_BASE, max_model_len)

    def plan(self, request: TaskRequest) -> GenerateWork:
        """Return a constrained generation, bounded by the input's length. Raises InvalidRequest."""
        ids = self._tokenizer.encode(cleaned(request.text, self._max_chars))
        bound = min(
            self.spec.max_output_tokens,
            _OUTPUT_TOKENS_BASE + math.ceil(_OUTPUT_TOKENS_PER_INPUT_TOKEN * len(ids)),
        )
        prompt = self._frame.assemble(ids, self._max_model_len, bound)
        return GenerateWork(prompt, max_tokens=bound, json_schema=self._schema)

    def read(self, request: TaskRequest, output: EngineOutput) -> Prediction:
        """Return the entities that occur in the input, with offsets in code points."""
        assert isinstance(output, GenerateOutput)
        mentions, complete = parse_mentions(output.text)
        entities, notes = locate(mentions, request.text)
        if not complete:
            notes.append("the output was cut at its bound; entities after the cut are missing")
        return Prediction(
            value=tuple(entities),
            confidence=sequence_confidence(output.token_logprobs),
            valid=complete,
            notes=tuple(notes),
        )


def entity_schema(spec: ExtractionSpec) -> dict[str, Any]:
    """Return the JSON schema of the output: a bounded list of texts with a type."""
    return {
        "type": "array",
        "maxItems": spec.max_entities,
        "items": {
            "type": "object",
            "properties": {
                "text": {"type": "string", "minLength": 1, "maxLength": spec.max_entity_chars},
                "type": {"type": "string", "enum": [item.name for item in spec.entity_types]},
            },
            "required": ["text", "type"],
            "additionalProperties": False,
        },
    }


def parse_mentions(text: str) -> tuple[list[tuple[str, str]], bool]:
    """Return (text, type) pairs of the model's output, and whether the output was complete.

    An output that ends in the middle of an entity still yields the entities before it.
    """
    decoder = json.JSONDecoder()
    mentions: list[tuple[str, str]] = []
    rest = text.strip()
    try:
        return [_pair(item) for item in _list(json.loads(rest))], True
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    start = rest.find("{")
    while start != -1:
        try:
            item, end = decoder.raw_decode(rest, start)
            mentions.append(_pair(item))
        except (ValueError, TypeError, KeyError, RecursionError):
            break
        start = rest.find("{", end)
    return mentions, False


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return value


def _pair(item: object) -> tuple[str, str]:
    if not isinstance(item, dict):
        raise TypeError("not an object")
    text, entity_type = item["text"], item["type"]
    if not isinstance(text, str) or not isinstance(entity_type, str):
        raise TypeError("not strings")
    return text, entity_type


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
