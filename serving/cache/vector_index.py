"""The nearest stored questions of one partition: exact for few vectors, HNSW above. In memory.

The database's rows are the truth and the index is made of them. It is loaded at the first search,
follows new rows by their sequence numbers, and is rebuilt where its file cannot be trusted.
"""

import hashlib
import json
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Vector = NDArray[np.float32]

EXACT_UP_TO = 4096
"""Vectors of a partition that are compared one by one: about 0.5 ms with 384 dimensions."""
_FORMAT = 1
MOST_PARTITIONS = 256
_CONNECTIVITY, _EXPANSION_ADD, _EXPANSION_SEARCH = 16, 128, 64


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


class ExactVectors:
    """Compares all vectors one by one; labels are the rows' sequence numbers."""

    def __init__(self, dimensions: int) -> None:
        self._vectors = np.zeros((64, dimensions), np.float32)
        self._labels = np.zeros(64, np.int64)
        self._count = 0
        self._places: dict[int, int] = {}

    def add(self, label: int, vector: Vector) -> None:
        """Add a vector of unit length."""
        if self._count == len(self._labels):
            self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
            self._labels = np.concatenate([self._labels, np.zeros_like(self._labels)])
        self._vectors[self._count], self._labels[self._count] = vector, label
        self._places[label] = self._count
        self._count += 1

    def remove(self, label: int) -> None:
        """Remove a vector; the last one takes its place."""
        place, last = self._places.pop(label), self._count - 1
        if place != last:
            self._vectors[place], self._labels[place] = self._vectors[last], self._labels[last]
            self._places[int(self._labels[place])] = place
        self._count = last

    def nearest(self, vector: Vector, count: int) -> list[tuple[int, float]]:
        """Return labels and cosines, the nearest first."""
        # Not BLAS: its threads wait for one another, on a busy machine for 28 ms instead of 0.1.
        similarities = np.einsum("ij,j->i", self._vectors[: self._count], vector)
        count = min(count, self._count)
        best = np.argpartition(-similarities, count - 1)[:count] if count else np.zeros(0, int)
        best = best[np.argsort(-similarities[best], kind="stable")]
        return [(int(self._labels[n]), float(similarities[n])) for n in best]

    def __len__(self) -> int:
        return self._count

    def vector(self, label: int) -> Vector:
        """Return a vector by its label. Raises KeyError."""
        vector: Vector = self._vectors[self._places[label]]
        return vector

    def content(self) -> bytes:
        """Return labels and vectors as bytes."""
        return self._labels[: self._count].tobytes() + self._vectors[: self._count].tobytes()

    def restore(self, content: bytes) -> None:
        """Take what `content` returned. Raises ValueError."""
        row = self._labels.itemsize + self._vectors.itemsize * self._vectors.shape[1]
        count, rest = divmod(len(content), row)
        if rest:
            raise ValueError(f"{len(content)} bytes are not a whole number of vectors")
        labels = np.frombuffer(content, np.int64, count)
        flat = np.frombuffer(content, np.float32, offset=labels.nbytes)
        for label, vector in zip(labels, flat.reshape(count, -1), strict=True):
            self.add(int(label), vector)


class GraphVectors:
    """HNSW of 8-bit vectors (usearch). Raises ImportError where usearch is not installed."""

    def __init__(self, dimensions: int) -> None:
        from usearch.index import Index

        self._index: Any = Index(
            ndim=dimensions, metric="cos", dtype="i8", connectivity=_CONNECTIVITY,
            expansion_add=_EXPANSION_ADD, expansion_search=_EXPANSION_SEARCH,
        )  # fmt: skip

    def add(self, label: int, vector: Vector) -> None:
        """Add a vector of unit length."""
        self._index.add(label, vector)

    def remove(self, label: int) -> None:
        """Remove a vector."""
        self._index.remove(label)

    def nearest(self, vector: Vector, count: int) -> list[tuple[int, float]]:
        """Return labels and cosines, the nearest first; a cosine is right to about 0.01."""
        if len(self._index) == 0:
            return []
        found = self._index.search(vector, count)
        return [(int(k), 1.0 - float(d)) for k, d in zip(found.keys, found.distances, strict=True)]

    def content(self) -> bytes:
        """Return the graph as bytes."""
        return bytes(self._index.save())

    def restore(self, content: bytes) -> None:
        """Take what `content` returned. Raises RuntimeError."""
        self._index.load(content)


def has_graph() -> bool:
    """Return whether usearch is installed."""
    return find_spec("usearch") is not None


