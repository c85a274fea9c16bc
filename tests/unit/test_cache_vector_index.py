"""The index finds the nearest, follows the rows, and never trusts a broken file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cache.vector_index import (
    Partition,
    PartitionIndex,
    VectorIndexes,
    VectorRow,
    has_graph,
)

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
    found = VectorIndexes(rows, DIMENSIONS).nearest(PARTITION, asked, 3)
    best = sorted(alive, key=lambda entry: -float(alive[entry] @ asked))[:3]
    assert [one.entry for one in found] == best
    assert [one.similarity for one in found] == pytest.approx(
        [float(alive[entry] @ asked) for entry in best], abs=1e-5
    )


def test_it_follows_rows_and_removals_and_reads_each_once() -> None:
    rows = _Rows()
    index = VectorIndexes(rows, DIMENSIONS)
    assert index.nearest(PARTITION, _vector(1), 8) == []
    rows.add("one", 1)
    rows.add("two", 2)
    assert index.nearest(PARTITION, _vector(2), 1)[0].entry == "two"
    rows.add("two", None)
    assert [found.entry for found in index.nearest(PARTITION, _vector(2), 8)] == ["one"]
    assert rows.read == 3


def test_partitions_never_see_one_another() -> None:
    rows = _Rows()
    rows.add("secret", 1)
    for other in (Partition("tenant/b", PARTITION.fingerprint), Partition("tenant/a", "0" * 64)):
        assert VectorIndexes(rows, DIMENSIONS).nearest(other, _vector(1), 8) == []


def test_a_saved_index_is_loaded_without_reading_rows_again(tmp_path: Path) -> None:
    rows = _Rows()
    for n in range(20):
        rows.add(str(n), n)
    first = VectorIndexes(rows, DIMENSIONS, tmp_path)
    expected = first.nearest(PARTITION, _vector(3), 8)
    first.save()
    rows.read = 0
    assert VectorIndexes(rows, DIMENSIONS, tmp_path).nearest(PARTITION, _vector(3), 8) == expected
    assert rows.read == 0


@pytest.mark.parametrize("place", [0, 70, 200, -1])
def test_a_broken_file_is_rebuilt(tmp_path: Path, place: int) -> None:
    rows = _Rows()
    for n in range(20):
        rows.add(str(n), n)
    first = VectorIndexes(rows, DIMENSIONS, tmp_path)
    expected = first.nearest(PARTITION, _vector(3), 8)
    first.save()
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    for broken in (bytes(content), b"", content[: len(content) // 2]):
        file.write_bytes(broken)
        rows.read = 0
        again = VectorIndexes(rows, DIMENSIONS, tmp_path)
        assert again.nearest(PARTITION, _vector(3), 8) == expected
        assert rows.read == 20


def test_a_vector_of_another_length_is_refused() -> None:
    index = PartitionIndex(DIMENSIONS)
    with pytest.raises(ValueError, match="dimensions"):
        index.apply([VectorRow(1, "one", np.ones(3, np.float32))])


@pytest.mark.skipif(not has_graph(), reason="usearch is not installed")
def test_many_vectors_are_searched_as_a_graph(tmp_path: Path) -> None:
    index = PartitionIndex(DIMENSIONS, exact_up_to=50)
    index.apply([VectorRow(n + 1, str(n), _vector(n)) for n in range(200)])
    assert index.is_graph
    for n in range(0, 200, 10):
        (found,) = index.nearest(_vector(n), 1)
        assert (found.entry, found.similarity) == (str(n), pytest.approx(1.0, abs=1e-5))
    index.apply([VectorRow(201, "10", None)])
    assert index.nearest(_vector(10), 1)[0].entry != "10"
    index.save(tmp_path / "graph.index")
    again = PartitionIndex(DIMENSIONS, exact_up_to=50)
    assert again.load(tmp_path / "graph.index")
    assert again.is_graph
    assert again.nearest(_vector(20), 3) == index.nearest(_vector(20), 3)
