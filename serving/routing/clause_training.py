"""Fits the clause head on clauses that the shipped grammars generate, about a minute."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.contracts.errors import EnvironmentUnavailable
from serving.contracts.task_spec import TaskSpec
from serving.routing.clause_head import ClauseHead, quantised
from serving.routing.clauses import BUCKETS, Normaliser, features, known_words
from serving.routing.grammar import FOREIGN, LANGUAGES, clauses, read_grammar

# Chosen on the shipped instructions: a template gives this many clauses.
CLAUSES_EACH = 50
# Least certainty of a reading. Chosen on the shipped instructions and half A of the held-out set.
LEAST = 0.6
CLAUSE_C = 60.0
_KNOWN_FROM = 4
_ITERATIONS = 100


def labelled_clauses(
    specs: Mapping[str, TaskSpec], each: int, seed: int, foreign: Iterable[str] = ()
) -> list[tuple[str, str]]:
    """Return normalised clauses with their class, each clause once.

    foreign: further instructions that ask for no task; each is one foreign clause.
    """
    normaliser = Normaliser(specs)
    votes: dict[str, Counter[str]] = {}
    for language in LANGUAGES:
        for clause in clauses(read_grammar(language), each, seed):
            parts = normaliser.clauses(clause.text)
            # Only a part of a foreign clause may be foreign, so it stays whole.
            whole = [" ".join(parts)] if clause.kind == FOREIGN else parts
            for part in whole:
                votes.setdefault(part, Counter())[clause.kind] += 1
    for text in foreign:
        votes.setdefault(" ".join(normaliser.clauses(text)), Counter())[FOREIGN] += 1
    return [(text, kinds.most_common(1)[0][0]) for text, kinds in votes.items() if text]


def fit_clauses(rows: Sequence[tuple[str, str]], least: float = LEAST) -> ClauseHead:
    """Return a multinomial logistic regression. Blocking. least: as in ClauseHead."""
    texts = [text for text, _ in rows]
    known = known_words(texts, _KNOWN_FROM)
    linear = _logistic()(C=CLAUSE_C, max_iter=_ITERATIONS, tol=1e-3)
    linear.fit(_matrix(texts, known), np.array([kind for _, kind in rows]))
    return quantised(
        [str(name) for name in linear.classes_], linear.coef_, linear.intercept_, known, least
    )


def _matrix(texts: Sequence[str], known: frozenset[int]) -> Any:
    from scipy.sparse import csr_matrix

    rows = [features(text, known) for text in texts]
    sizes = np.array([len(row) for row in rows])
    values: NDArray[np.float32] = np.repeat(1.0 / np.sqrt(np.maximum(sizes, 1)), sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return csr_matrix(
        (values.astype(np.float32), np.concatenate(rows), starts), shape=(len(texts), BUCKETS)
    )


def _logistic() -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise EnvironmentUnavailable(
            "training needs scikit-learn, which is not installed",
            fix="pip install 'narrowgate[evals]'",
        ) from error
    return LogisticRegression
