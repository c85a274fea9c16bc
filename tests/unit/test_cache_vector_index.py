"""The index finds the nearest and follows the rows."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cache.sketched_vectors import MOST_COMPARED, SketchedVectors, most_different_bits
from serving.cache.vector_index import Partition, PartitionIndex, VectorIndexes, VectorRow

DIMENSIONS = 8
PARTITION = Partition("tenant/a", "f" * 64)


def _vector(seed: int) -> np.ndarray:
    vector = np.random.default_rng(seed).normal(size=DIMENSIONS).astype(np.float32)
    return vector / np.linalg.norm(vector)


class _Rows:
    """Rows of a database in memory; counts what is read."""

    def __init__(self) -> None:
        self.rows: dict[Partition, list[VectorRow]] = {}
        self.read = 0

    def add(self, entry: str, seed: int | None, partition: Partition = PARTITION) -> None:
        rows = self.rows.setdefault(partition, [])
        vector = None if seed is None else _vector(seed)
        rows.append(VectorRow(len(rows) + 1, entry, vector))

    def rows_after(self, partition: Partition, sequence: int) -> Sequence[VectorRow]:
        found = [row for row in self.rows.get(partition, []) if row.sequence > sequence]
        self.read += len(found)
        return found


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=60))
def test_it_finds_what_comparing_all_finds(changes: list[tuple[int, bool]]) -> None:
    rows, alive = _Rows(), {}
    for number, (entry, is_added) in enumerate(changes):
        rows.add(str(entry), number if is_added else None)
        alive.pop(str(entry), None)
        if is_added:
            alive[str(entry)] = _vector(number)
    asked = _vector(10_000)
    found = VectorIndexes(rows, DIMENSIONS).nearest(PARTITION, asked, 3, -1.0)
    best = sorted(alive, key=lambda entry: -float(alive[entry] @ asked))[:3]
    assert [one.entry for one in found] == best
    assert [one.similarity for one in found] == pytest.approx(
        [float(alive[entry] @ asked) for entry in best], abs=1e-3
    )


def test_it_follows_rows_and_removals_and_reads_each_once() -> None:
    rows = _Rows()
    index = VectorIndexes(rows, DIMENSIONS)
    assert index.nearest(PARTITION, _vector(1), 8, -1.0) == []
    rows.add("one", 1)
    rows.add("two", 2)
    assert index.nearest(PARTITION, _vector(2), 1, -1.0)[0].entry == "two"
    rows.add("two", None)
    assert [found.entry for found in index.nearest(PARTITION, _vector(2), 8, -1.0)] == ["one"]
    assert rows.read == 3


def test_partitions_never_see_one_another() -> None:
    rows = _Rows()
    rows.add("secret", 1)
    for other in (Partition("tenant/b", PARTITION.fingerprint), Partition("tenant/a", "0" * 64)):
        assert VectorIndexes(rows, DIMENSIONS).nearest(other, _vector(1), 8, -1.0) == []


def test_a_vector_of_another_length_is_refused() -> None:
    index = PartitionIndex(DIMENSIONS)
    with pytest.raises(ValueError, match="dimensions"):
        index.apply([VectorRow(1, "one", np.ones(3, np.float32))])


def _many(count: int, seed: int, dimensions: int = 64) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _at(vectors: np.ndarray, cosine: float, seed: int) -> np.ndarray:
    """Return vectors at a cosine to the given ones, in random directions."""
    noise = _many(len(vectors), seed, vectors.shape[1])
    noise -= np.sum(noise * vectors, axis=1, keepdims=True) * vectors
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return (cosine * vectors + (1 - cosine**2) ** 0.5 * noise).astype(np.float32)


@pytest.mark.parametrize("least", [0.85, 0.90, 0.95])
def test_of_many_vectors_none_at_the_threshold_is_missed(least: float) -> None:
    stored = _many(20_000, 1)
    vectors = SketchedVectors(64)
    for start in range(0, len(stored), 1000):
        vectors.add(range(start, start + 1000), stored[start : start + 1000])
    asked = _at(stored[::40], least + 0.002, 2)
    for number, vector in zip(range(0, 20_000, 40), asked, strict=True):
        best = vectors.nearest(vector, 1, least)
        assert [label for label, _ in best] == [number]
        assert best[0][1] == pytest.approx(least + 0.002, abs=1e-3)


def test_what_is_below_the_threshold_is_left_out_and_little_of_it_is_compared() -> None:
    stored = _many(20_000, 1)
    vectors = SketchedVectors(64)
    vectors.add(range(len(stored)), stored)
    for vector in _many(20, 3):
        assert vectors.nearest(vector, 8, 0.85) == []
        assert len(vectors._near(vector, 0.85)) < 20


def test_among_near_equal_vectors_few_are_compared_and_an_equal_one_is_found() -> None:
    centre = _many(1, 1)
    stored = _at(np.repeat(centre, 20_000, axis=0), 0.98, 2)
    vectors = SketchedVectors(64)
    vectors.add(range(len(stored)), stored)
    for label in range(0, 20_000, 1000):
        assert len(vectors._near(stored[label], 0.90)) == MOST_COMPARED
        found = vectors.nearest(stored[label], 8, 0.90)
        assert len(found) == 8
        assert found[0] == (label, pytest.approx(1.0, abs=1e-3))


def test_removed_vectors_are_not_found_and_the_others_are() -> None:
    stored = _many(9000, 1)
    vectors = SketchedVectors(64)
    vectors.add(range(len(stored)), stored)
    for label in range(0, 9000, 2):
        vectors.remove(label)
    assert len(vectors) == 4500
    for label in range(0, 9000, 500):
        assert vectors.nearest(stored[label], 1, 0.95) == []
        assert vectors.nearest(stored[label + 1], 1, 0.95)[0][0] == label + 1
    for label in range(1, 9000, 2):
        vectors.remove(label)
    assert len(vectors) == 0
    assert vectors.nearest(stored[1], 1, -1.0) == []


def test_a_label_is_added_once() -> None:
    vectors = SketchedVectors(64)
    vectors.add([1], _many(1, 1))
    with pytest.raises(KeyError):
        vectors.add([1], _many(1, 2))


@given(st.floats(-1.0, 1.0), st.floats(-1.0, 1.0))
def test_a_stricter_threshold_never_lets_more_bits_differ(one: float, other: float) -> None:
    assert most_different_bits(max(one, other)) <= most_different_bits(min(one, other))
