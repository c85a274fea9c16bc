"""Separates two kinds of work into different steps of the engine.

vLLM gathers log-probabilities once for a whole step: where any sequence of the step asks for given
token ids (label scoring), the sequences that ask for their top alternatives get the padding of
that gather instead (vllm/v1/sample/sampler.py, "prefer logprob_token_ids"; seen in 0.29.0).
Log-probabilities of sampled tokens are right in either case, so only requests for alternatives must
be separated. They are rare; scoring continues as soon as the last of them has finished.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class StepSeparation:
    """Admits any number of holders of one kind at a time; waiters are served in order of arrival.

    Not reentrant, for one event loop.
    """

    def __init__(self) -> None:
        self._kind: str | None = None
        self._holders = 0
        self._waiting: deque[tuple[str, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, kind: str) -> AsyncIterator[None]:
        """Wait until no holder of another kind is left, then hold."""
        await self._enter(kind)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, kind: str) -> None:
        if not self._waiting and self._kind in (None, kind):
            self._kind = kind
            self._holders += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((kind, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._admit()
            else:
                # Admitted and cancelled before this task ran again.
                self._leave()
            raise

    def _leave(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._kind = None
            self._admit()

    def _admit(self) -> None:
        while self._waiting:
            kind, turn = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
            elif self._kind in (None, kind):
                self._waiting.popleft()
                self._kind = kind
                self._holders += 1
                turn.set_result(None)
            else:
                return
