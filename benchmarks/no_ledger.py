"""A ledger that writes nothing, to measure beside one that does."""

from datetime import datetime
from decimal import Decimal

from serving.contracts.deadline import Deadline
from serving.contracts.exits import Endpoint, Exit
from serving.contracts.ledger import CallEnd, Caller, LedgerState


class NoLedger:
    """Writes nothing, at once."""

    def entry(
        self,
        caller: Caller,
        request_id: str,
        endpoint: Endpoint,
        task: str | None,
        index: int,
        opened_at: datetime | None = None,
    ) -> "NoEntry":
        """Return an entry that stays empty."""
        return NoEntry()

    @property
    def state(self) -> LedgerState:
        """Return that nothing is away."""
        return "up"

    async def start(self) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""


class NoEntry:
    """A page on which nothing is written."""

    booked = False

    async def open_call(self, model: str, worst_case_usd: Decimal, deadline: Deadline) -> "NoCall":
        """Let any call be made."""
        return NoCall()

    def close(self, exit_: Exit) -> Decimal | None:
        """Forget how the input left; nobody knows what it cost."""
        return None

    async def written(self) -> None:
        """Return at once."""


class NoCall:
    """A call of which nothing is known."""

    def close(self, end: CallEnd) -> None:
        """Forget how it ended."""


class NoEvents:
    """Counts nothing of what a ledger does."""

    def ledger_written(self, rows: int) -> None:
        """Forget it."""

    def ledger_spilled(self, rows: int) -> None:
        """Forget it."""

    def ledger_rejected(self, rows: int) -> None:
        """Forget it."""

    def ledger_changed(self, state: LedgerState) -> None:
        """Forget it."""

    def ledger_waited(self, seconds: float) -> None:
        """Forget it."""

    def budget_refused(self, tenant: str) -> None:
        """Forget it."""
