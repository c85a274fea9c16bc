"""Fits the heads of the router's model. The same texts and seed give the same model.

The task head is trained on what it gets when serving: the instructions of splits that pass the
rules. Splits that a rule refuses are left out.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.contracts.errors import EnvironmentUnavailable
from serving.contracts.task_spec import TaskSpec
from serving.embedding.embedder import Embedder
from serving.routing.clause_training import CLAUSES_EACH, fit_clauses, labelled_clauses
from serving.routing.conversation import is_persona
from serving.routing.corpus import UNKNOWN, Corpus, LabelledPrompt
from serving.routing.features import feature_rows
from serving.routing.heads import NONE, ComplexityHead, RouterModel, TaskHead, cue_features
from serving.routing.languages import direction, mentions_language
from serving.routing.narrow import check, embedded_part, instruction_obstacle, most_probable
from serving.routing.payload import split_message
from serving.routing.vocabulary import harmless_words, words

SEED = 20
# Chosen by five-fold cross-validation on the shipped texts; prompts of one origin share a fold.
TASK_C = 30.0
COMPLEXITY_ALPHA = 3.0
_FOLDS = 5
_OFFERED = ("en", "de", "fr", "es")


@dataclass(frozen=True, slots=True)
class Example:
    """task: a task's name, or `none`. origin: as in LabelledPrompt."""

    instruction: str
    task: str
    origin: str


def instruction_examples(rows: Sequence[LabelledPrompt]) -> list[Example]:
    """Return the task head's training examples, each instruction once, in order."""
    found: dict[str, Example] = {}
    for row in rows:
        if row.task == UNKNOWN:
            continue
        for example in _examples(row):
            known = found.get(example.instruction)
            if known is None or known.task == NONE:
                found[example.instruction] = example
    return list(found.values())


def vocabulary_of(examples: Sequence[Example], corpus: Corpus) -> dict[str, frozenset[str]]:
    """Return for each task the words of its instructions."""
    known: dict[str, set[str]] = {
        task: set(cues | corpus.others.get(task, frozenset())) for task, cues in corpus.cues.items()
    }
    for example in examples:
        if example.task != NONE:
            known.setdefault(example.task, set()).update(words(example.instruction))
    return {task: frozenset(found) for task, found in known.items()}


def train(
    corpus: Corpus,
    embedder: Embedder,
    specs: Mapping[str, TaskSpec],
    *,
    trusted: bool = False,
    evidence: str = "no samples were given",
    clauses_each: int = CLAUSES_EACH,
) -> RouterModel:
    """Return a model fitted to the corpus's training part. Blocking, about a minute.

    trusted: complexity scores may decide. evidence: the measurements for it. clauses_each: clauses
    from each template of the grammars.
    Raises EnvironmentUnavailable where scikit-learn is not installed.
    """
    rows = corpus.part(held_out=False)
    examples = instruction_examples(rows)
    vectors = embedder.embed_all([embedded_part(e.instruction) for e in examples])
    cues = cues_of(corpus)
    task = fit_task(vectors, examples, cues)
    slope, offset = _calibrated(examples, vectors, corpus, specs)
    rated = [row for row in rows if row.complexity is not None]
    inputs = complexity_inputs([row.prompt.text for row in rated], embedder)
    weights, bias = fit_complexity(inputs, [row.complexity or 0.0 for row in rated])
    return RouterModel(
        replace(task, slope=slope, offset=offset),
        ComplexityHead(weights, bias, trusted, evidence),
        vocabulary_of(examples, corpus),
        corpus.digest,
        SEED,
        fit_clauses(labelled_clauses(specs, clauses_each, SEED, _foreign(rows))),
    )


def _foreign(rows: Sequence[LabelledPrompt]) -> list[str]:
    """Return prompts of no task, and texts, which ask for nothing."""
    payloads = dict.fromkeys(row.payload for row in rows if row.payload is not None)
    return [*(row.prompt.user for row in rows if row.task is None), *payloads]


