"""OpenAI's batches: a file of requests, a batch of it, and files of results."""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

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
    succeeded,
    utc_now,
)
from serving.batch.provider_batches import (
    FINAL_PHASES,
    LineCounts,
    Phase,
    ProviderBatchState,
    ProviderLine,
    ProviderLineResult,
    Uncertain,
    may_leave_batch,
)
from serving.contracts.errors import FrontierError
from serving.contracts.frontier_settings import ProviderSettings
from serving.frontier.http_errors import quoted, unreadable, unsendable
from serving.frontier.openai_api import OpenAIApi
from serving.frontier.openai_errors import ERRORS, translate

_ENDPOINT: Final = "/v1/chat/completions"
_KEY = "narrowgate_batch"
_PAGE = 100
_SHOWN_PROBLEMS = 5

_PHASES: dict[str, Phase] = {
    "validating": "validating",
    "in_progress": "running",
    "finalizing": "running",
    "completed": "ended",
    "failed": "failed",
    "expired": "expired",
    "cancelling": "cancelling",
    "cancelled": "cancelled",
}
_RETRYABLE = frozenset({"token_limit_exceeded", "rate_limit_exceeded", "server_error"})
"""Codes of a failed batch whose lines are not at fault."""


class OpenAIBatches:
    """The batches of OpenAI, or of a server with the same API. now: with its time zone."""

    max_lines = 50_000
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
        self._api = OpenAIApi(name, settings, key)
        secret = key.get_secret_value() if key else None
        self._calls = VendorCalls(
            name, secret, ERRORS, translate, Retries(settings.max_retries, rng)
        )
        self._batches = self._api.client.batches.with_streaming_response
        self._files = self._api.client.files.with_streaming_response
        self._now = now

    async def submit(self, lines: Sequence[ProviderLine], batch_key: str, model: str) -> str:
        """Upload the lines and create a batch of them. Its metadata hold the batch key."""
        calls = self._calls
        data = await asyncio.to_thread(_file_of, lines, calls.name)
        file = ("lines.jsonl", data)
        uploaded = await calls.retries.read(
            # A file that is uploaded twice costs nothing, and expires.
            lambda: calls.document(self._files.create(file=file, purpose="batch"))
        )
        file_id = calls.id_of(uploaded)
        try:
            batch = await calls.document(
                self._batches.create(
                    input_file_id=file_id,
                    endpoint=_ENDPOINT,
                    completion_window="24h",
                    metadata={_KEY: batch_key},
                )
            )
            return calls.id_of(batch)
        except FrontierError as error:
            if not may_leave_batch(error):
                with suppress(FrontierError):
                    await calls.document(self._files.delete(file_id))
            raise

    async def find(
        self,
        batch_key: str,
        since: datetime,
        keys: Collection[str],
        known: Collection[str] = (),
    ) -> str | Uncertain | None:
        """Return the batch whose metadata hold the batch key."""
        more: dict[str, Any] = {}
        for _ in range(MOST_PAGES):
            found = await self._calls.read(partial(self._batches.list, limit=_PAGE, **more))
            page = self._calls.items(found or {})
            for batch in page:
                metadata = batch.get("metadata")
                if isinstance(metadata, Mapping) and metadata.get(_KEY) == batch_key:
                    return self._calls.id_of(batch)
            # Newest first.
            times = [time for batch in page if (time := _time(batch, "created_at")) is not None]
            if len(page) < _PAGE or min(times, default=since) < since - CLOCK_SKEW:
                return Uncertain() if self._now() - since < LIST_LAG else None
            last = more.get("after")
            more = {"after": self._calls.id_of(page[-1])}
            if more["after"] == last:
                break
        # A server that does not turn its pages, or has thousands of them.
        return Uncertain()

    async def state(self, batch_id: str) -> ProviderBatchState:
        """Return the state of a batch."""
        batch = await self._calls.read(lambda: self._batches.retrieve(batch_id))
        return ProviderBatchState(batch_id, "missing") if batch is None else self._state(batch)

    async def results(
        self, batch_id: str, keys: Collection[str] | None = None
    ) -> AsyncGenerator[ProviderLineResult, None]:
        """Yield the lines of the output file and of the error file."""
        batch = await self._calls.read(lambda: self._batches.retrieve(batch_id))
        if batch is None:
            raise self._calls.missing(batch_id)
        state = self._state(batch)
        if not state.is_final:
            raise unreadable(self._calls.name, f"a batch that had ended is {batch['status']!r}")
        counts = state.counts
        ids = [batch.get("output_file_id"), batch.get("error_file_id")]
        files = [partial(self._files.content, id_) for id_ in ids if id_ and isinstance(id_, str)]
        reader = ResultReader(self._calls, batch_id, keys if files else ())
        expected = counts.succeeded + counts.errored if files else 0
        results = reader.read(lambda: self._calls.pieces(files), self._result, expected)
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
        """Delete the files of a final batch. OpenAI keeps the batch itself, without texts."""
        batch = await self._calls.read(lambda: self._batches.retrieve(batch_id))
        if batch is None or not self._state(batch).is_final:
            return
        for name in ("input_file_id", "output_file_id", "error_file_id"):
            if (file := batch.get(name)) and isinstance(file, str):
                await self._calls.read(partial(self._files.delete, file))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._api.aclose()

    def _state(self, batch: Mapping[str, Any]) -> ProviderBatchState:
        status, counts = batch.get("status"), batch.get("request_counts")
        phase = _PHASES.get(status) if isinstance(status, str) else None
        if phase is None:
            raise unreadable(self._calls.name, f"a batch has the status {str(status)[:40]!r}")
        problems = _problems(batch)
        texts = [str(problem.get("message") or problem.get("code")) for problem in problems]
        error = quoted("; ".join(texts), self._calls.secret) or "no reason given"
        codes = {str(problem.get("code")) for problem in problems}
        return ProviderBatchState(
            self._calls.id_of(batch),
            phase,
            LineCounts(
                count_in(counts, "total"), count_in(counts, "completed"), count_in(counts, "failed")
            ),
            _time(batch, f"{status}_at") if phase in FINAL_PHASES else None,
            error if phase == "failed" else None,
            phase == "failed" and bool(codes) and codes <= _RETRYABLE,
        )

    def _result(self, line: Mapping[str, Any]) -> ProviderLineResult:
        key, calls = line["custom_id"], self._calls
        error, response = line.get("error"), line.get("response")
        if isinstance(response, dict) and isinstance(body := response.get("body"), dict):
            status = response.get("status_code")
            if type(status) is int and status != 200:
                return errored(key, calls.refused(status, body))
            return succeeded(key, lambda: self._api.read(body, str(body.get("model"))))
        code = error.get("code") if isinstance(error, Mapping) else None
        if code == "batch_expired":
            return calls.expired(key)
        if code == "batch_cancelled":
            return calls.cancelled(key)
        if isinstance(error, Mapping):
            return errored(key, calls.refused(200, line))
        return errored(key, unreadable(calls.name, "a line has neither an answer nor an error"))


def _file_of(lines: Sequence[ProviderLine], provider: str) -> bytes:
    """Return the JSONL file of a batch's lines. Raises FrontierRejected."""
    try:
        return b"".join(
            json.dumps(
                {"custom_id": line.key, "method": "POST", "url": _ENDPOINT, "body": line.body},
                ensure_ascii=False,
                separators=(",", ":"),
            ).encode()
            + b"\n"
            for line in lines
        )
    except (TypeError, ValueError) as error:
        raise unsendable(provider, error) from None


def _problems(batch: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    errors = batch.get("errors")
    data = errors.get("data") if isinstance(errors, Mapping) else None
    listed = data if isinstance(data, list) else []
    found = [problem for problem in listed if isinstance(problem, Mapping)]
    return found[:_SHOWN_PROBLEMS]


def _time(document: Mapping[str, Any], name: str) -> datetime | None:
    value = document.get(name)
    try:
        return datetime.fromtimestamp(value, UTC) if isinstance(value, int | float) else None
    except (OverflowError, OSError, ValueError):
        # Beyond the calendar.
        return None
