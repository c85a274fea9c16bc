"""Providers' batch APIs, as the scheduler uses them."""

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol

from serving.contracts.errors import (
    FrontierAuthFailed,
    FrontierContextTooLong,
    FrontierError,
    FrontierQuotaExhausted,
    FrontierRateLimited,
    FrontierRejected,
    FrontierUnknownModel,
    NarrowgateError,
)
from serving.contracts.prices import BATCH
from serving.frontier.failures import is_unreached
from serving.frontier.provider_api import WholeAnswer
from serving.frontier.spent import NOTHING, RequestFacts, Spent, spent_on

Phase = Literal[
    "validating",
    "running",
    "cancelling",
    "ended",  # final
    "failed",  # final: the provider refused the whole batch, and bills nothing
    "expired",  # final; lines that finished before are in the results, and billed
    "cancelled",  # final; as for `expired`
    "missing",  # the provider does not find it now; it may be found later
]

FINAL_PHASES: frozenset[Phase] = frozenset({"ended", "failed", "expired", "cancelled"})

_REFUSED = (
    FrontierAuthFailed,
    FrontierContextTooLong,
    FrontierQuotaExhausted,
    FrontierRateLimited,
    FrontierRejected,
    FrontierUnknownModel,
)

LineKind = Literal["succeeded", "errored", "expired", "cancelled"]


@dataclass(frozen=True, slots=True)
class ProviderLine:
    """One request of a provider batch.

    key: our line key, at most 64 characters of [A-Za-z0-9_-], unique for ever. body: the
    provider's own request body, as serving.frontier prepares a synchronous call.
    """

    key: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class LineCounts:
    """Lines of a provider batch by result. total: 0 while the provider has not counted them."""

    total: int = 0
    succeeded: int = 0
    errored: int = 0
    expired: int = 0
    cancelled: int = 0


@dataclass(frozen=True, slots=True)
class ProviderBatchState:
    """The state of a provider batch.

    error: why the provider refused it, for people. is_retryable: it refused the batch, not its
    lines, which may be sent again unchanged.
    """

    id: str
    phase: Phase
    counts: LineCounts = LineCounts()
    ended_at: datetime | None = None
    error: str | None = None
    is_retryable: bool = False

    @property
    def is_final(self) -> bool:
        """Return whether nothing of the batch can change any more."""
        return self.phase in FINAL_PHASES


@dataclass(frozen=True, slots=True)
class ProviderLineResult:
    """The result of one line.

    document: an OpenAI-shaped chat completion, None unless it succeeded. spent: the usage to
    record; NOTHING where the line is not billed. error: None where it succeeded.
    """

    key: str
    kind: LineKind
    document: dict[str, Any] | None = None
    spent: Spent = NOTHING
    error: NarrowgateError | None = None


@dataclass(frozen=True, slots=True)
class Uncertain:
    """A batch may be the one that was searched for, and nothing proves or refutes it yet.

    candidates: ids of the batches that fit by count and time; empty where the provider's list
    may lag behind. Ask again later; send nothing before.
    """

    candidates: tuple[str, ...] = ()


class ProviderBatches(Protocol):
    """The batch API of one provider. Raises only FrontierErrors.

    max_lines, max_bytes: the most that one batch may hold. window_s: after this time it has ended.
    """

    max_lines: int
    max_bytes: int
    window_s: float

    async def submit(self, lines: Sequence[ProviderLine], batch_key: str, model: str) -> str:
        """Create a batch and return the provider's id.

        batch_key: our id of the submission, unique for ever. model: the provider's name of it.
        After an error for which may_leave_batch is true, ask `find` before anything is sent again.
        """
        ...

    async def find(
        self,
        batch_key: str,
        since: datetime,
        keys: Collection[str],
        known: Collection[str] = (),
    ) -> str | Uncertain | None:
        """Return the id of the batch that a submission made; None where it made none.

        since: when the intent was written, with its time zone. keys: of the submitted lines. known:
        the provider's ids of other submissions.
        """
        ...

    async def state(self, batch_id: str) -> ProviderBatchState:
        """Return the state of a batch."""
        ...

    def results(
        self, batch_id: str, keys: Collection[str] | None = None
    ) -> AsyncGenerator[ProviderLineResult, None]:
        """Yield the results of a final batch once each, in any order.

        keys: of its lines; results of others are logged and left out. A file that breaks off or
        lacks lines is read again; lines may still be missing at the end. The whole may be read
        again from the start. Close the iterator where it is not read to its end.
        """
        ...

    async def cancel(self, batch_id: str) -> None:
        """Ask for the end of a batch; lines that finish before it are billed. May be repeated."""
        ...

    async def forget(self, batch_id: str) -> None:
        """Delete a final batch's requests and results at the provider, where it still has them.

        Nothing can be read again afterwards. Does nothing for a batch that is not final.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...


def may_leave_batch(error: FrontierError) -> bool:
    """Return whether a submission that ended in this error may have created a batch."""
    return not isinstance(error, _REFUSED) and not is_unreached(error)


def checked_spent(result: ProviderLineResult, facts: RequestFacts) -> Spent:
    """Return a result's usage, estimated where the provider's own is missing or not possible."""
    if result.document is None:
        return result.spent
    answer = WholeAnswer(result.document, result.spent.usage, BATCH)
    return spent_on(answer, facts)
