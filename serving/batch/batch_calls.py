"""Calls of a provider's batch API: reads are repeated, files are read line by line."""

import asyncio
import logging
import random
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from serving.batch.provider_batches import ProviderLineResult
from serving.contracts.errors import (
    FrontierError,
    FrontierInvalidResponse,
    FrontierRateLimited,
    FrontierTimeout,
    FrontierUnavailable,
    FrontierUnknownModel,
)
from serving.contracts.file_lines import lines_of
from serving.contracts.prices import BATCH
from serving.frontier.failures import may_be_billed, usage_of
from serving.frontier.http_errors import (
    error_of,
    refusal_from,
    unreadable,
    unsendable,
)
from serving.frontier.provider_api import WholeAnswer
from serving.frontier.provider_data import read_json, repaired
from serving.frontier.retry_after import wait_s
from serving.frontier.sdk_api import read_document
from serving.frontier.spent import NOTHING, UNKNOWN, Spent

T = TypeVar("T")

WINDOW_S = 24 * 3600.0
"""Both vendors end a batch after this time, by their clocks."""

LIST_LAG = timedelta(minutes=15)
"""A batch that no list has shown for this time after its submission was not created. Neither vendor
promises how soon a list shows a new batch."""

CLOCK_SKEW = timedelta(minutes=10)
"""Between the provider's clock and this one."""

LONGEST_SUBMISSION = timedelta(hours=1)
"""A batch that was created later than this after an intent belongs to another one."""

MAX_BATCH_BYTES = 16 * 2**20
"""Of one batch. Vendors take more, but a batch is in memory while it is sent, and two cost no more
than one."""

MOST_PAGES = 100
"""Of one search in a provider's list."""

_READS = 3
_MAY_READ_AGAIN = (
    FrontierInvalidResponse,
    FrontierRateLimited,
    FrontierTimeout,
    FrontierUnavailable,
)

logger = logging.getLogger(__name__)


def utc_now() -> datetime:
    """Return the time with its zone."""
    return datetime.now(UTC)


class Retries:
    """Repeats what only reads, as often as a provider's settings allow."""

    def __init__(self, max_retries: int, rng: random.Random) -> None:
        self._max_retries = max_retries
        self._rng = rng

    async def read(self, once: Callable[[], Awaitable[T]]) -> T:
        """Return the first answer. Raises the last FrontierError."""
        retry = 0
        while True:
            try:
                return await once()
            except _MAY_READ_AGAIN as error:
                if retry >= self._max_retries:
                    raise
                await self.pause(retry, error)
            retry += 1

    async def pause(self, retry: int, error: FrontierError | None = None) -> None:
        """Wait before a retry. retry: 0 for the first."""
        asked_s = error.retry_after_s if error is not None else None
        await asyncio.sleep(wait_s(retry, asked_s, self._rng))


