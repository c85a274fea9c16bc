"""Reports for the gateway: one at a time, on a thread, within a time limit."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from zoneinfo import ZoneInfo

from serving.contracts.errors import LedgerUnavailable
from serving.contracts.report import Report
from serving.ledger.database import Database
from serving.ledger.reports.build import build_report
from serving.ledger.reports.query import Scope

TIMEOUT_S = 30.0


class LedgerReports:
    """Implements serving.contracts.report.Reports.

    zone: time zone of the days. timeout_s: limit on waiting for the thread and reading.
    """

    def __init__(self, database: Database, zone: ZoneInfo, timeout_s: float = TIMEOUT_S) -> None:
        self._database = database
        self._zone = zone
        self._timeout_s = timeout_s
        # One thread, because reports read whole tables and requests need the database as well.
        self._turns = ThreadPoolExecutor(1, thread_name_prefix="report")

    @property
    def zone(self) -> ZoneInfo:
        """Return the time zone in which days begin."""
        return self._zone

    async def report(self, since: datetime, until: datetime, tenant: str | None) -> Report:
        """Return the report on a tenant, or on all tenants with the ledger reconciled.

        Raises NotFound for an unknown tenant, and LedgerUnavailable, also after timeout_s.
        """
        read = partial(
            build_report, self._database, Scope(since, until, tenant), self._zone,
            # A tenant may request reports often, and reconciliation reads all rows.
            reconciled=tenant is None, timeout_s=self._timeout_s,
        )  # fmt: skip
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._turns, read)
        except TimeoutError as error:
            raise LedgerUnavailable(
                f"the report was not read within {self._timeout_s:g} s",
                fix="request a shorter time, or retry later; narrowgate report waits longer",
                retry_after_s=self._timeout_s,
            ) from error

    def close(self) -> None:
        """Cancel waiting reports; one that is being read ends at its time-out."""
        self._turns.shutdown(wait=False, cancel_futures=True)
