"""The nearest stored questions of one partition, in memory.

The database's rows are the truth and the index is made of them. It is loaded in the background or
at the first search, and follows new rows by their sequence numbers. It keeps no file: loading reads
the rows, and nothing has to be built of them.
"""

import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serving.cache.sketched_vectors import SketchedVectors

Vector = NDArray[np.float32]

MOST_PARTITIONS = 256


@dataclass(frozen=True, slots=True)
class Partition:
    """Where questions are compared: equal in all that decides the answer besides the last turn."""

    namespace: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class VectorRow:
    """A change of a partition. sequence: positive, increasing. vector: None removes the entry."""

    sequence: int
    entry: str
    vector: Vector | None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A stored question near another. similarity: cosine."""

    entry: str
    similarity: float


class VectorSource(Protocol):
    """The rows of the database."""

    def rows_after(self, partition: Partition, sequence: int) -> Sequence[VectorRow]:
        """Return the changes after a sequence number, in order. Blocking."""
        ...


class PartitionIndex:
    """The vectors of one partition. Threads may share it; all methods may block."""

    def __init__(self, dimensions: int) -> None:
        self.sequence = 0
        self._dimensions = dimensions
        self._vectors = SketchedVectors(dimensions)
        self._labels: dict[str, int] = {}
        self._entries: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._labels)

    def apply(self, rows: Sequence[VectorRow]) -> None:
        """Take changes; those that are known already are left out. Raises ValueError."""
        with self._lock:
            new = [row for row in rows if row.sequence > self.sequence]
            # Of an entry with several changes only the last one counts.
            last = {row.entry: row for row in new}
            for entry in last:
                self._remove(entry)
            self._add([row for row in last.values() if row.vector is not None])
            self.sequence = max((row.sequence for row in new), default=self.sequence)

    def nearest(self, vector: Vector, count: int, least: float) -> list[Neighbour]:
        """Return the nearest stored questions, the nearest first. vector: of unit length.

        least: cosine; questions below it are left out.
        """
        with self._lock:
            found = self._vectors.nearest(vector, count, least)
            return [Neighbour(self._entries[label], similarity) for label, similarity in found]

    def forget(self, entries: Collection[str]) -> None:
        """Remove entries; those that are not known are left out."""
        with self._lock:
            for entry in entries:
                self._remove(entry)

    def keep(self, entries: Collection[str]) -> None:
        """Remove every other entry."""
        with self._lock:
            for entry in set(self._labels) - set(entries):
                self._remove(entry)

    def _add(self, rows: Sequence[VectorRow]) -> None:
        vectors = [row.vector for row in rows if row.vector is not None]
        for vector in vectors:
            if vector.shape != (self._dimensions,):
                raise ValueError(
                    f"a vector has {vector.shape!r}, not {self._dimensions} dimensions"
                )
        if not vectors:
            return
        self._vectors.add([row.sequence for row in rows], np.stack(vectors))
        for row in rows:
            self._labels[row.entry], self._entries[row.sequence] = row.sequence, row.entry

    def _remove(self, entry: str) -> None:
        label = self._labels.pop(entry, None)
        if label is None:
            return
        self._vectors.remove(label)
        del self._entries[label]


class VectorIndexes:
    """The indexes of the partitions that were searched last."""

    def __init__(self, source: VectorSource, dimensions: int) -> None:
        self._source = source
        self._dimensions = dimensions
        self._partitions: OrderedDict[Partition, PartitionIndex] = OrderedDict()
        self._complete: set[Partition] = set()
        self._lock = threading.Lock()

    def nearest(
        self,
        partition: Partition,
        vector: Vector,
        count: int,
        least: float,
        source: VectorSource | None = None,
    ) -> list[Neighbour]:
        """Return the nearest stored questions of a partition. Blocking: reads new rows first.

        least: cosine. source: reads the same rows, in a transaction of the caller's.
        """
        index = self.follow(partition, source)
        return index.nearest(vector, count, least)

    def follow(self, partition: Partition, source: VectorSource | None = None) -> PartitionIndex:
        """Read what is new in a partition, or all of it; return its index. Blocking."""
        index, rows_of = self._index(partition), source or self._source
        while rows := rows_of.rows_after(partition, index.sequence):
            index.apply(rows)
        with self._lock:
            self._complete.add(partition)
        return index

    def is_complete(self, partition: Partition) -> bool:
        """Return whether a partition was read to its end, so that only new rows are to be read."""
        with self._lock:
            return partition in self._complete

    def known(self) -> list[Partition]:
        """Return the partitions in memory."""
        with self._lock:
            return list(self._partitions)

    def size(self, partition: Partition) -> int:
        """Return how many questions of a partition are in memory."""
        with self._lock:
            index = self._partitions.get(partition)
        return 0 if index is None else len(index)

    def keep(self, partition: Partition, entries: Collection[str]) -> None:
        """Forget every entry of a partition besides these."""
        with self._lock:
            index = self._partitions.get(partition)
        if index is not None:
            index.keep(entries)

    def forget(self, partition: Partition, entries: Collection[str]) -> None:
        """Forget entries that the database does not hold any more."""
        with self._lock:
            index = self._partitions.get(partition)
        if index is not None:
            index.forget(entries)

    def _index(self, partition: Partition) -> PartitionIndex:
        with self._lock:
            index = self._partitions.get(partition)
            if index is None:
                index = PartitionIndex(self._dimensions)
                self._partitions[partition] = index
                self._complete.discard(partition)
                if len(self._partitions) > MOST_PARTITIONS:
                    self._complete.discard(self._partitions.popitem(last=False)[0])
            self._partitions.move_to_end(partition)
            return index
