"""The learned part of the router: two linear heads on a text's vector."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.contracts.errors import InvalidSettings
from serving.contracts.plain_file import read_plain_text
from serving.embedding.encoder import DIMENSIONS
from serving.routing.clause_head import ClauseHead, clauses_from, clauses_to
from serving.routing.features import FEATURES
from serving.routing.vocabulary import words

FORMAT = 1
MODEL_FILE = "model.json"
NONE = "none"
# Decimals of the weights in the file. Rounding changes a score by less than 1e-4.
_DECIMALS = 5

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TaskHead:
    """A softmax over the tasks and `none`, from an instruction's vector and its cue words.

    classes: in the order of the rows. weights: (classes, dimensions + cues). bias: (classes,).
    cues: for each task the words that only its instructions contain; one input for each task, in
    this order. slope, offset: of the map from a task's log-odds to the probability that the task is
    right, given that it passed every rule. Fitted with Platt's method, cross-validated.
    """

    classes: tuple[str, ...]
    weights: Floats
    bias: Floats
    cues: Mapping[str, frozenset[str]]
    slope: float = 1.0
    offset: float = 0.0

    def certainty(self, probability: float) -> float:
        """Return the probability that a task is right that passed every rule.

        probability: the head's, for this task.
        """
        p = min(max(probability, 1e-9), 1.0 - 1e-9)
        odds = self.slope * math.log(p / (1.0 - p)) + self.offset
        return 1.0 / (1.0 + math.exp(-odds))

    def probabilities(self, vector: Floats, instruction: str) -> dict[str, float]:
        """Return each class's probability. vector: of the instruction, (dimensions,)."""
        inputs = np.concatenate([vector, cue_features(instruction, self.cues)])
        scores = (self.weights @ inputs + self.bias).astype(np.float64)
        exps = np.exp(scores - scores.max())
        return dict(zip(self.classes, (exps / exps.sum()).tolist(), strict=True))


def cue_features(instruction: str, cues: Mapping[str, frozenset[str]]) -> Floats:
    """Return (len(cues),) float32: half the number of each task's cues that occur, at most 1."""
    found = set(words(instruction))
    return np.array([min(1.0, len(found & known) / 2) for known in cues.values()], np.float32)


@dataclass(frozen=True, slots=True)
class ComplexityHead:
    """A linear score of a prompt's vector and lexical features, clipped to [0, 1].

    weights: (dimensions + len(FEATURES),). trusted: measurements show that the score predicts
    better than chance which prompts need an expensive model. evidence: the measurements, in words.
    """

    weights: Floats
    bias: float
    trusted: bool
    evidence: str

    def score(self, vector: Floats, features: Floats) -> float:
        """Return the complexity, in [0, 1]."""
        raw = float(self.weights @ np.concatenate([vector, features])) + self.bias
        return min(1.0, max(0.0, raw))


@dataclass(frozen=True, slots=True)
class RouterModel:
    """All learned parts of the router.

    vocabulary: for each task the words of its instructions. clauses: the head that reads an
    instruction clause by clause; None in a model that has none. texts_digest: of the training
    texts. seed: of the training.
    """

    task: TaskHead
    complexity: ComplexityHead
    vocabulary: Mapping[str, frozenset[str]]
    texts_digest: str
    seed: int
    clauses: ClauseHead | None = None


def load_model(folder: Path | None) -> RouterModel:
    """Return the model in a folder, or the shipped model. Reads a file, blocking.

    Raises InvalidSettings where the file is missing, damaged or of another format.
    """
    try:
        if folder is None:
            text = (resources.files("serving.routing.model") / MODEL_FILE).read_text("utf-8")
        else:
            text = read_plain_text(folder / MODEL_FILE)
        return _parse(json.loads(text))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidSettings(
            f"the router model in {str(folder or 'the package')!r} cannot be read: {error}",
            field="routing.model",
            fix="write one with: narrowgate router train --out DIR",
        ) from error


def save_model(model: RouterModel, folder: Path) -> None:
    """Write a model into a folder, replacing the file atomically. Blocking. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "format": FORMAT,
        "texts_digest": model.texts_digest,
        "seed": model.seed,
        "task": {
            "classes": list(model.task.classes),
            "weights": _rounded(model.task.weights),
            "bias": _rounded(model.task.bias),
            "cues": {task: sorted(known) for task, known in model.task.cues.items()},
            "slope": round(model.task.slope, _DECIMALS),
            "offset": round(model.task.offset, _DECIMALS),
        },
        "complexity": {
            "features": list(FEATURES),
            "weights": _rounded(model.complexity.weights),
            "bias": round(model.complexity.bias, _DECIMALS),
            "trusted": model.complexity.trusted,
            "evidence": model.complexity.evidence,
        },
        "vocabulary": {task: sorted(known) for task, known in sorted(model.vocabulary.items())},
        "clauses": None if model.clauses is None else clauses_to(model.clauses),
    }
    temporary = folder / f".{MODEL_FILE}.part"
    temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(folder / MODEL_FILE)


def _parse(content: Any) -> RouterModel:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r}, needs {FORMAT}")
    if content["complexity"]["features"] != list(FEATURES):
        raise ValueError("it was trained on other lexical features: retrain it")
    task = TaskHead(
        tuple(content["task"]["classes"]),
        np.array(content["task"]["weights"], np.float32),
        np.array(content["task"]["bias"], np.float32),
        {task: frozenset(known) for task, known in content["task"]["cues"].items()},
        float(content["task"]["slope"]),
        float(content["task"]["offset"]),
    )
    complexity = content["complexity"]
    weights = np.array(complexity["weights"], np.float32)
    inputs = DIMENSIONS + len(task.cues)
    _require_shape("task weights", task.weights, (len(task.classes), inputs))
    _require_shape("task bias", task.bias, (len(task.classes),))
    _require_shape("complexity weights", weights, (DIMENSIONS + len(FEATURES),))
    return RouterModel(
        task,
        ComplexityHead(
            weights, float(complexity["bias"]), bool(complexity["trusted"]), complexity["evidence"]
        ),
        {name: frozenset(known) for name, known in content["vocabulary"].items()},
        str(content["texts_digest"]),
        int(content["seed"]),
        None if content.get("clauses") is None else clauses_from(content["clauses"]),
    )


def _require_shape(name: str, values: Floats, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise ValueError(f"{name} have shape {values.shape} and need {shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} hold a value that is not finite")


def _rounded(values: Floats) -> list[Any]:
    return np.round(values.astype(np.float64), _DECIMALS).tolist()  # type: ignore[no-any-return]
