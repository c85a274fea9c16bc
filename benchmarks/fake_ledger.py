"""A ledger that writes nothing: the baseline of the ledger benchmark."""

from datetime import datetime
from decimal import Decimal

from serving.contracts.deadline import Deadline
from serving.contracts.exits import Endpoint, Exit
from serving.contracts.ledger import CallEnd, Caller, LedgerState


class NullLedger:
    """Implements LedgerService; accepts everything and writes nothing."""

    def entry(
        self,
        caller: Caller,
        request_id: str,
        endpoint: Endpoint,
        task: str | None,
        index: int,
        opened_at: datetime | None = None,
    ) -> "NullEntry":
        """Return an entry that stays empty."""
        return NullEntry()

    @property
    def state(self) -> LedgerState:
        """Return `up`."""
        return "up"

    async def start(self) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""


class NullEntry:
    """Implements Entry; records nothing."""

    is_recorded = False
    most_usd = Decimal(0)

    async def open_call(
        self, model: str, worst_case_usd: Decimal, deadline: Deadline
    ) -> "NullCall":
        """Allow every call."""
        return NullCall()

    def close(self, exit_: Exit) -> Decimal | None:
        """Return None: the cost is unknown."""
        return None

    async def written(self) -> None:
        """Return immediately."""


class NullCall:
    """Implements the record of one call; records nothing."""

    def close(self, end: CallEnd) -> None:
        """Do nothing."""


class NullEvents:
    """Implements LedgerEvents; counts nothing."""

    def ledger_written(self, rows: int) -> None:
        """Do nothing."""

    def ledger_spilled(self, rows: int) -> None:
        """Do nothing."""

    def ledger_rejected(self, rows: int) -> None:
        """Do nothing."""

    def ledger_changed(self, state: LedgerState) -> None:
        """Do nothing."""

    def ledger_waited(self, seconds: float) -> None:
        """Do nothing."""

    def budget_refused(self, tenant: str) -> None:
        """Do nothing."""
