"""Embeds texts in a separate thread, so that the event loop is never blocked."""

import asyncio
import atexit
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serving.contracts.errors import EngineFailure, QueueFull, ShuttingDown
from serving.embedding.encoder import Encoder
from serving.embedding.model_file import ensure_model

Vector = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vector]

# More would make the first of a batch wait long for the last; it saves little beyond this.
_MAX_BATCH = 8


class Embedder(Protocol):
    """Turns texts into vectors of unit length."""

    async def embed(self, text: str) -> Vector:
        """Return (384,) float32 of unit length. Raises QueueFull, EngineFailure, ShuttingDown."""
        ...

    def embed_all(self, texts: Sequence[str]) -> Vector:
        """Return (len(texts), 384) float32, rows of unit length. Blocking; for training."""
        ...


@dataclass(frozen=True, slots=True)
class _Waiting:
    text: str
    loop: asyncio.AbstractEventLoop
    result: asyncio.Future[Vector]


class ThreadedEmbedder:
    """Embeds all waiting texts in batches, in one thread.

    encode: the blocking work. max_queued: texts that may wait; more are refused.
    Starts its thread at the first text; `close` ends it.
    """

    def __init__(self, encode: Encode, *, max_queued: int = 1024) -> None:
        self._encode = encode
        self._max_queued = max_queued
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def depth(self) -> int:
        """Return how many texts wait."""
        return len(self._waiting)

    async def embed(self, text: str) -> Vector:
        """Return the text's vector. A cancelled caller's text is dropped unless its batch runs.

        Raises QueueFull, EngineFailure where the encoder fails, and ShuttingDown after `close`.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Vector] = loop.create_future()
        with self._changed:
            if self._closed:
                raise ShuttingDown("the embedder is closed")
            if len(self._waiting) >= self._max_queued:
                raise QueueFull(f"{self._max_queued} texts wait to be embedded", retry_after_s=1.0)
            self._waiting.append(_Waiting(text, loop, result))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="embedder", daemon=True)
                self._thread.start()
                # A thread inside onnxruntime at interpreter shutdown aborts the process.
                atexit.register(self.close)
            self._changed.notify()
        return await result

    def embed_all(self, texts: Sequence[str]) -> Vector:
        """Return a row for every text, computed in the calling thread."""
        return self._encode(texts)

    def close(self) -> None:
        """Refuse waiting texts and end the thread. Blocking for at most the current batch."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        atexit.unregister(self.close)
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                vectors = self._encode([waiting.text for waiting in batch])
            except Exception as error:  # noqa: BLE001  # the thread's edge: callers get it
                failure = EngineFailure(f"the encoder failed: {type(error).__name__}")
                failure.__cause__ = error
                for waiting in batch:
                    _settle(waiting, failure)
            else:
                for waiting, vector in zip(batch, vectors, strict=True):
                    _settle(waiting, vector)

    def _next_batch(self) -> list[_Waiting]:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    for waiting in self._waiting:
                        _settle(waiting, ShuttingDown("the embedder is closed"))
                    self._waiting.clear()
                    return []
                batch: list[_Waiting] = []
                while self._waiting and len(batch) < _MAX_BATCH:
                    waiting = self._waiting.popleft()
                    if not waiting.result.done():
                        batch.append(waiting)
                if batch:
                    return batch


def build_embedder(state: Path, *, max_queued: int = 1024) -> ThreadedEmbedder:
    """Return an embedder on the packaged encoder, made ready under the state folder.

    Blocking, about 1 s the first time. Raises MaterializationFailed.
    """
    return ThreadedEmbedder(Encoder(ensure_model(state)).encode, max_queued=max_queued)


def _settle(waiting: _Waiting, outcome: Vector | Exception) -> None:
    def deliver() -> None:
        if waiting.result.done():
            return
        if isinstance(outcome, Exception):
            waiting.result.set_exception(outcome)
        else:
            waiting.result.set_result(outcome)

    try:
        waiting.loop.call_soon_threadsafe(deliver)
    except RuntimeError:
        # The caller's loop is closed: no caller waits.
        return
