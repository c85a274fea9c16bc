"""The ledger as requests use it: tenants, entries, calls of providers and their cost."""

from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, Protocol

from serving.contracts.answer import Usage
from serving.contracts.deadline import Deadline
from serving.contracts.exits import Endpoint, Exit

UsageSource = Literal["reported", "estimated", "unknown"]
"""reported: by the provider.

estimated: from the texts of a whole answer without credible usage. unknown: the provider may have
billed something and did not report it; the worst case stays held.
"""

Lane = Literal["interactive", "batch"]
"""interactive: a client waits for the answer. batch: it is a line of a batch."""

DEFAULT_TENANT = "default"
"""Tenant of all requests where authentication is off."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant and its limits; None: unlimited.

    day_usd, month_usd: of money paid to providers in a calendar day or month of `ledger.time_zone`.
    requests_per_minute, max_concurrent_requests: of HTTP requests, over all gateway replicas.
    evidence_external: its inputs may go to providers for evidence; None leaves it to
    `evidence.external`. evidence_providers: those that may receive them, comma-separated; None
    leaves it to `evidence.providers`, empty allows none.
    """

    name: str
    day_usd: Decimal | None = None
    month_usd: Decimal | None = None
    requests_per_minute: int | None = None
    max_concurrent_requests: int | None = None
    evidence_external: bool | None = None
    evidence_providers: str | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request. key_id: of the API key, None where authentication is off.

    admin: may read every tenant's report and may not spend. evidence_external: False keeps the
    inputs of this key from providers that would get them for evidence. lane: in which its request
    runs. purpose: what its batch is for, by the batch's metadata; None elsewhere.
    """

    tenant: str
    key_id: str | None = None
    admin: bool = False
    evidence_external: bool | None = None
    lane: Lane = "interactive"
    purpose: str | None = None


@dataclass(frozen=True, slots=True)
class CallEnd:
    """How one call of a provider ended.

    outcome: `ok`, an error's code, `hedge_lost`, or `cancelled`. usage: None where usage_source is
    `unknown`, and where nothing was used. service_tier: as the provider names it. prefix: digest of
    the prompt's part that conversations share and the provider could cache, if any.
    """

    outcome: str
    usage: Usage | None
    usage_source: UsageSource
    elapsed_s: float
    service_tier: str | None = None
    prefix: str | None = None


LedgerState = Literal["up", "down"]
"""down: the database accepts no writes; exits go to files, and paid calls are refused."""


class LedgerEvents(Protocol):
    """Counts events of the ledger. Any thread may call any method; none raises or blocks.

    A row is an exit with its local calls, the opening of a paid call, or the end of a paid call.
    """

    def ledger_written(self, rows: int) -> None:
        """Rows were committed, from memory or from files."""
        ...

    def ledger_spilled(self, rows: int) -> None:
        """Rows were written to a file, to be committed later."""
        ...

    def ledger_rejected(self, rows: int) -> None:
        """The database rejected rows; they were set aside in a file for a person to inspect."""
        ...

    def ledger_changed(self, state: LedgerState) -> None:
        """The database became unreachable or reachable; called once at the start as well."""
        ...

    def ledger_waited(self, seconds: float) -> None:
        """A paid call waited this long to be recorded or refused."""
        ...

    def budget_refused(self, tenant: str) -> None:
        """A paid call was refused because of its tenant's budget."""
        ...


class OpenCall(Protocol):
    """A recorded call that is in progress."""

    def close(self, end: CallEnd) -> None:
        """Record how the call ended. At most once; does not raise or block.

        A call whose usage is `unknown` stays charged at its worst case.
        """
        ...


class Entry(Protocol):
    """The ledger's entry for one input."""

    @property
    def is_recorded(self) -> bool:
        """Return whether the input is on disk, so that a crash cannot lose it.

        True from its first paid call on.
        """
        ...

    @property
    def most_usd(self) -> Decimal:
        """Return what its paid calls can have cost: the worst case of those of unknown cost."""
        ...

    async def open_call(self, model: str, worst_case_usd: Decimal, deadline: Deadline) -> OpenCall:
        """Record a call and hold its worst case; only then may the call be made.

        model: `provider/model`. Raises BudgetExceeded, and LedgerUnavailable where the call cannot
        be recorded: a call that was not checked is not made.
        """
        ...

    def close(self, exit_: Exit) -> Decimal | None:
        """Write the exit of the input. At most once; does not raise or block.

        Returns the cost of all its calls, US dollars; None where a call's cost is unknown.
        """
        ...

    def written(self) -> Awaitable[None]:
        """Return when the exit is on disk, or after a bounded wait."""
        ...


class Ledger(Protocol):
    """Records every input and every call of a model; serving.ledger implements it."""

    def entry(
        self,
        caller: Caller,
        request_id: str,
        endpoint: Endpoint,
        task: str | None,
        index: int,
        opened_at: datetime | None = None,
    ) -> Entry:
        """Return the entry of an input.

        index: position of the input in the request. opened_at: when the request arrived at the
        gateway, with its time zone; now by default.
        """
        ...


class LedgerService(Ledger, Protocol):
    """A ledger that is started and closed."""

    @property
    def state(self) -> LedgerState:
        """Return whether the database accepts writes."""
        ...

    async def start(self) -> None:
        """Start to write, also while the database is unreachable."""
        ...

    async def aclose(self) -> None:
        """Write pending rows and stop, within a bounded time."""
        ...
