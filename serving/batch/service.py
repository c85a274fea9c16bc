"""Files and batches of tenants, for the endpoints; runs the scheduler beside them."""

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from serving.batch.blobs import BlobStore
from serving.batch.check import FileCheck, LineRules
from serving.batch.check_turns import CheckTurns
from serving.batch.files import FileStore, FileUpload, utc_now
from serving.batch.lines import CHAT_URL, TASK_PREFIX
from serving.batch.scheduler import Scheduler
from serving.batch.store import BatchStore, Limits
from serving.contracts.batch import (
    SKIP,
    BatchOrder,
    BatchRecord,
    Checked,
    Page,
    PageRequest,
    Purpose,
    StoredFile,
    TenantBatches,
)
from serving.contracts.batch_settings import BatchSettings
from serving.contracts.errors import InvalidRequest, LedgerUnavailable
from serving.contracts.invalid_values import invalid
from serving.contracts.ledger import Caller
from serving.ledger.reports.query import refuse_unknown_tenant
from serving.tasks.catalog import find_task

logger = logging.getLogger(__name__)
T = TypeVar("T")

_THREADS = 4
_POLL_S = 0.05
_SWEEP_S = 60.0
_DURATION = re.compile(r"([1-9]\d{0,5})([smhd])", re.ASCII)
_PURPOSE = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}", re.ASCII)
_KNOWN_PURPOSES = ("audit", "request")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_LONGEST = timedelta(days=30)
_MAX_PAIRS, _MAX_KEY, _MAX_VALUE = 16, 64, 512


@dataclass(frozen=True, slots=True)
class BatchService:
    """Implements serving.contracts.batch.Batches."""

    store: BatchStore
    file_store: FileStore
    blobs: BlobStore
    rules: LineRules
    settings: BatchSettings
    scheduler: Scheduler
    threads: ThreadPoolExecutor
    checks: CheckTurns
    now: Callable[[], datetime] = utc_now
    turns: defaultdict[str, asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    async def start(self) -> None:
        """Check the encryption key. Raises InvalidKey; an unreachable database is no error."""
        try:
            await self.run(self.file_store.check_key)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            logger.warning("batch.key_not_checked error=%s", type(error).__name__)

    def upload(self, caller: Caller) -> "ServiceUpload":
        """Begin to receive a file."""
        return ServiceUpload(self, caller.tenant)

    async def file(self, caller: Caller, file: str) -> StoredFile:
        """Return a file's facts. Raises NotFound."""
        return await self.run(self.file_store.find, caller.tenant, file)

    async def files(self, caller: Caller, purpose: str | None, page: PageRequest) -> Page:
        """Return StoredFiles. Raises NotFound for an `after` that is no file."""
        return await self.run(self.file_store.listed, caller.tenant, purpose, page)

    async def content(self, caller: Caller, file: str) -> AsyncIterator[bytes]:
        """Return a file's content in pieces. Raises NotFound."""
        blob = await self.run(self.file_store.blob, caller.tenant, file)
        pieces = self.blobs.pieces(blob)
        # The first piece before the response begins: a missing content is an error, not a break.
        first = await self.run(next, pieces, b"")

        async def rest() -> AsyncIterator[bytes]:
            piece = first
            while piece:
                yield piece
                piece = await self.run(next, pieces, b"")

        return rest()

    async def delete_file(self, caller: Caller, file: str) -> None:
        """Delete a file. Raises NotFound, FileInUse."""
        await self.run(self.file_store.delete, caller.tenant, file)

    async def create(self, caller: Caller, order: BatchOrder) -> BatchRecord:
        """Create a batch, and wait a while for its file to be checked. Raises as `check`."""
        now = self.now()
        limits = self._limits(order, now)
        await self._require_input(caller, order)
        name = await self.run(self.store.create, caller, order, now, limits)
        self.scheduler.wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.validation_wait_s):
                while True:
                    found = await self.batch(caller, name)
                    if found.status != "validating":
                        return found
                    await asyncio.sleep(_POLL_S)
        return await self.batch(caller, name)

    async def check(self, caller: Caller, order: BatchOrder) -> Checked:
        """Check a file as `create` does, and run nothing. Raises InvalidRequest, NotFound."""
        self._limits(order, self.now())
        await self._require_input(caller, order)
        blob = await self.run(self.file_store.blob, caller.tenant, order.input_file)

        found = FileCheck(self.rules, order.endpoint, caller)
        # Of a tenant one at a time: the turns are the tenants'.
        async with self.turns[caller.tenant]:
            await self.checks.run(found.steps(self.blobs.pieces(blob)))
        return found.result()

    async def batch(self, caller: Caller, batch: str) -> BatchRecord:
        """Return a batch. Raises NotFound."""
        return await self.run(self.store.find, caller.tenant, batch)

    async def batches(self, caller: Caller, page: PageRequest) -> Page:
        """Return BatchRecords. Raises NotFound for an `after` that is no batch."""
        return await self.run(self.store.listed, caller.tenant, page)

    async def overview(self) -> Sequence[TenantBatches]:
        """Return the batches of every tenant that has some, for the operator."""
        return await self.run(self.store.overview, self.now())

    async def cancel(self, caller: Caller, batch: str) -> BatchRecord:
        """Start no further line. Raises NotFound, BatchEnded."""
        await self.run(self.store.cancel, caller.tenant, batch, self.now())
        self.scheduler.wake()
        return await self.batch(caller, batch)

    async def cancel_all(self, tenant: str) -> int:
        """Start no further line of a tenant's batches. Raises NotFound for an unknown tenant."""
        count = int(await self.run(self.store.cancel_all, tenant, self.now()))
        if not count:
            await self.run(refuse_unknown_tenant, self.store.database, tenant)
        self.scheduler.wake()
        return count

    async def watch(self) -> None:
        """Run batches and delete expired files until cancelled."""
        sweeping = asyncio.create_task(self._sweep())
        try:
            await self.scheduler.watch()
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, return_exceptions=True)
            self.threads.shutdown(wait=False, cancel_futures=True)
            self.checks.close()

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a blocking function in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.threads, function, *arguments)

    async def _sweep(self) -> None:
        while True:
            try:
                deleted = await self.run(self.file_store.sweep)
                if deleted:
                    logger.info("batch.files_expired files=%d", deleted)
            except (LedgerUnavailable, SQLAlchemyError, OSError) as error:
                logger.warning("batch.sweep_failed error=%s", type(error).__name__)
            await asyncio.sleep(_SWEEP_S)

    async def _require_input(self, caller: Caller, order: BatchOrder) -> None:
        """Raise InvalidRequest, NotFound where an order's endpoint or file cannot be used."""
        if order.endpoint.startswith(TASK_PREFIX):
            find_task(self.rules.policy.specs, order.endpoint.removeprefix(TASK_PREFIX))
        elif order.endpoint != CHAT_URL:
            raise invalid("endpoint", order.endpoint, f"{CHAT_URL} or {TASK_PREFIX}NAME")
        file = await self.file(caller, order.input_file)
        if file.purpose != "batch":
            raise InvalidRequest(
                f"the file {file.id!r} has the purpose {file.purpose!r}, not 'batch'",
                field="input_file_id",
                fix="upload the requests with purpose: batch",
            )

    def _limits(self, order: BatchOrder, now: datetime) -> Limits:
        """Return a batch's limits. Raises InvalidRequest, which names the field."""
        _require_metadata(order.metadata)
        window = _duration(order.completion_window)
        if window is None:
            raise invalid("completion_window", order.completion_window, "a time such as 24h or 7d")
        ends = now + window
        if (wanted := order.metadata.get("deadline")) is not None:
            ends = min(ends, _deadline(wanted, now))
        usd = order.metadata.get("max_cost_usd")
        return Limits(ends, None if usd is None else _dollars(usd), order.expires_after_s)


