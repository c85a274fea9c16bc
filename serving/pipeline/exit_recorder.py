"""Every input's exit, told once however it ends."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from types import TracebackType
from typing import Self

from serving.contracts.answer import Answer, Route, Usage
from serving.contracts.errors import NarrowgateError
from serving.contracts.exits import Endpoint, Exit
from serving.contracts.frontier import Attempt, attempts_of
from serving.contracts.ledger import Entry
from serving.contracts.routing import Reason
from serving.pipeline.local_task import Outcome
from serving.pipeline.stack import RequestContext

ABANDONED = "client_closed"
"""Error code of an input whose client left before it was answered."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a client was sent, whole or in part, as the books want it. Fields as those of Exit."""

    route: Route
    reason: Reason
    model: str
    usage: Usage | None
    attempts: tuple[Attempt, ...] = ()
    replica_s: float | None = None
    service_tier: str | None = None
    valid: bool = True
    guaranteed: bool | None = None


class ExitRecorder:
    """The exits of one request's inputs; those not settled leave with the error that ended it.

    Without an error, an input that was not settled was abandoned by its client. Every input has a
    page in the ledger, on which its paid calls are written before they are made.
    """

    def __init__(
        self, trip: RequestContext, endpoint: Endpoint, task: str | None, inputs: int = 1
    ) -> None:
        self._trip = trip
        self._endpoint = endpoint
        self._task = task
        self._open = set(range(inputs))
        self._entries: dict[int, Entry] = {}
        self._last: Entry | None = None
        self._started = time.monotonic()

    def entry(self, index: int) -> Entry:
        """Return an input's page; what the books call its task must be known by then."""
        if index not in self._entries:
            trip = self._trip
            self._entries[index] = trip.stack.ledger.entry(
                trip.caller, trip.request_id, self._endpoint, self._task, index
            )
        return self._entries[index]

    async def written(self) -> None:
        """Return when no input can be lost any more, or the ledger's bound on waiting is up.

        Those with paid calls are on disk since before these were made.
        """
        if self._last is not None:
            # The pages are written in the order in which they were closed.
            await self._last.written()

    def name_task(self, task: str | None) -> None:
        """Say which task the inputs turned out to be."""
        self._task = task

    @property
    def elapsed_s(self) -> float:
        """Return the seconds since the request came."""
        return time.monotonic() - self._started

    def answered(self, index: int, served: Served) -> Decimal | None:
        """Settle an input that was answered; return what it cost, US dollars, where known."""
        return self._leave(
            index,
            Exit(
                self._trip.request_id, self._endpoint, self._task, served.route, served.reason,
                served.model, served.usage, self.elapsed_s, served.attempts, served.valid,
                replica_s=served.replica_s, service_tier=served.service_tier,
                guaranteed=served.guaranteed,
            ),
        )  # fmt: skip

    def failed(
        self,
        index: int,
        error: NarrowgateError,
        reason: Reason | None,
        attempts: tuple[Attempt, ...],
        served: Served | None = None,
    ) -> None:
        """Settle an input that ended in an error. served: what there was of an answer."""
        self._ended(index, error.code, reason, (*attempts, *attempts_of(error)), served)

    def abandoned(self, index: int, served: Served) -> None:
        """Settle an input whose client left while the answer was on its way."""
        self._ended(index, ABANDONED, served.reason, (), served)

    def settled(self, index: int, outcome: Outcome) -> Answer | NarrowgateError:
        """Settle an input of a task by what became of it; return that with its cost."""
        result = outcome.result
        assert result is not None
        if isinstance(result, NarrowgateError):
            attempts = (*outcome.attempts, *attempts_of(result))
            self._ended(index, result.code, outcome.reason, attempts, None, outcome.replica_s)
            return result
        served = Served(
            result.route, outcome.reason or "narrow", result.model, result.usage,
            outcome.attempts, outcome.replica_s, outcome.service_tier, result.valid,
            # Without an attested bound (None), nothing is guaranteed.
            None if result.route == "frontier" else result.below_threshold is False,
        )  # fmt: skip
        return result.model_copy(update={"cost_usd": self.answered(index, served)})

    def close(self, error: BaseException | None = None) -> None:
        """Settle whatever is open."""
        attempts: tuple[Attempt, ...] = ()
        match error:
            case NarrowgateError():
                code, attempts = error.code, attempts_of(error)
            case Exception():
                code = NarrowgateError.code
            case _:
                code = ABANDONED
        for index in sorted(self._open):
            self._ended(index, code, None, attempts)

    async def __aenter__(self) -> Self:
        """Open the books."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close them, and wait for them where somebody is still there to be answered."""
        self.close(error)
        if error is None or isinstance(error, Exception):
            await self.written()

    def _ended(
        self,
        index: int,
        code: str,
        reason: Reason | None,
        attempts: tuple[Attempt, ...],
        served: Served | None = None,
        replica_s: float | None = None,
    ) -> None:
        model = usage = tier = None
        if served is not None:
            model, usage, tier = served.model, served.usage, served.service_tier
            attempts, replica_s = (*served.attempts, *attempts), served.replica_s
        self._leave(
            index,
            Exit(
                self._trip.request_id, self._endpoint, self._task, "none", reason, model, usage,
                self.elapsed_s, attempts, valid=False, error=code, replica_s=replica_s,
                service_tier=tier,
            ),
        )  # fmt: skip

    def _leave(self, index: int, exit_: Exit) -> Decimal | None:
        if index not in self._open:
            return None
        self._open.remove(index)
        entry = self.entry(index)
        if not entry.booked:
            self._last = entry
        cost_usd = entry.close(exit_)
        self._trip.stack.exits.left(exit_, cost_usd)
        return cost_usd


@asynccontextmanager
async def closed_on_error(books: ExitRecorder) -> AsyncIterator[None]:
    """Close the books where an error ends the request; a reply under way keeps them open."""
    try:
        yield
    except BaseException as error:
        await books.__aexit__(type(error), error, None)
        raise
