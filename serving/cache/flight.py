"""Single flight: equal requests at one moment are asked once and share the answer."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from serving.cache.entry import Entry
from serving.contracts.deadline import Deadline
from serving.contracts.errors import NarrowgateError

Result = Entry | NarrowgateError | None
"""None: the answer may not be shared, or was never finished."""


class Flight:
    """One answer in the making.

    participants: requests that wait for it, its leader among them. is_written: the database has it.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.participants = 1
        self.is_written = False
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.work: Work | None = None

    @property
    def is_wanted(self) -> bool:
        """Return whether anyone waits for an answer that is still to come."""
        return self.participants > 0 and not self.result.done()

    def resolve(self, result: Result) -> None:
        """Give the result to all who wait; the first one counts."""
        if not self.result.done():
            self.result.set_result(result)


@dataclass(slots=True)
class Work:
    """The task that makes the answers of the flights that one request leads.

    It continues after its request was left, while another request waits for one of them.
    deadline: the latest of those of its request and of the requests that joined its flights.
    """

    deadline: Deadline
    flights: list[Flight] = field(default_factory=list)
    task: "asyncio.Task[Any] | None" = None

    @property
    def is_deserted(self) -> bool:
        """Return whether nobody waits for any of the answers that are still to come."""
        is_over = all(flight.result.done() for flight in self.flights)
        return not is_over and not any(flight.is_wanted for flight in self.flights)


class Flights:
    """The flights of one process, by key. The key includes the namespace."""

    def __init__(self) -> None:
        self._open: dict[str, Flight] = {}

    def __len__(self) -> int:
        return len(self._open)

    def answer(self, key: str) -> Entry | None:
        """Return the answer of a flight that is still shared; None before it is there."""
        flight = self._open.get(key)
        if flight is None or not flight.result.done():
            return None
        result = flight.result.result()
        return result if isinstance(result, Entry) else None

    def unwritten(self, key: str) -> Entry | None:
        """Return the answer of a flight that the database does not have yet."""
        flight = self._open.get(key)
        return None if flight is None or flight.is_written else self.answer(key)

    def join(self, key: str, deadline: Deadline) -> tuple[Flight, bool]:
        """Return the flight of a key, and whether the caller leads it. It must leave it.

        deadline: the caller's. The work of a flight that another request leads lasts until then.
        """
        flight = self._open.get(key)
        if flight is None:
            return self.lead(key), True
        flight.participants += 1
        if flight.work is not None:
            flight.work.deadline.extend_to(deadline)
        return flight, False

    def lead(self, key: str) -> Flight:
        """Return a new flight that the caller leads, also where there is one already."""
        flight = self._open[key] = Flight(key)
        return flight

    def leave(self, flight: Flight) -> None:
        """End a participation; the work of a flight that nobody waits for is cancelled."""
        flight.participants -= 1
        work = flight.work
        if work is not None and work.task is not None and work.is_deserted:
            work.task.cancel()
            for deserted in work.flights:
                # The next equal request must not wait for an answer that is never made.
                self.retire(deserted)

    def retire_later(self, flight: Flight, seconds: float) -> None:
        """End a flight whose answer is stored once no lookup from before that is in progress."""
        asyncio.get_running_loop().call_later(seconds, self.retire, flight)

    def retire_key(self, key: str) -> None:
        """End the flight of a key where its answer is there: it is not to be shared any more."""
        flight = self._open.get(key)
        if flight is not None and flight.result.done():
            self.retire(flight)

    def retire_answered(self) -> None:
        """End all flights whose answer is there: it may have been deleted."""
        for flight in list(self._open.values()):
            if flight.result.done():
                self.retire(flight)

    def retire(self, flight: Flight) -> None:
        """End a flight: its answer is not to be shared any more."""
        if self._open.get(flight.key) is flight:
            del self._open[flight.key]