class ServiceUpload:
    """Implements serving.contracts.batch.Upload. The file begins with its first bytes."""

    def __init__(self, service: BatchService, tenant: str) -> None:
        self._service = service
        self._tenant = tenant
        self._upload: FileUpload | None = None

    async def write(self, data: bytes) -> None:
        """Append bytes. Raises BodyTooLarge, InvalidRequest."""
        await self._service.run((await self._begun()).write, data)

    async def finish(self, filename: str, purpose: Purpose, ttl_s: float | None) -> StoredFile:
        """Keep the file."""
        upload = await self._begun()
        return await self._service.run(upload.finish, self._tenant, filename, purpose, ttl_s)

    async def abandon(self) -> None:
        """Delete what was received; does nothing after `finish`."""
        if self._upload is not None:
            await self._service.run(self._upload.abandon)

    async def _begun(self) -> FileUpload:
        if self._upload is None:
            self._upload = await self._service.run(self._service.file_store.begin, self._tenant)
        return self._upload


def _duration(text: str) -> timedelta | None:
    found = _DURATION.fullmatch(text)
    if found is None:
        return None
    length = timedelta(**{_UNITS[found[2]]: int(found[1])})
    return length if length <= _LONGEST else None


def _deadline(text: str, now: datetime) -> datetime:
    """Return a deadline: a time from now, or a moment with its time zone."""
    length = _duration(text)
    if length is not None:
        return now + length
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = now.replace(tzinfo=None)
    if moment.tzinfo is None or moment <= now:
        raise invalid(
            "metadata.deadline", text, "a time such as 6h, or a later moment with its time zone"
        )
    return moment


def _dollars(text: str) -> Decimal:
    try:
        # In ASCII, without the underscores that Python allows.
        usd = Decimal(text if text.isascii() and "_" not in text else "NaN")
    except InvalidOperation:
        usd = Decimal("NaN")
    if not usd.is_finite() or not 0 <= usd <= 1_000_000 or usd != round(usd, 12):
        raise invalid("metadata.max_cost_usd", text, "US dollars, such as 2.50")
    return usd


def _require_metadata(metadata: Mapping[str, str]) -> None:
    """Raise InvalidRequest for metadata that OpenAI's API would refuse, or of our own keys."""
    if len(metadata) > _MAX_PAIRS:
        raise InvalidRequest(
            f"metadata has {len(metadata)} pairs, and {_MAX_PAIRS} is the most",
            field="metadata",
            fix="send fewer pairs",
        )
    for key, value in metadata.items():
        if len(key) > _MAX_KEY or len(value) > _MAX_VALUE or "\x00" in key + value:
            raise InvalidRequest(
                f"metadata.{key[:_MAX_KEY]} is longer than {_MAX_KEY} and {_MAX_VALUE} characters, "
                "or holds the character NUL",
                field="metadata",
                fix="send shorter keys and values",
            )
    purpose = metadata.get("purpose")
    if purpose is not None and not _PURPOSE.fullmatch(purpose):
        raise invalid(
            "metadata.purpose", purpose, "up to 32 lower-case letters, digits, hyphens and "
            "underscores, such as nightly-labels",
        )  # fmt: skip
    if purpose in _KNOWN_PURPOSES:
        raise invalid("metadata.purpose", purpose, "another name: reports use this one")
    on_error = metadata.get("on_error", SKIP)
    if on_error not in (SKIP, "fail"):
        raise invalid("metadata.on_error", on_error, "skip or fail")
