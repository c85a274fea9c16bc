"""The learned part of the router: two linear heads on a text's vector, as plain numbers."""

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
from serving.routing.features import FEATURES
from serving.routing.vocabulary import words

FORMAT = 1
MODEL_FILE = "model.json"
NONE = "none"
# Weights are written with this many decimals: changes vectors' scores by less than 1e-4.
_DECIMALS = 5

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TaskHead:
    """Softmax over the tasks and `none`, on an instruction's vector and its cues.

    classes: in the order of the rows. weights: (classes, dimensions + cues). bias: (classes,).
    cues: for each task the words that tell it from the others; one input a task, in this order.
    slope, offset: of the map from a task's log-odds to the certainty that the task is right once
    every rule has let it pass, by Platt's method on folds that the head was not fitted to.
    """

    classes: tuple[str, ...]
    weights: Floats
    bias: Floats
    cues: Mapping[str, frozenset[str]]
    slope: float = 1.0
    offset: float = 0.0

    def certainty(self, probability: float) -> float:
        """Return how sure a task is that has this probability and that every rule lets pass."""
        p = min(max(probability, 1e-9), 1.0 - 1e-9)
        odds = self.slope * math.log(p / (1.0 - p)) + self.offset
        return 1.0 / (1.0 + math.exp(-odds))

    def probabilities(self, vector: Floats, instruction: str) -> dict[str, float]:
        """Return the probability of every class. vector: the instruction's, (dimensions,)."""
        inputs = np.concatenate([vector, cue_features(instruction, self.cues)])
        scores = (self.weights @ inputs + self.bias).astype(np.float64)
        exps = np.exp(scores - scores.max())
        return dict(zip(self.classes, (exps / exps.sum()).tolist(), strict=True))


def cue_features(instruction: str, cues: Mapping[str, frozenset[str]]) -> Floats:
    """Return (len(cues),) float32: how many different cues of each task occur, 2 and more as 1."""
    found = set(words(instruction))
    return np.array([min(1.0, len(found & known) / 2) for known in cues.values()], np.float32)


@dataclass(frozen=True, slots=True)
class ComplexityHead:
    """A linear score of vector and lexical features, cut to [0, 1].

    weights: (dimensions + len(FEATURES),). trusted: the score was shown to tell prompts that need
    a dear model from others better than chance; evidence says how.
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
    """Everything that was learned.

    vocabulary: for each task the words of its instructions. texts_digest: of the texts that it
    was trained on. seed: of the training.
    """

    task: TaskHead
    complexity: ComplexityHead
    vocabulary: Mapping[str, frozenset[str]]
    texts_digest: str
    seed: int


def load_model(folder: Path | None) -> RouterModel:
    """Return the model in a folder, or the shipped one. Reads a file, blocking.

    Raises InvalidSettings where it is missing, damaged or of another format.
    """
    try:
        if folder is None:
            text = (resources.files("serving.routing.model") / MODEL_FILE).read_text("utf-8")
        else:
            text = (folder / MODEL_FILE).read_text(encoding="utf-8")
        return _parse(json.loads(text))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidSettings(
            f"no router model can be read from {str(folder or 'the package')!r}: {error}",
            field="routing.model",
            fix="write one with: narrowgate router train --out DIR",
        ) from error


def save_model(model: RouterModel, folder: Path) -> None:
    """Write a model into a folder, whole or not at all."""
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
    }
    temporary = folder / f".{MODEL_FILE}.part"
    temporary.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(folder / MODEL_FILE)


def _parse(content: Any) -> RouterModel:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']!r}, needs {FORMAT}")
    if content["complexity"]["features"] != list(FEATURES):
        raise ValueError("trained on other lexical features")
    task = TaskHead(
        tuple(content["task"]["classes"]),
        np.array(content["task"]["weights"], np.float32),
        np.array(content["task"]["bias"], np.float32),
        {task: frozenset(known) for task, known in content["task"]["cues"].items()},
        float(content["task"]["slope"]),
        float(content["task"]["offset"]),
    )
    if task.weights.ndim != 2 or len(task.classes) != len(task.weights) != len(task.bias):
        raise ValueError("classes and weights of the task head do not match")
    complexity = content["complexity"]
    weights = np.array(complexity["weights"], np.float32)
    dimensions = task.weights.shape[1] - len(task.cues)
    if weights.shape != (dimensions + len(FEATURES),):
        raise ValueError(f"complexity weights have shape {weights.shape}")
    return RouterModel(
        task,
        ComplexityHead(
            weights, float(complexity["bias"]), bool(complexity["trusted"]), complexity["evidence"]
        ),
        {name: frozenset(known) for name, known in content["vocabulary"].items()},
        str(content["texts_digest"]),
        int(content["seed"]),
    )


def _rounded(values: Floats) -> list[Any]:
    return np.round(values.astype(np.float64), _DECIMALS).tolist()  # type: ignore[no-any-return]