class PartitionIndex:
    """The vectors of one partition. Threads may share it; all methods may block."""

    def __init__(self, dimensions: int, exact_up_to: int = EXACT_UP_TO) -> None:
        self.sequence = 0
        self._dimensions = dimensions
        self._exact_up_to = exact_up_to
        self._vectors = ExactVectors(dimensions)
        self._graph: GraphVectors | None = None
        self._labels: dict[str, int] = {}
        self._entries: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def is_graph(self) -> bool:
        """Return whether the vectors are searched approximately."""
        return self._graph is not None

    def apply(self, rows: Sequence[VectorRow]) -> None:
        """Take changes; those that are known already are left out. Raises ValueError."""
        with self._lock:
            for row in rows:
                if row.sequence <= self.sequence:
                    continue
                self._remove(row.entry)
                if row.vector is not None:
                    self._add(row.sequence, row.entry, row.vector)
                self.sequence = row.sequence
            if self._graph is None and len(self._labels) > self._exact_up_to and has_graph():
                self._graph = self._new_graph()

    def nearest(self, vector: Vector, count: int) -> list[Neighbour]:
        """Return the nearest stored questions, the nearest first. vector: of unit length."""
        with self._lock:
            found = (self._graph or self._vectors).nearest(vector, count)
            if self._graph is not None:
                # 8-bit cosines are too coarse for a threshold.
                found = [(label, float(self._vectors.vector(label) @ vector)) for label, _ in found]
                found.sort(key=lambda one: -one[1])
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

    def save(self, file: Path) -> None:
        """Write the index with its digest, so that a broken file is recognised."""
        with self._lock:
            body = self._vectors.content()
            graph = b"" if self._graph is None else self._graph.content()
            head = {
                "format": _FORMAT, "dimensions": self._dimensions, "sequence": self.sequence,
                "entries": self._labels, "vectors": len(body),
            }  # fmt: skip
        line = json.dumps(head).encode()
        digest = hashlib.sha256(line + body + graph).hexdigest().encode()
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(digest + b"\n" + line + b"\n" + body + graph)
        temporary.replace(file)

    def load(self, file: Path) -> bool:
        """Take a file's index; return False where there is none that can be trusted."""
        try:
            digest, line, content = file.read_bytes().split(b"\n", 2)
            if hashlib.sha256(line + content).hexdigest().encode() != digest:
                logger.warning("cache.index_rebuilt error=digest")
                return False
            head = json.loads(line)
            if (head["format"], head["dimensions"]) != (_FORMAT, self._dimensions):
                return False
            self._take(head, content)
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            logger.warning("cache.index_rebuilt error=%s", type(error).__name__)
            return False
        return True

    def _take(self, head: dict[str, Any], content: bytes) -> None:
        vectors, graph = ExactVectors(self._dimensions), None
        vectors.restore(content[: head["vectors"]])
        if len(content) > head["vectors"] and has_graph():
            graph = GraphVectors(self._dimensions)
            graph.restore(content[head["vectors"] :])
        with self._lock:
            self._vectors, self._graph = vectors, graph
            self._labels = {str(entry): int(label) for entry, label in head["entries"].items()}
            self._entries = {label: entry for entry, label in self._labels.items()}
            self.sequence = int(head["sequence"])

    def _add(self, label: int, entry: str, vector: Vector) -> None:
        if vector.shape != (self._dimensions,):
            raise ValueError(f"a vector has {vector.shape!r}, not {self._dimensions} dimensions")
        self._vectors.add(label, vector)
        if self._graph is not None:
            self._graph.add(label, vector)
        self._labels[entry], self._entries[label] = label, entry

    def _remove(self, entry: str) -> None:
        label = self._labels.pop(entry, None)
        if label is None:
            return
        self._vectors.remove(label)
        if self._graph is not None:
            self._graph.remove(label)
        del self._entries[label]

    def _new_graph(self) -> GraphVectors:
        graph = GraphVectors(self._dimensions)
        for label in self._entries:
            graph.add(label, self._vectors.vector(label))
        return graph


class VectorIndexes:
    """The indexes of the partitions that were searched last. folder: None keeps no files."""

    def __init__(self, source: VectorSource, dimensions: int, folder: Path | None = None) -> None:
        self._source = source
        self._dimensions = dimensions
        self._folder = folder
        self._partitions: OrderedDict[Partition, PartitionIndex] = OrderedDict()
        self._complete: set[Partition] = set()
        self._lock = threading.Lock()

    def nearest(
        self,
        partition: Partition,
        vector: Vector,
        count: int,
        source: VectorSource | None = None,
    ) -> list[Neighbour]:
        """Return the nearest stored questions of a partition. Blocking: reads new rows first.

        source: reads the same rows, in a transaction of the caller's.
        """
        index = self.follow(partition, source)
        return index.nearest(vector, count)

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

    def save(self) -> None:
        """Write the indexes that are in memory, where a folder is set."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            known = list(self._partitions.items())
        for partition, index in known:
            index.save(self._folder / _file_name(partition))

    def _index(self, partition: Partition) -> PartitionIndex:
        with self._lock:
            index = self._partitions.get(partition)
            if index is None:
                index = PartitionIndex(self._dimensions)
                if self._folder is not None:
                    index.load(self._folder / _file_name(partition))
                self._partitions[partition] = index
                self._complete.discard(partition)
                if len(self._partitions) > MOST_PARTITIONS:
                    self._complete.discard(self._partitions.popitem(last=False)[0])
            self._partitions.move_to_end(partition)
            return index


def _file_name(partition: Partition) -> str:
    content = json.dumps([partition.namespace, partition.fingerprint])
    return hashlib.sha256(content.encode()).hexdigest()[:32] + ".index"
