"""Streams of labelled inputs with their vectors: what the evidence benchmark runs on."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.evidence_texts import grammar_texts

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Order = Literal["shuffled", "blocks", "bursts"]
ORDERS: tuple[Order, ...] = ("shuffled", "blocks", "bursts")
Recorder = Callable[[list[str], list[str]], Floats | None]
"""Takes texts and the names of the labels; None where the local model has other labels."""

NOISE = 0.03
"""Share of the reference's labels that are wrong."""
MIN_ROWS = 1000
_BURST = 50
_SECONDS_BETWEEN = 60.0


@dataclass(frozen=True)
class Source:
    """Distinct texts. vectors: (n, 384), unit length. labels: (n,) right labels, in 0..count-1.

    outputs: (n, count) log-probabilities by the local model, None where none was recorded.
    """

    name: str
    vectors: Floats
    labels: Ints
    count: int
    outputs: Floats | None = None


@dataclass(frozen=True)
class Stream:
    """A source in the order of arrival. reference: (n,) labels with noise. groups: (n,)."""

    vectors: Floats
    labels: Ints
    reference: Ints
    groups: Ints
    times_s: Floats
    count: int
    outputs: Floats | None = None


def sources(
    data: Path | None, state: Path, rows: int, record: Recorder | None = None
) -> Iterator[Source]:
    """Yield the shipped source, then one of each file of `data` with id, text and label.

    rows: shipped texts. Vectors are computed once and kept under `state`. Files of fewer than
    1,000 rows are left out. record: asks the local model about the texts of a source.
    """
    own = grammar_texts(rows)
    yield _source("shipped", [r.text for r in own], [r.label for r in own], state, record)
    for file in sorted(data.glob("*.jsonl")) if data else ():
        read = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line]
        found = [r for r in read if {"id", "text", "label"} <= set(r)]
        if len(found) >= MIN_ROWS:
            texts, labels = [r["text"] for r in found], [r["label"] for r in found]
            yield _source(file.stem, texts, labels, state, record)


def stream(source: Source, order: Order, rng: np.random.Generator) -> Stream:
    """Return the source in a random order, 3 % of the reference's labels wrong.

    shuffled: independent inputs, one a minute, each a group. blocks: inputs of a label come in
    blocks of about 100. bursts: half of the inputs come in groups of 50 neighbours.
    """
    n = len(source.labels)
    permuted = rng.permutation(n)
    groups = np.arange(n)
    if order == "blocks":
        permuted = _blocks(source.labels[permuted], permuted, rng)
    elif order == "bursts":
        permuted, groups = _bursts(source.vectors, permuted, rng)
    labels = source.labels[permuted]
    wrong = rng.random(n) < NOISE
    shifted = (labels + rng.integers(1, source.count, n)) % source.count
    first = np.concatenate([[True], groups[1:] != groups[:-1]])
    return Stream(
        source.vectors[permuted],
        labels,
        np.where(wrong, shifted, labels),
        groups,
        np.cumsum(np.where(first, _SECONDS_BETWEEN, 0.1)),
        source.count,
        None if source.outputs is None else source.outputs[permuted],
    )


def relabelled(stream: Stream, start: int, error: float) -> Stream:
    """Return the stream with some labels merged into one from `start` on, in labels and reference.

    Labels are merged, the most frequent first where they fit, until their share is `error`. A head
    that was fitted before is wrong about all of them.
    """
    shares = np.bincount(stream.labels[:start], minlength=stream.count) / start
    target = int(np.argmin(shares))
    merged: list[int] = []
    for label in np.argsort(-shares, kind="stable"):
        room = error - float(shares[merged].sum())
        if label != target and shares[label] <= room + 0.02:
            merged.append(int(label))
    late = np.arange(len(stream.labels)) >= start

    def changed(labels: Ints) -> Ints:
        return np.where(late & np.isin(labels, merged), target, labels)

    return replace(stream, labels=changed(stream.labels), reference=changed(stream.reference))


def _blocks(labels: Ints, permuted: Ints, rng: np.random.Generator) -> Ints:
    pieces = []
    for label in np.unique(labels):
        rows = permuted[labels == label]
        pieces += np.array_split(rows, max(1, round(len(rows) / 100)))
    return np.concatenate([pieces[i] for i in rng.permutation(len(pieces))])


def _bursts(vectors: Floats, permuted: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    left = list(permuted[: len(permuted) // 2])
    pieces: list[Any] = [np.array([row]) for row in permuted[len(permuted) // 2 :]]
    while len(left) >= _BURST:
        rows = np.array(left)
        near = np.argsort(-(vectors[rows] @ vectors[rows[0]]), kind="stable")[:_BURST]
        pieces.append(rows[near])
        left = list(np.delete(rows, near))
    pieces += [np.array([row]) for row in left]
    ordered = [pieces[i] for i in rng.permutation(len(pieces))]
    groups = np.repeat(np.arange(len(ordered)), [len(piece) for piece in ordered])
    return np.concatenate(ordered), groups


def _source(
    name: str, texts: list[str], labels: list[str], state: Path, record: Recorder | None
) -> Source:
    names, indices = np.unique(np.array(labels), return_inverse=True)
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
    kept = state / "bench-evidence" / f"{digest}.npy"
    if kept.is_file():
        vectors = np.load(kept, allow_pickle=False)
    else:
        from serving.embedding.embedder import build_embedder

        vectors = build_embedder(state).embed_all(texts)
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, vectors)
    outputs = record(texts, [str(one) for one in names]) if record else None
    return Source(name, vectors.astype(np.float64), indices.astype(np.int64), len(names), outputs)
