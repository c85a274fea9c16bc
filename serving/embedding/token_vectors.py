"""The encoder's input vectors of WordPiece tokens: similarities in microseconds, not milliseconds.

The encoder's layers take about 0.9 ms a token on one busy core without AVX-512. Its table of input
vectors costs a look-up. Similarities of weighted means are less exact than the encoder's own.
"""

import itertools
import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.embedding.weights import EncoderFiles, packaged_files

Rows = NDArray[np.float32]

_TABLE = "embeddings.word_embeddings.weight"
_WORD = re.compile(r"\w+")
# Ids below it are special tokens, unused ones and single characters.
_FIRST_WORD = 1996
_RARE = 1e-3
_MOST_WORDS = 100_000
_LONGEST_WORD = 60
_BLOCK = 64


class TokenVectors:
    """The table and its tokenizer. Threads may share it.

    files: an encoder's weights and tokenizer; the packaged ones where None. Loading blocks for
    about 1 s and keeps 12 MB.
    """

    def __init__(self, files: EncoderFiles | None = None) -> None:
        from safetensors import safe_open
        from tokenizers import Tokenizer

        found = files or packaged_files()
        with safe_open(found.weights, framework="numpy") as tensors:
            table: Rows = tensors.get_tensor(_TABLE)
        table = table - table[_FIRST_WORD:].mean(axis=0)
        table /= np.linalg.norm(table, axis=1, keepdims=True) + 1e-9
        # Unit rows fit 8 bits each: the error of a cosine is below 0.01.
        self._scale = np.abs(table).max(axis=1, keepdims=True) / 127.0
        self._table = np.rint(table / self._scale).astype(np.int8)
        self.weights = _weights(len(table))
        self._tokenizer: Any = Tokenizer.from_file(str(found.tokenizer))
        self._tokenizer.no_padding()
        self._known: dict[str, tuple[int, ...]] = {}
        self._lock = threading.Lock()
        self._words: Sequence[str] = [
            self._tokenizer.id_to_token(token) or "" for token in range(len(table))
        ]
        self._stems: dict[int, NDArray[np.int64]] = {}

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text's tokens, without punctuation."""
        found: list[int] = []
        for word in _WORD.findall(text.lower()):
            found.extend(self._known.get(word) or self._word(word))
        return found

    def rows(self, ids: NDArray[np.intp]) -> Rows:
        """Return (len(ids), 384) float32, rows of about unit length."""
        return np.asarray(self._table[ids] * self._scale[ids], np.float32)

    def sums(self, ids: NDArray[np.intp], stretch_of: NDArray[np.intp], count: int) -> Rows:
        """Return the weighted sum of each stretch's rows, (count, 384).

        ids: of all tokens in a row. stretch_of: each token's stretch, ascending from 0.
        """
        summed = np.zeros((count, self._table.shape[1]), np.float32)
        bounds = np.searchsorted(stretch_of, np.arange(0, count + _BLOCK, _BLOCK))
        for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
            if begin == end:
                continue
            # A product of counts and rows: ufunc.reduceat over the first axis is 100 times slower.
            distinct, place = np.unique(ids[begin:end], return_inverse=True)
            first = number * _BLOCK
            size = min(_BLOCK, count - first)
            at = (stretch_of[begin:end] - first) * len(distinct) + place
            counts = np.bincount(at, minlength=size * len(distinct)).reshape(size, -1)
            weighted = counts.astype(np.float32) * self.weights[distinct]
            summed[first : first + size] = weighted @ self.rows(distinct)
        return summed

    def stems(self, ids: NDArray[np.intp], chars: int) -> NDArray[np.int64]:
        """Return an id for each token; tokens that begin with the same letters share it."""
        if chars not in self._stems:
            numbers: dict[str, int] = {}
            found = (numbers.setdefault(word[:chars], len(numbers)) for word in self._words)
            self._stems[chars] = np.fromiter(found, np.int64, len(self._words))
        return self._stems[chars][ids]

    def _word(self, word: str) -> tuple[int, ...]:
        clean = word[:_LONGEST_WORD].encode("utf-8", "replace").decode("utf-8")
        ids = tuple(self._tokenizer.encode(clean, add_special_tokens=False).ids)
        if len(word) > _LONGEST_WORD:
            # Whatever a client writes without a space is a word: kept, it would fill the memory.
            return ids
        with self._lock:
            if len(self._known) >= _MOST_WORDS:
                self._known.clear()
            self._known[word] = ids
        return ids


def _weights(count: int) -> Rows:
    """Return how much each token says, (count,) float32 in [0, 1].

    The ids of words are in order of their frequency, so Zipf's law gives a frequency p, and
    a / (a + p) the weight: Arora et al., "A Simple but Tough-to-Beat Baseline for Sentence
    Embeddings", ICLR 2017.
    """
    rank = np.maximum(np.arange(count, dtype=np.float64) - _FIRST_WORD + 1, 1.0)
    frequency = 1.0 / (rank + 2.7) / np.log(count)
    weights = _RARE / (_RARE + frequency)
    weights[:_FIRST_WORD] = 0.5
    return np.asarray(weights, np.float32)
