"""Builds the ledger from settings."""

from decimal import Decimal
from pathlib import Path

from serving.contracts.ledger import LedgerEvents
from serving.contracts.ledger_settings import LedgerSettings
from serving.ledger.connection_watchdog import ConnectionWatchdog
from serving.ledger.database import DEFAULT_TIMEOUTS, Database, Timeouts, database_url, ledger_url
from serving.ledger.instances import Instance
from serving.ledger.ledger import DatabaseLedger, LedgerDeps
from serving.ledger.rows import Prices
from serving.ledger.spill import Spill
from serving.ledger.worker import LedgerWorker, WorkerDeps
from serving.ledger.writer import Writer


def build_ledger(
    settings: LedgerSettings,
    state: Path,
    prices: Prices,
    events: LedgerEvents,
    replica_hour_usd: Decimal,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> DatabaseLedger:
    """Return a ledger that is not started yet; the database may be unreachable.

    replica_hour_usd: cost of all local replicas of the stack for an hour, busy or idle. Raises
    InvalidSettings for a URL of another kind of database.
    """
    database = Database(database_url(ledger_url(settings), state), timeouts)
    watchdog = ConnectionWatchdog(database, timeouts)
    folder = state / "ledger" / "spill"
    instance = Instance.of_this_process(replica_hour_usd)
    deps = WorkerDeps(database, watchdog, Spill(folder), instance, timeouts)
    writer = Writer(LedgerWorker(deps, events), watchdog, Spill(folder), events, timeouts.watch_s)
    return DatabaseLedger(LedgerDeps(writer, prices, settings, instance.id))
