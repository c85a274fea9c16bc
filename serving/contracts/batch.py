"""The batch lane as HTTP endpoints use it: files, batches, and what may be wrong with a line."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, Protocol

from serving.contracts.ledger import Caller

Purpose = Literal["batch", "batch_output"]

BatchStatus = Literal[
    "validating",  # its file is being checked; nothing has run
    "failed",  # its file was refused; nothing has run
    "in_progress",
    "finalizing",  # every line has ended; the result files are being written
    "completed",
    "expired",  # its deadline passed; finished lines are in the output file
    "cancelling",  # no line is started any more
    "cancelled",
]
FINAL_STATUSES: frozenset[BatchStatus] = frozenset({"failed", "completed", "expired", "cancelled"})

LineState = Literal[
    "waiting",
    "following",  # it waits for the answer to an equal line of its batch
    "running",  # a replica has started it; after a crash the ledger says whether it was paid
    "submitted",  # it is in a batch of a provider
    "succeeded",
    "failed",
    "cancelled",
    "expired",
]
ENDED_STATES: tuple[LineState, ...] = ("succeeded", "failed", "cancelled", "expired")

BATCH_ENDPOINTS = ("/v1/chat/completions", "/v1/tasks/")
"""URLs of lines. The last one is a prefix: a task's name follows."""

MAX_REPORTED = 1000
"""The most bad lines that a batch names."""


class Deferred(Exception):
    """A call of a provider that is not made now: its line waits for the provider's batch.

    target: `provider/model`. body: the provider's own request. worst_usd: at batch prices. Not an
    error of the request: no step may answer it in another way.
    """

    def __init__(self, target: str, body: Mapping[str, Any], worst_usd: Decimal) -> None:
        super().__init__(f"waits for a batch of {target}")
        self.target = target
        self.body = body
        self.worst_usd = worst_usd


def deferred(error: BaseException | None) -> Deferred | None:
    """Return the deferral that ended a request, also where steps raised it in a group."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for one in error.exceptions if (found := deferred(one))), None)
    return error if isinstance(error, Deferred) else None


SKIP = "skip"
"""Value of the metadata `on_error` that runs a file's good lines and reports the others."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a tenant. bytes: of its content. expires_at: when it is deleted."""

    id: str
    tenant: str
    purpose: Purpose
    filename: str
    bytes: int
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class LineProblem:
    """Why a line, or the whole file where line is None, cannot be run. line: from 1."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedRoute:
    """Lines that are expected to be answered in one way.

    route: `local`, `frontier`, or `auto` where the router decides line by line. model: as the lines
    name it, or the model that their task has. max_usd: worst case of all lines together, US
    dollars; None where no price is known. Local models' time is not part of it. reference_usd:
    worst case of the same lines at the reference model, asked synchronously. batch_usd: worst case
    in the provider's batch, None where they do not go there; the deadline may still forbid it.
    """

    route: Literal["local", "frontier", "auto"]
    model: str
    lines: int
    max_usd: Decimal | None
    reference_usd: Decimal | None = None
    batch_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class LineCount:
    """Lines of a batch. failed: also those that were cancelled or expired."""

    total: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """A batch of a tenant. Times are None until they happen. expires_at: its deadline.

    problems: bad lines; of a batch that is not `failed`, those that were skipped. cost_usd: of its
    finished lines; held_usd: worst case of those whose cost is unknown.
    """

    id: str
    tenant: str
    endpoint: str
    input_file: str
    completion_window: str
    status: BatchStatus
    created_at: datetime
    expires_at: datetime
    metadata: Mapping[str, str] = field(default_factory=dict)
    output_file: str | None = None
    error_file: str | None = None
    in_progress_at: datetime | None = None
    finalizing_at: datetime | None = None
    completed_at: datetime | None = None
    failed_at: datetime | None = None
    expired_at: datetime | None = None
    cancelling_at: datetime | None = None
    cancelled_at: datetime | None = None
    problems: tuple[LineProblem, ...] = ()
    plan: tuple[PlannedRoute, ...] = ()
    counts: LineCount = LineCount()
    cost_usd: Decimal | None = None
    max_cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class BatchOrder:
    """What a client asks for. endpoint: of every line. expires_after_s: of the result files."""

    endpoint: str
    input_file: str
    completion_window: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    expires_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Checked:
    """What a file's check found. lines: good ones."""

    lines: int
    problems: tuple[LineProblem, ...]
    plan: tuple[PlannedRoute, ...]


