"""Anthropic's Message Batches: requests inline, results by custom id, no metadata."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote

from anthropic._constants import RAW_RESPONSE_HEADER
from anthropic._response import AsyncAPIResponse, AsyncResponseContextManager
from anthropic._types import RequestOptions
from pydantic import SecretStr

from serving.batch.batch_calls import (
    CLOCK_SKEW,
    LIST_LAG,
    MAX_BATCH_BYTES,
    MOST_PAGES,
    WINDOW_S,
    ResultReader,
    Retries,
    VendorCalls,
    count_in,
    errored,
    is_in_window,
    succeeded,
    utc_now,
)
from serving.batch.provider_batches import (
    LineCounts,
    Phase,
    ProviderBatchState,
    ProviderLine,
    ProviderLineResult,
    Uncertain,
)
from serving.contracts.errors import FrontierError
from serving.contracts.file_lines import lines_of
from serving.contracts.frontier_settings import ProviderSettings
from serving.frontier.anthropic_api import AnthropicApi
from serving.frontier.anthropic_errors import ERRORS, translate
from serving.frontier.http_errors import unreadable, unsendable
from serving.frontier.provider_data import read_json

_PATH = "/v1/messages/batches"
_PAGE = 100
_RAW: RequestOptions = {"headers": {RAW_RESPONSE_HEADER: "stream"}}

_PHASES: dict[str, Phase] = {
    "in_progress": "running",
    "canceling": "cancelling",
    "ended": "ended",
}

_Response = AsyncResponseContextManager[AsyncAPIResponse[object]]


class AnthropicBatches:
    """Anthropic's batches. now: with its time zone.

    A batch carries nothing of ours but the custom ids, which only its results show.
    """

    max_lines = 100_000
    max_bytes = MAX_BATCH_BYTES
    window_s = WINDOW_S

    def __init__(
        self,
        name: str,
        settings: ProviderSettings,
        key: SecretStr | None,
        rng: random.Random,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._api = AnthropicApi(name, settings, key)
        secret = key.get_secret_value() if key else None
        self._calls = VendorCalls(
            name, secret, ERRORS, translate, Retries(settings.max_retries, rng)
        )
        self._batches = self._api.client.messages.batches.with_streaming_response
        self._now = now

    async def submit(self, lines: Sequence[ProviderLine], batch_key: str, model: str) -> str:
        """Create a batch of the lines; their keys are its custom ids."""
        data = await asyncio.to_thread(_body_of, lines, self._calls.name)
        return self._calls.id_of(await self._calls.document(self._sent(data)))

    async def find(
        self,
        batch_key: str,
        since: datetime,
        keys: Collection[str],
        known: Collection[str] = (),
    ) -> str | Uncertain | None:
        """Return the batch whose results name one of the keys.

        A batch of as many lines, created at that time and not of another submission, is uncertain
        until it has results.
        """
        wanted = frozenset(keys)
        candidates = []
        for batch in await self._created_since(since):
            id_ = self._calls.id_of(batch)
            if id_ in known or self._state(batch).counts.total != len(wanted):
                continue
            if not self._state(batch).is_final:
                candidates.append(id_)
                continue
            first = await self._first_key(id_)
            if first in wanted:
                return id_
            if first is None:
                candidates.append(id_)
        if candidates or self._now() - since < LIST_LAG:
            return Uncertain(tuple(candidates))
        return None

    async def state(self, batch_id: str) -> ProviderBatchState:
        """Return the state of a batch."""
        batch = await self._calls.read(lambda: self._batches.retrieve(batch_id))
        return ProviderBatchState(batch_id, "missing") if batch is None else self._state(batch)

    async def results(
        self, batch_id: str, keys: Collection[str] | None = None
    ) -> AsyncGenerator[ProviderLineResult, None]:
        """Yield the lines of the results."""
        counts = (await self.state(batch_id)).counts
        expected = counts.succeeded + counts.errored + counts.expired + counts.cancelled
        reader = ResultReader(self._calls, batch_id, keys)
        results = reader.read(lambda: self._pieces(batch_id), self._result, expected)
        async with aclosing(results):
            async for result in results:
                yield result

    async def cancel(self, batch_id: str) -> None:
        """Ask for the end of a batch; does nothing where it has ended, or is not found."""
        try:
            await self._calls.read(lambda: self._batches.cancel(batch_id))
        except FrontierError:
            if not (await self.state(batch_id)).is_final:
                raise

    async def forget(self, batch_id: str) -> None:
        """Delete a final batch."""
        if (await self.state(batch_id)).is_final:
            await self._calls.read(lambda: self._batches.delete(batch_id))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._api.aclose()

    def _sent(self, data: bytes) -> _Response:
        # Encoded beforehand, in a thread: the SDK would do it on the event loop.
        client = self._api.client
        return AsyncResponseContextManager(
            client.post(_PATH, cast_to=AsyncAPIResponse[object], content=data, options=_RAW)
        )

    def _pieces(self, batch_id: str) -> AsyncGenerator[bytes, None]:
        # Not from the address that the batch names: it could be another host.
        path = f"{_PATH}/{quote(batch_id, safe='')}/results"

        def download() -> _Response:
            client = self._api.client
            return AsyncResponseContextManager(
                client.get(path, cast_to=AsyncAPIResponse[object], options=_RAW)
            )

        return self._calls.pieces([download])

    async def _created_since(self, since: datetime) -> list[dict[str, Any]]:
        """Return the batches that a submission may have created that began at `since`."""
        found: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        for _ in range(MOST_PAGES):
            answer = await self._calls.read(partial(self._batches.list, limit=_PAGE, **more))
            page = self._calls.items(answer or {})
            # One without a readable time may be the one.
            times = [_time(batch, "created_at") or since for batch in page]
            found += [
                batch for batch, at in zip(page, times, strict=True) if is_in_window(at, since)
            ]
            # Newest first.
            if len(page) < _PAGE or min(times) < since - CLOCK_SKEW:
                return found
            last = more.get("after_id")
            more = {"after_id": self._calls.id_of(page[-1])}
            if more["after_id"] == last:
                break
        # A server that does not turn its pages, or has thousands of them.
        raise unreadable(self._calls.name, "its list of batches does not end")

    async def _first_key(self, batch_id: str) -> str | None:
        """Return the custom id of any result; None where there is none to read."""
        try:
            async with (
                aclosing(self._pieces(batch_id)) as body,
                aclosing(lines_of(body)) as lines,
            ):
                async for line in lines:
                    document = read_json(line)
                    key = document.get("custom_id") if isinstance(document, dict) else None
                    return key if isinstance(key, str) else None
        except (FrontierError, ValueError):
            return None
        return None

    def _state(self, batch: Mapping[str, Any]) -> ProviderBatchState:
        status, counts = batch.get("processing_status"), batch.get("request_counts")
        phase = _PHASES.get(status) if isinstance(status, str) else None
        if phase is None:
            raise unreadable(self._calls.name, f"a batch has the status {str(status)[:40]!r}")
        succeeded, errored = count_in(counts, "succeeded"), count_in(counts, "errored")
        expired, cancelled = count_in(counts, "expired"), count_in(counts, "canceled")
        total = succeeded + errored + expired + cancelled + count_in(counts, "processing")
        if phase == "ended" and expired:
            phase = "expired"
        elif phase == "ended" and cancelled:
            phase = "cancelled"
        return ProviderBatchState(
            self._calls.id_of(batch),
            phase,
            LineCounts(total, succeeded, errored, expired, cancelled),
            _time(batch, "ended_at"),
        )

    def _result(self, line: Mapping[str, Any]) -> ProviderLineResult:
        key, result, calls = line["custom_id"], line.get("result"), self._calls
        kind = result.get("type") if isinstance(result, Mapping) else None
        if kind == "expired":
            return calls.expired(key)
        if kind == "canceled":
            return calls.cancelled(key)
        if isinstance(result, Mapping) and kind == "errored":
            return errored(key, calls.refused(200, result.get("error")))
        message = result.get("message") if isinstance(result, Mapping) else None
        if kind == "succeeded" and isinstance(message, dict):
            return succeeded(key, lambda: self._api.read(message, str(message.get("model"))))
        return errored(key, unreadable(calls.name, "a line has neither an answer nor an error"))


def _body_of(lines: Sequence[ProviderLine], provider: str) -> bytes:
    """Return the request that creates a batch of the lines. Raises FrontierRejected."""
    requests = [{"custom_id": line.key, "params": line.body} for line in lines]
    try:
        return json.dumps(
            {"requests": requests}, ensure_ascii=False, separators=(",", ":")
        ).encode()
    except (TypeError, ValueError) as error:
        raise unsendable(provider, error) from None


def _time(document: Mapping[str, Any], name: str) -> datetime | None:
    value = document.get(name)
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found