@dataclass(frozen=True)
class VendorCalls:
    """What both vendors' calls share.

    errors: every class that the SDK raises. translate: turns one into a FrontierError. secret: the
    key, which no message may quote.
    """

    name: str
    secret: str | None
    errors: tuple[type[Exception], ...]
    translate: Callable[[Exception, str, str | None], FrontierError]
    retries: "Retries"

    async def document(self, answer: AbstractAsyncContextManager[Any]) -> dict[str, Any]:
        """Return the JSON object that a call answers. Raises FrontierError."""
        try:
            async with answer as response:
                return await read_document(response.iter_bytes(), self.name, self.errors)
        except self.errors as error:
            # Not `from error`: it holds the request, key included.
            raise self.translate(error, self.name, self.secret) from None
        except (TypeError, ValueError) as error:
            raise unsendable(self.name, error) from None

    async def read(
        self, answer: Callable[[], AbstractAsyncContextManager[Any]]
    ) -> dict[str, Any] | None:
        """Return what a call that changes nothing answers, None for a 404. Raises FrontierError."""
        try:
            return await self.retries.read(lambda: self.document(answer()))
        except FrontierUnknownModel:
            return None

    async def pieces(
        self, files: Iterable[Callable[[], AbstractAsyncContextManager[Any]]]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of files, one after the other. Raises FrontierError."""
        try:
            for file in files:
                async with file() as response:
                    async for piece in response.iter_bytes():
                        yield piece
                yield b"\n"
        except self.errors as error:
            failed = self.translate(error, self.name, self.secret)
            if isinstance(failed, FrontierUnknownModel):
                failed = unreadable(self.name, "its results are not found")
            raise failed from None

    def refused(self, status: int, document: object) -> FrontierError:
        """Return the error that a line's result names. status: 200 where the error tells it."""
        return error_of(refusal_from(self.name, status, document), self.secret)

    def id_of(self, document: Mapping[str, Any]) -> str:
        """Return a document's id. Raises FrontierInvalidResponse."""
        found = document.get("id")
        if not isinstance(found, str) or not found or not found.isprintable():
            raise unreadable(self.name, "it names no id")
        return found

    def items(self, page: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the batches of a page. Raises FrontierInvalidResponse."""
        data = page.get("data")
        if not isinstance(data, list) or not all(isinstance(batch, dict) for batch in data):
            raise unreadable(self.name, "it is not a list of batches")
        return data

    def missing(self, batch_id: str) -> FrontierError:
        """Return the error of a batch that is not found while its results are read."""
        return unreadable(self.name, f"it has no batch {batch_id[:80]!r}")

    def expired(self, key: str) -> ProviderLineResult:
        """Return the result of a line that did not run in the batch's time."""
        error = FrontierUnavailable(
            f"provider {self.name!r} did not run the line within the batch's time",
            fix="send it again",
        )
        return ProviderLineResult(key, "expired", error=error)

    def cancelled(self, key: str) -> ProviderLineResult:
        """Return the result of a line that did not run before its batch was cancelled."""
        error = FrontierUnavailable(
            f"provider {self.name!r} did not run the line: its batch was cancelled",
            fix="send it again",
        )
        return ProviderLineResult(key, "cancelled", error=error)


def succeeded(key: str, read: Callable[[], WholeAnswer]) -> ProviderLineResult:
    """Return the result of a line with an answer. read: reads it; it may raise a FrontierError."""
    try:
        answer = read()
    except FrontierError as error:
        return errored(key, error)
    # Not the tier that the answer names: OpenAI's is that of a request outside of batches.
    spent = Spent(answer.usage, "reported", BATCH) if answer.usage is not None else UNKNOWN
    return ProviderLineResult(key, "succeeded", answer.body, spent)


def errored(key: str, error: FrontierError) -> ProviderLineResult:
    """Return the result of a line without an answer; it may be billed where the error says so."""
    usage = usage_of(error)
    spent = Spent(usage, "reported", BATCH) if usage is not None else NOTHING
    if usage is None and may_be_billed(error):
        spent = UNKNOWN
    return ProviderLineResult(key, "errored", spent=spent, error=error)


class ResultReader:
    """Reads the results of one batch, again where they break off, and yields each line once.

    keys: of the lines; any where None. Memory: one line, and the keys that were read.
    """

    def __init__(self, calls: VendorCalls, batch_id: str, keys: Collection[str] | None) -> None:
        self._provider = calls.name
        self._batch_id = batch_id
        self._keys = None if keys is None else frozenset(keys)
        self._retries = calls.retries
        self._read: set[str] = set()
        self._unknown = 0

    async def read(
        self,
        pieces: Callable[[], AsyncGenerator[bytes, None]],
        result: Callable[[dict[str, Any]], ProviderLineResult],
        expected: int,
    ) -> AsyncGenerator[ProviderLineResult, None]:
        """Yield results. pieces: begins the download. expected: how many lines there are."""
        expected = len(self._keys) if self._keys is not None else expected
        for attempt in range(_READS):
            error: FrontierError | None = None
            try:
                async with aclosing(self._once(pieces, result)) as results:
                    async for found in results:
                        yield found
            except _MAY_READ_AGAIN as failed:
                error = failed
            is_whole = error is None and len(self._read) >= expected
            if is_whole or attempt == _READS - 1:
                break
            await self._retries.pause(attempt, error)
        if error is not None:
            raise error
        self._report(expected)

    async def _once(
        self,
        pieces: Callable[[], AsyncGenerator[bytes, None]],
        result: Callable[[dict[str, Any]], ProviderLineResult],
    ) -> AsyncGenerator[ProviderLineResult, None]:
        self._unknown = 0
        try:
            async with aclosing(pieces()) as body, aclosing(lines_of(body)) as lines:
                async for line in lines:
                    found = self._found(line, result)
                    if found is not None:
                        yield found
        except ValueError:
            raise unreadable(self._provider, "a line of the results has over 16 MiB") from None

    def _report(self, expected: int) -> None:
        if len(self._read) < expected:
            logger.warning(
                "batch.results_incomplete provider=%s batch=%s lines=%d expected=%d",
                self._provider, self._batch_id, len(self._read), expected,
            )  # fmt: skip
        if self._unknown:
            logger.warning(
                "batch.results_unknown provider=%s batch=%s lines=%d",
                self._provider, self._batch_id, self._unknown,
            )  # fmt: skip

    def _found(
        self, line: bytes, result: Callable[[dict[str, Any]], ProviderLineResult]
    ) -> ProviderLineResult | None:
        """Return a line's result; None where it was read before, or is nobody's."""
        try:
            document = repaired(read_json(line))
        except ValueError:
            # Half a line at the end of a file that broke off.
            return None
        key = document.get("custom_id") if isinstance(document, dict) else None
        if not isinstance(key, str) or (self._keys is not None and key not in self._keys):
            self._unknown += 1
            return None
        if key in self._read:
            return None
        self._read.add(key)
        return result(document)


def is_in_window(created: datetime, since: datetime) -> bool:
    """Return whether a batch may have been created by a submission that began at `since`."""
    return since - CLOCK_SKEW <= created <= since + LONGEST_SUBMISSION


def count_in(document: object, name: str) -> int:
    """Return a count of a provider's document, 0 where it is missing or malformed."""
    value = document.get(name) if isinstance(document, dict) else None
    return value if type(value) is int and value >= 0 else 0