@dataclass(frozen=True, slots=True)
class HttpError:
    """An error as an endpoint answers it. body: the inner error object."""

    status: int
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list, in the order in which it is shown."""

    items: Sequence[Any]
    has_more: bool


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which part of a list. after: id of the item before it."""

    limit: int = 20
    after: str | None = None
    newest_first: bool = True


@dataclass(frozen=True, slots=True)
class TenantAudits:
    """Audits of one tenant that wait for a provider's batch.

    awaited: inputs without a verdict. oldest_at: their first draw. worst_usd: worst case of their
    calls together. statuses: batches of audits that have not ended, by status.
    """

    awaited: int = 0
    oldest_at: datetime | None = None
    worst_usd: Decimal = Decimal(0)
    statuses: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TenantBatches:
    """One tenant's batches, for the operator.

    statuses: batches that have not ended, by status. lines: theirs, by state. oldest_at: creation
    of the oldest of them. first_deadline: the earliest. held_usd: worst case of lines in progress
    and in providers' batches. ended: batches of the last day by status; unanswered: their lines
    without an answer. audits: which the tenant does not see; they are part of nothing else here.
    """

    tenant: str
    statuses: Mapping[str, int]
    lines: Mapping[str, int]
    oldest_at: datetime | None
    first_deadline: datetime | None
    held_usd: Decimal
    ended: Mapping[str, int]
    unanswered: int
    audits: TenantAudits = TenantAudits()


class Upload(Protocol):
    """A file that is being received. Either `finish` or `abandon` ends it."""

    async def write(self, data: bytes) -> None:
        """Append bytes. Raises BodyTooLarge over the file's limit, InvalidRequest over a quota."""
        ...

    async def finish(self, filename: str, purpose: Purpose, ttl_s: float | None) -> StoredFile:
        """Keep the file. ttl_s: seconds until it is deleted; the setting's where None."""
        ...

    async def abandon(self) -> None:
        """Delete what was received. May follow `finish`, and then does nothing."""
        ...


class Batches(Protocol):
    """Files and batches of tenants; serving.batch implements it.

    A caller sees its tenant's files and batches only; others' are NotFound. Every method may raise
    LedgerUnavailable.
    """

    def upload(self, caller: Caller) -> Upload:
        """Begin to receive a file."""
        ...

    async def overview(self) -> Sequence[TenantBatches]:
        """Return the batches of every tenant that has some, for the operator."""
        ...

    async def file(self, caller: Caller, file: str) -> StoredFile:
        """Return a file's facts. Raises NotFound."""
        ...

    async def files(self, caller: Caller, purpose: str | None, page: PageRequest) -> Page:
        """Return StoredFiles. Raises NotFound for an `after` that is no file."""
        ...

    async def content(self, caller: Caller, file: str) -> AsyncIterator[bytes]:
        """Return a file's content in pieces. Raises NotFound."""
        ...

    async def delete_file(self, caller: Caller, file: str) -> None:
        """Delete a file. Raises NotFound, and FileInUse for the input of an unfinished batch."""
        ...

    async def create(self, caller: Caller, order: BatchOrder) -> BatchRecord:
        """Create a batch, and wait a while for its file to be checked.

        Raises InvalidRequest, and NotFound for an unknown file.
        """
        ...

    async def check(self, caller: Caller, order: BatchOrder) -> Checked:
        """Check a file as `create` does, and run nothing. Raises InvalidRequest, NotFound."""
        ...

    async def batch(self, caller: Caller, batch: str) -> BatchRecord:
        """Return a batch. Raises NotFound."""
        ...

    async def batches(self, caller: Caller, page: PageRequest) -> Page:
        """Return BatchRecords. Raises NotFound for an `after` that is no batch."""
        ...

    async def cancel(self, caller: Caller, batch: str) -> BatchRecord:
        """Start no further line. Raises NotFound, and BatchEnded for one that has ended."""
        ...

    async def start(self) -> None:
        """Check what is stored against the settings. Raises InvalidKey."""
        ...

    async def cancel_all(self, tenant: str) -> int:
        """Start no further line of a tenant's batches; return how many batches that ends.

        Raises NotFound for an unknown tenant.
        """
        ...

    async def watch(self) -> None:
        """Run batches and delete expired files until cancelled."""
        ...
