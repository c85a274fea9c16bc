"""The vectors of instructions that a tenant sent before."""

import hashlib
from collections.abc import Mapping

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from serving.routing.payload import MAX_INSTRUCTION_CHARS

Vector = NDArray[np.float32]

_DIGEST_BYTES = 16


class KnownVectors:
    """Vectors of instructions, each for the tenant that sent it; the longest unused are dropped.

    An application sends the same instruction around each of its texts, and embedding it takes the
    router most of its time. Tenants share no vector: a faster answer would tell one tenant what
    another one asks. No text is kept. most: vectors in all, 2 KB each; 0 keeps none.
    """

    def __init__(self, most: int) -> None:
        self._found: LRUCache[bytes, Vector] = LRUCache(most)

    def find(self, tenant: str, text: str) -> Vector | None:
        """Return the vector of a text that the tenant sent before; None where none is kept."""
        return self._found.get(_key(tenant, text))

    def add(self, tenant: str, by_text: Mapping[str, Vector]) -> None:
        """Keep the vectors of a tenant's request; none of texts too long for an instruction."""
        for text, vector in by_text.items():
            if len(text) <= MAX_INSTRUCTION_CHARS and self._found.maxsize:
                self._found[_key(tenant, text)] = vector


def _key(tenant: str, text: str) -> bytes:
    # Names of tenants hold no NUL, so that two pairs never give the same bytes.
    pair = f"{tenant}\0{text}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(pair, digest_size=_DIGEST_BYTES).digest()
