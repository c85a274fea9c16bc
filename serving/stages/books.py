"""Every input's exit, told once however it ends."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from serving.contracts.answer import Answer, Route, Usage
from serving.contracts.errors import NarrowgateError
from serving.contracts.exits import Endpoint, Exit, Exits
from serving.contracts.frontier import Attempt, attempts_of
from serving.contracts.routing import Reason

ABANDONED = "client_closed"
"""Error code of an input whose client left before it was answered."""


class Books:
    """The exits of one request's inputs; those not settled leave with the error that ended it.

    Without an error, an input that was not settled was abandoned by its client.
    """

    def __init__(
        self, exits: Exits, request_id: str, endpoint: Endpoint, task: str | None, inputs: int = 1
    ) -> None:
        self._exits = exits
        self._request_id = request_id
        self._endpoint = endpoint
        self._task = task
        self._open = set(range(inputs))
        self._started = time.monotonic()

    def name_task(self, task: str | None) -> None:
        """Say which task the inputs turned out to be."""
        self._task = task

    @property
    def elapsed_s(self) -> float:
        """Return the seconds since the request came."""
        return time.monotonic() - self._started

    def answered(
        self,
        index: int,
        route: Route,
        reason: Reason,
        model: str,
        usage: Usage | None,
        attempts: tuple[Attempt, ...] = (),
        *,
        valid: bool = True,
    ) -> None:
        """Settle an input that was answered."""
        self._leave(
            index,
            Exit(
                self._request_id, self._endpoint, self._task, route, reason, model, usage,
                self.elapsed_s, attempts, valid,
            ),
        )  # fmt: skip

    def failed(
        self,
        index: int,
        error: NarrowgateError,
        reason: Reason | None,
        attempts: tuple[Attempt, ...],
        usage: Usage | None = None,
        model: str | None = None,
    ) -> None:
        """Settle an input that ended in an error. usage, model: of an answer that broke off."""
        attempts = (*attempts, *attempts_of(error))
        self._ended(index, error.code, reason, attempts, usage, model)

    def abandoned(
        self,
        index: int,
        reason: Reason,
        attempts: tuple[Attempt, ...],
        usage: Usage | None,
        model: str,
    ) -> None:
        """Settle an input whose client left while the answer was on its way."""
        self._ended(index, ABANDONED, reason, attempts, usage, model)

    def settled(
        self,
        index: int,
        result: Answer | NarrowgateError,
        reason: Reason | None,
        attempts: tuple[Attempt, ...],
    ) -> None:
        """Settle an input of a task by what became of it."""
        if isinstance(result, Answer):
            self.answered(
                index, result.route, reason or "narrow", result.model, result.usage, attempts,
                valid=result.valid,
            )  # fmt: skip
        else:
            self.failed(index, result, reason, attempts)

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

    def __enter__(self) -> Self:
        """Open the books."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close them."""
        self.close(error)

    def _ended(
        self,
        index: int,
        code: str,
        reason: Reason | None,
        attempts: tuple[Attempt, ...],
        usage: Usage | None = None,
        model: str | None = None,
    ) -> None:
        self._leave(
            index,
            Exit(
                self._request_id, self._endpoint, self._task, "none", reason, model, usage,
                self.elapsed_s, attempts, valid=False, error=code,
            ),
        )  # fmt: skip

    def _leave(self, index: int, exit_: Exit) -> None:
        if index in self._open:
            self._open.remove(index)
            self._exits.left(exit_)


@contextmanager
def closed_on_error(books: Books) -> Iterator[None]:
    """Close the books where an error ends the request; a reply under way keeps them open."""
    try:
        yield
    except BaseException as error:
        books.close(error)
        raise
