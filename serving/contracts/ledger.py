"""The books as a request sees them: who pays, what a paid call may cost, what it did cost."""

from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal, Protocol

from serving.contracts.answer import Usage
from serving.contracts.deadline import Deadline
from serving.contracts.exits import Endpoint, Exit

UsageSource = Literal["reported", "estimated", "unknown"]
"""reported: by the provider. estimated: from the texts of a whole answer without credible usage.
unknown: the provider may have billed something and did not report it; the worst case stays held."""

DEFAULT_TENANT = "default"
"""Whose requests they are where authentication is off."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who pays, and within which limits; None is no limit.

    day_usd, month_usd: of money paid to providers, by the calendar of `ledger.time_zone`.
    requests_per_minute, max_concurrent_requests: of HTTP requests, the whole stack's.
    """

    name: str
    day_usd: Decimal | None = None
    month_usd: Decimal | None = None
    requests_per_minute: int | None = None
    max_concurrent_requests: int | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request. key_id: of the API key, None where authentication is off.

    admin: may read every tenant's report; may not spend.
    """

    tenant: str
    key_id: str | None = None
    admin: bool = False


@dataclass(frozen=True, slots=True)
class CallEnd:
    """How one call of a provider ended.

    outcome: `ok`, an error's code, `hedge_lost`, or `cancelled`. usage: None where usage_source is
    `unknown`, and where nothing was used. service_tier: as the provider names it.
    """

    outcome: str
    usage: Usage | None
    usage_source: UsageSource
    elapsed_s: float
    service_tier: str | None = None


LedgerState = Literal["up", "down"]
"""down: the database does not take what is written; exits go to files, paid calls are refused."""


class LedgerEvents(Protocol):
    """Counts what the books do. Any thread may call any method; none raises or waits.

    A row is an exit with its local calls, a paid call's opening, or its end.
    """

    def ledger_written(self, rows: int) -> None:
        """Rows were committed, also ones from files."""
        ...

    def ledger_spilled(self, rows: int) -> None:
        """Rows went to a file, to be committed later."""
        ...

    def ledger_rejected(self, rows: int) -> None:
        """Rows are of no use to the database and were put aside for a person."""
        ...

    def ledger_changed(self, state: LedgerState) -> None:
        """The database went away or came back; told once at the start, too."""
        ...

    def ledger_waited(self, seconds: float) -> None:
        """A paid call waited so long to be written down, or refused."""
        ...

    def budget_refused(self, tenant: str) -> None:
        """A paid call was refused for its tenant's budget."""
        ...


class OpenCall(Protocol):
    """A call that is in the books and on its way."""

    def close(self, end: CallEnd) -> None:
        """Say how it ended; at most once. Never raises or waits, so it can run in any cleaning up.

        A call whose usage is `unknown` stays charged at its worst case.
        """
        ...


class Entry(Protocol):
    """One input's page in the books."""

    @property
    def booked(self) -> bool:
        """Return whether something of the input is on disk, so that a crash would not lose it.

        True from its first paid call on.
        """
        ...

    async def open_call(self, model: str, worst_case_usd: Decimal, deadline: Deadline) -> OpenCall:
        """Write a call into the books and hold its worst case; only then may it be made.

        model: `provider/model`. Raises BudgetExceeded, and LedgerUnavailable where the books
        cannot be written: an unchecked call is not made.
        """
        ...

    def close(self, exit_: Exit) -> Decimal | None:
        """Write how the input left; at most once. Never raises or waits.

        Returns what it cost in all, US dollars; None where a call's cost is unknown.
        """
        ...

    def written(self) -> Awaitable[None]:
        """Return when the exit is on disk, or the bound on waiting for it is up."""
        ...


class Ledger(Protocol):
    """Every cent, accounted for; serving.ledger implements it."""

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
    """A ledger with a beginning and an end."""

    @property
    def state(self) -> LedgerState:
        """Return whether the database takes what is written."""
        ...

    async def start(self) -> None:
        """Begin to write; also where the database is away, and then without it."""
        ...

    async def aclose(self) -> None:
        """Write what waits, and end, within a bound."""
        ...
