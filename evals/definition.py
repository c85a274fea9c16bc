"""A suite as an lm-eval task, which any model of lm-eval can run.

The task's definition has the prompt of the narrowgate task (instruction, the same examples, the
input) for models that lm-eval prompts. A gate's own model adapter (evals/adapter.py) reads only the
input of a document; serving.tasks makes the prompt, as for a client's request.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.task import ConfigurableTask

from evals.metrics import Expected, Metric, metric_of
from evals.suite import Example, Suite
from serving.contracts.answer import Prediction, Translation
from serving.contracts.task_spec import (
    ClassificationSpec,
    ExtractionSpec,
    TaskSpec,
    TranslationSpec,
)
from serving.tasks.entity_location import locate
from serving.tasks.extraction import parse_mentions

INDEX = "narrowgate_index"
"""Field of a document: the example's index in its suite."""
PREFIX = "narrowgate_"


class SuiteTask(ConfigurableTask):  # type: ignore[misc]  # untyped upstream
    """A suite's lm-eval task. config: further fields, as lm-eval passes them to a task's class."""

    def __init__(self, suite: Suite, config: Mapping[str, Any] | None = None) -> None:
        given = {key: value for key, value in (config or {}).items() if key != "class"}
        super().__init__(config={**definition(suite), **given})


def definition(suite: Suite) -> dict[str, Any]:
    """Return the configuration of the suite's lm-eval task."""
    spec, metric = suite.spec, metric_of(suite.spec)

    def process_results(doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        prediction = _prediction(spec, doc, results)
        return {metric.name: list(metric.row(prediction, _expected(spec, doc)))}

    return {
        "task": PREFIX + suite.name,
        "custom_dataset": lambda **_: _dataset(suite),
        "test_split": "test",
        "process_results": process_results,
        "metric_list": [
            {"metric": metric.name, "aggregation": _sum(metric), "higher_is_better": True}
        ],
        "metadata": {"version": suite.digest()},
        **_prompting(spec),
    }


def _sum(metric: Metric) -> Any:
    def aggregate(rows: Sequence[Sequence[float]]) -> float:
        import numpy as np

        return metric.value(np.array(rows, dtype=float).sum(axis=0))

    return aggregate


def _dataset(suite: Suite) -> dict[str, Any]:
    from datasets import Dataset

    documents = [_document(suite.spec, e, i) for i, e in enumerate(suite.examples)]
    return {"test": Dataset.from_list(documents)}


def _document(spec: TaskSpec, example: Example, index: int) -> dict[str, Any]:
    document: dict[str, Any] = {INDEX: index, "id": example.id, "text": example.request.text}
    match spec:
        case ClassificationSpec():
            document["label"] = example.expected
        case ExtractionSpec():
            assert isinstance(example.expected, tuple)
            document["entities"] = entities_json(example.expected)
        case TranslationSpec():
            source, target = example.request.source_language, example.request.target_language
            assert source is not None
            assert target is not None
            document["source_language"], document["target_language"] = source, target
            document["source"], document["target"] = spec.languages[source], spec.languages[target]
            document["reference"] = example.expected
            document["shots"] = "".join(
                f"{spec.languages[source]}: {shot[source]}\n"
                f"{spec.languages[target]}: {shot[target]}\n\n"
                for shot in spec.examples
            )
    return document


def _prompting(spec: TaskSpec) -> dict[str, Any]:
    match spec:
        case ClassificationSpec():
            written = {label.name: label.verbalizer for label in spec.labels}
            shots = [{"text": shot.text, "label": shot.label} for shot in spec.examples]
            return {
                "output_type": "multiple_choice",
                "description": spec.instruction + "\n\n",
                "doc_to_text": "{{text}}",
                "doc_to_choice": list(written.values()),
                "doc_to_target": lambda doc: list(written).index(doc["label"]),
                **_few_shots(shots),
            }
        case ExtractionSpec():
            return {
                "output_type": "generate_until",
                "description": spec.instruction + "\n\n",
                "doc_to_text": "{{text}}",
                # Not a template: lm-eval would parse the rendered JSON into a list.
                "doc_to_target": lambda doc: doc["entities"],
                "generation_kwargs": _greedy(spec),
                **_few_shots(
                    [
                        {
                            "text": shot.text,
                            "entities": entities_json(
                                [(item.text, item.type) for item in shot.entities]
                            ),
                        }
                        for shot in spec.examples
                    ]
                ),
            }
        case TranslationSpec():
            # The examples depend on the direction, so they are part of the document.
            instruction = spec.instruction.replace("{source}", "{{source}}")
            return {
                "output_type": "generate_until",
                "description": instruction.replace("{target}", "{{target}}") + "\n\n",
                "doc_to_text": "{{shots}}{{source}}: {{text}}\n{{target}}:",
                "doc_to_target": lambda doc: doc["reference"],
                "generation_kwargs": _greedy(spec),
                "num_fewshot": 0,
            }


def _few_shots(shots: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "num_fewshot": len(shots),
        "fewshot_config": {"sampler": "first_n", "samples": shots},
    }


def _greedy(spec: TaskSpec) -> dict[str, Any]:
    return {"until": ["\n"], "do_sample": False, "max_gen_toks": spec.max_output_tokens}


def _prediction(spec: TaskSpec, doc: Mapping[str, Any], results: Sequence[Any]) -> Prediction:
    """Convert lm-eval's results (log-likelihoods of the choices, or a text) to a prediction."""
    match spec:
        case ClassificationSpec():
            likelihoods = [likelihood for likelihood, _ in results]
            best = spec.labels[likelihoods.index(max(likelihoods))]
            return Prediction(value=best.name, confidence=0.0)
        case ExtractionSpec():
            mentions, complete = parse_mentions(results[0])
            entities, _ = locate(mentions, doc["text"])
            return Prediction(value=tuple(entities), confidence=0.0, valid=complete)
        case TranslationSpec():
            value = Translation(
                text=results[0].strip(),
                source_language=doc["source_language"],
                target_language=doc["target_language"],
                source_detected=False,
            )
            return Prediction(value=value, confidence=0.0)


def _expected(spec: TaskSpec, doc: Mapping[str, Any]) -> Expected:
    match spec:
        case ClassificationSpec():
            return str(doc["label"])
        case ExtractionSpec():
            items = json.loads(doc["entities"])
            return tuple(sorted((item["text"], item["type"]) for item in items))
        case TranslationSpec():
            return str(doc["reference"])


def entities_json(entities: Sequence[tuple[str, str]]) -> str:
    """Return (text, type) pairs in the JSON form of the task's prompt."""
    items = [{"text": text, "type": kind} for text, kind in entities]
    return json.dumps(items, ensure_ascii=False, separators=(", ", ": "))