def _calibrated(
    examples: Sequence[Example],
    vectors: NDArray[np.float32],
    corpus: Corpus,
    specs: Mapping[str, TaskSpec],
) -> tuple[float, float]:
    """Return slope and offset of Platt's map for instructions that pass every rule.

    The shipped texts contain more near misses than traffic does, so the map is conservative.
    """
    odds: list[float] = []
    right: list[bool] = []
    folds = np.array([_fold(example.origin) for example in examples])
    for fold in range(_FOLDS):
        kept = [example for example, other in zip(examples, folds, strict=True) if other != fold]
        head = fit_task(vectors[folds != fold], kept, cues_of(corpus))
        vocabulary = vocabulary_of(kept, corpus)
        for n in np.flatnonzero(folds == fold):
            task, probability = most_probable(
                head.probabilities(vectors[n], examples[n].instruction)
            )
            passed = task in specs and not isinstance(
                check(examples[n].instruction, specs[task], vocabulary.get(task)), str
            )
            if passed:
                p = min(max(probability, 1e-9), 1.0 - 1e-9)
                odds.append(math.log(p / (1.0 - p)))
                right.append(task == examples[n].task)
    linear = _linear_models().LogisticRegression(C=1.0)
    linear.fit(np.array(odds)[:, None], np.array(right))
    return float(linear.coef_[0, 0]), float(linear.intercept_[0])


def _fold(origin: str) -> int:
    return int(hashlib.sha256(origin.encode()).hexdigest()[-6:], 16) % _FOLDS


def cues_of(corpus: Corpus) -> dict[str, frozenset[str]]:
    """Return for each task the cues that no other task has."""
    counts = Counter(word for known in corpus.cues.values() for word in known)
    return {
        task: frozenset(word for word in known if counts[word] == 1) - harmless_words()
        for task, known in sorted(corpus.cues.items())
    }


def fit_task(
    vectors: NDArray[np.float32],
    examples: Sequence[Example],
    cues: Mapping[str, frozenset[str]],
) -> TaskHead:
    """Return a multinomial logistic regression.

    vectors: (n, dimensions), of the examples' instructions.
    """
    counted = np.array([cue_features(example.instruction, cues) for example in examples])
    linear = _linear_models().LogisticRegression(C=TASK_C, max_iter=2000, random_state=SEED)
    linear.fit(np.hstack([vectors, counted]), np.array([example.task for example in examples]))
    return TaskHead(
        tuple(str(name) for name in linear.classes_),
        linear.coef_.astype(np.float32),
        linear.intercept_.astype(np.float32),
        cues,
    )


def complexity_inputs(texts: Sequence[str], embedder: Embedder) -> NDArray[np.float32]:
    """Return (n, dimensions + features) float32."""
    return np.hstack([embedder.embed_all(texts), feature_rows(texts)])


def fit_complexity(
    inputs: NDArray[np.float32], ratings: Sequence[float]
) -> tuple[NDArray[np.float32], float]:
    """Return weights and bias of a ridge regression."""
    linear = _linear_models().Ridge(alpha=COMPLEXITY_ALPHA)
    linear.fit(inputs.astype(np.float64), np.array(ratings))
    return linear.coef_.astype(np.float32), float(linear.intercept_)


def _examples(row: LabelledPrompt) -> Iterator[Example]:
    prompt = row.prompt
    is_ordered = prompt.system and not is_persona(prompt.system)
    if is_ordered:
        yield from _example(prompt.system, row.task, row)
    for number, split in enumerate(split_message(prompt.user)):
        # A log does not contain the payload: the first split is the more probable one.
        meant = number == 0 if row.payload is None else split.payload == row.payload
        right = row.task is not None and meant and not is_ordered
        yield from _example(split.instruction, row.task if right else None, row)
    if row.task is None:
        yield from _example(prompt.user, None, row)


def _example(instruction: str, task: str | None, row: LabelledPrompt) -> Iterator[Example]:
    if instruction_obstacle(instruction) is not None:
        return
    # "Translate to Italian" is refused for its language. To the head it is a translation.
    if task is None and mentions_language(instruction) and direction(instruction, _OFFERED) is None:
        return
    yield Example(instruction, task or NONE, row.origin)


def _linear_models() -> Any:
    try:
        from sklearn import linear_model
    except ImportError as error:
        raise EnvironmentUnavailable(
            "training needs scikit-learn, which is not installed",
            fix="pip install 'narrowgate[evals]'",
        ) from error
    return linear_model
