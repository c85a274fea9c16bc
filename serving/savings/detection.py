"""What the router needs around it in an audit: an embedder that remembers, and no metrics."""

from collections.abc import Sequence

from cachetools import LRUCache

from serving.embedding.embedder import Embedder, Vector

_REMEMBERED = 4096


class RememberingEmbedder:
    """Implements Embedder: logs repeat their instructions."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._found: LRUCache[str, Vector] = LRUCache(_REMEMBERED)

    async def embed(self, text: str) -> Vector:
        """Return the text's vector. Raises as the other embedder."""
        if text not in self._found:
            self._found[text] = await self._embedder.embed(text)
        return self._found[text]

    def embed_all(self, texts: Sequence[str]) -> Vector:
        """Return the texts' vectors. Blocking."""
        return self._embedder.embed_all(texts)


class Unobserved:
    """Counts no failed decision: an audit reads each request again."""

    def router_failed(self, reason: str) -> None:
        """Count nothing."""
