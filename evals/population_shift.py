"""Measures how far a file of inputs is from a suite: length, language, label shares, meaning. Pure.

Every respect has a distance and a limit. The limit is the largest distance among 1,000 random
divisions of all inputs into groups of these sizes (a permutation test at 0.1 %), and at least a
distance that matters. Except for the label shares themselves, the suite is weighted to the file's
label shares: a file with other shares does not differ in length or meaning for this reason.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evals.suite import Suite
from serving.contracts.attestation import Difference
from serving.contracts.task_spec import ClassificationSpec, ExtractionSpec, TranslationSpec

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Encode = Callable[[Sequence[str]], NDArray[np.float32]]
Detect = Callable[[str], str | None]

SAMPLE = 2000
"""Inputs of either side that are compared; of more, a repeatable sample."""
DIVISIONS = 1000

# Distances that matter, below which nothing is reported however certain it is.
LEAST_LENGTH = 0.2
LEAST_LANGUAGE = 0.1
LEAST_LABELS = 0.15
LEAST_EMBEDDING = 0.2

# A language counts as the suite's from this share on: detection is wrong at times.
_OWN_LANGUAGE = 0.05
# Texts of fewer words are detected wrongly more often (18 % of the headlines of suite topic), so
# they are compared only with such texts.
_SHORT = 10
# Fewer texts in the suite's languages say nothing about length and meaning.
_FEWEST = 20
_NO_ENTITY = "no entity"
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Traits:
    """The compared traits of n inputs, row by row.

    words: (n,), separated by white space. languages: detected, or empty strings for a translation,
    whose languages are stated. labels: of each input; several or none for an extraction. vectors:
    (n, dimensions), rows of unit length.
    """

    words: NDArray[np.int64]
    languages: tuple[str, ...]
    labels: tuple[frozenset[str], ...]
    vectors: NDArray[np.float32]
    label_is_single: bool

    def strata(self, *, by_label: bool, by_length: bool) -> list[str]:
        """Return each input's stratum: its label where it has one, and whether it is short."""
        labelled = by_label and self.label_is_single
        names = [next(iter(labels)) if labelled else "" for labels in self.labels]
        if not by_length:
            return names
        return [f"{int(w < _SHORT)} {name}" for w, name in zip(self.words, names, strict=True)]

    def among(self, rows: NDArray[np.intp]) -> "Traits":
        """Return the traits of these rows."""
        return Traits(
            self.words[rows],
            tuple(self.languages[row] for row in rows),
            tuple(self.labels[row] for row in rows),
            self.vectors[rows],
            self.label_is_single,
        )


def traits(suite: Suite, encode: Encode, detect: Detect, seed: int = 0) -> Traits:
    """Return the traits of a suite's inputs, one of each group, of a sample where there are many.

    Blocking, about 5 ms an input.
    """
    rows = suite.independent()
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(seed).choice(rows, SAMPLE, replace=False))
    examples = [suite.examples[row] for row in rows]
    texts = [example.request.text for example in examples]
    stated = isinstance(suite.spec, TranslationSpec)
    return Traits(
        words=np.array([len(text.split()) for text in texts], dtype=np.int64),
        languages=tuple("" if stated else detect(text) or _UNKNOWN for text in texts),
        labels=tuple(_labels(example.expected, example.slice, suite) for example in examples),
        vectors=encode(texts),
        label_is_single=not isinstance(suite.spec, ExtractionSpec),
    )


def differences(suite: Traits, file: Traits, seed: int = 0) -> tuple[Difference, ...]:
    """Return the distance of a file from a suite in every respect that can be compared.

    Length and meaning are compared among the texts in the suite's languages: the encoder was
    trained on English, and words are not comparable across languages. A respect is left out where
    either side has fewer than 20 comparable inputs; languages also where they are stated
    (translations).
    """
    found = [_label_shares(suite, file, seed)]
    known = _own_languages(suite)
    pooled = _Pooled.of(suite, file, seed, by_length=True)
    if known != {""} and min(pooled.sizes) >= _FEWEST:
        found.append(_languages(pooled))
    pooled = _Pooled.of(_in_languages(suite, known), _in_languages(file, known), seed)
    if min(pooled.sizes) >= _FEWEST:
        found += [_lengths(pooled), _embeddings(pooled)]
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Pooled:
    """The inputs of both sides with the weights of each division, the real one first.

    file_weights, suite_weights: (1 + DIVISIONS, n), rows sum to 1. Divisions keep the number of
    inputs of each stratum on either side. sizes: inputs of the suite and of the file.
    """

    traits: Traits
    file_weights: Floats
    suite_weights: Floats
    sizes: tuple[int, int]

    @classmethod
    def of(
        cls,
        suite: Traits,
        file: Traits,
        seed: int,
        *,
        by_label: bool = True,
        by_length: bool = False,
    ) -> "_Pooled":
        strata = [side.strata(by_label=by_label, by_length=by_length) for side in (suite, file)]
        # What one side lacks cannot be weighted. A missing label shows in the label shares.
        shared = set(strata[0]) & set(strata[1])
        kept = [np.flatnonzero([name in shared for name in names]) for names in strata]
        suite, file = suite.among(kept[0]), file.among(kept[1])
        names = [strata[0][row] for row in kept[0]] + [strata[1][row] for row in kept[1]]
        in_file = np.arange(len(names)) >= len(kept[0])
        return cls(
            Traits(
                np.concatenate([suite.words, file.words]),
                suite.languages + file.languages,
                suite.labels + file.labels,
                np.concatenate([suite.vectors, file.vectors]),
                suite.label_is_single,
            ),
            *_weights(np.unique(names, return_inverse=True)[1], in_file, seed),
            (len(kept[0]), len(kept[1])),
        )

    def shares(self, columns: Bools) -> Floats:
        """Return the largest difference between the sides' shares, by division. columns: (n, k)."""
        gaps: Floats = np.abs((self.file_weights - self.suite_weights) @ columns).max(axis=1)
        return gaps


def _weights(strata: NDArray[np.intp], in_file: Bools, seed: int) -> tuple[Floats, Floats]:
    """Return each input's weight in the file and in the suite, by division."""
    keys = np.random.default_rng(seed).random((DIVISIONS, len(strata)))
    chosen = np.zeros((1 + DIVISIONS, len(strata)), dtype=bool)
    chosen[0] = in_file
    factor = np.zeros(len(strata))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        taken = int(in_file[members].sum())
        order = np.argsort(keys[:, members], axis=1)[:, :taken]
        np.put_along_axis(chosen[1:], members[order], values=True, axis=1)
        factor[members] = taken / (len(members) - taken)
    size = max(int(in_file.sum()), 1)
    return chosen / size, np.where(chosen, 0.0, factor) / size


def _label_shares(suite: Traits, file: Traits, seed: int) -> Difference:
    pooled = _Pooled.of(suite, file, seed, by_label=False)
    names = sorted(set().union(*pooled.traits.labels))
    columns = np.array([[name in labels for name in names] for labels in pooled.traits.labels])
    return _shares("labels", pooled, names, columns, LEAST_LABELS)


def _languages(pooled: _Pooled) -> Difference:
    names = sorted(set(pooled.traits.languages))
    columns = np.array([[name == code for name in names] for code in pooled.traits.languages])
    return _shares("language", pooled, names, columns, LEAST_LANGUAGE)


def _shares(
    respect: str, pooled: _Pooled, names: Sequence[str], columns: Bools, least: float
) -> Difference:
    there, here = pooled.suite_weights[0] @ columns, pooled.file_weights[0] @ columns
    widest = int(np.abs(here - there).argmax())
    return _difference(
        respect,
        pooled.shares(columns),
        least,
        f"{names[widest]} {here[widest]:.0%} of the inputs, in the suite {there[widest]:.0%}",
    )


def _lengths(pooled: _Pooled) -> Difference:
    words = pooled.traits.words
    order = np.argsort(words, kind="stable")
    last = np.flatnonzero(np.diff(words[order], append=-1))
    gaps = np.cumsum((pooled.file_weights - pooled.suite_weights)[:, order], axis=1)[:, last]
    medians = [
        words[order][np.searchsorted(np.cumsum(weights[0][order]), 0.5 - 1e-9)]
        for weights in (pooled.file_weights, pooled.suite_weights)
    ]
    return _difference(
        "length",
        np.abs(gaps).max(axis=1),
        LEAST_LENGTH,
        f"a median of {medians[0]} words, in the suite {medians[1]}",
    )


def _embeddings(pooled: _Pooled) -> Difference:
    vectors = pooled.traits.vectors.astype(np.float64)
    here, there = pooled.file_weights @ vectors, pooled.suite_weights @ vectors
    norms = np.linalg.norm(here, axis=1) * np.linalg.norm(there, axis=1)
    cosine = (here * there).sum(axis=1) / np.maximum(norms, 1e-12)
    return _difference(
        "embedding",
        np.maximum(1.0 - cosine, 0.0),
        LEAST_EMBEDDING,
        f"the mean text vectors have a cosine of {cosine[0]:.2f}",
    )


def _difference(respect: str, distances: Floats, least: float, finding: str) -> Difference:
    return Difference.model_validate(
        {
            "respect": respect,
            "distance": float(distances[0]),
            "limit": max(float(distances[1:].max()), least),
            "finding": finding,
        }
    )


def _own_languages(suite: Traits) -> set[str]:
    counts = Counter(suite.languages)
    return {code for code, n in counts.items() if n >= _OWN_LANGUAGE * len(suite.languages)}


def _in_languages(side: Traits, known: set[str]) -> Traits:
    return side.among(np.flatnonzero([code in known for code in side.languages]))


def _labels(
    expected: str | tuple[tuple[str, str], ...], direction: str | None, suite: Suite
) -> frozenset[str]:
    if isinstance(suite.spec, ClassificationSpec):
        return frozenset({str(expected)})
    if direction is not None:
        return frozenset({direction})
    assert isinstance(expected, tuple)
    return frozenset(kind for _, kind in expected) or frozenset({_NO_ENTITY})
