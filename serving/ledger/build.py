"""Builds the ledger from settings."""

from decimal import Decimal
from pathlib import Path

from serving.contracts.ledger import LedgerEvents
from serving.contracts.ledger_settings import LedgerSettings
from serving.ledger.connection_watchdog import ConnectionWatchdog
from serving.ledger.database import Database, database_url
from serving.ledger.instances import Instance
from serving.ledger.ledger import DatabaseLedger, LedgerDeps
from serving.ledger.rows import Prices
from serving.ledger.spill import Spill
from serving.ledger.worker import Books, LedgerWorker
from serving.ledger.writer import Writer


def build_ledger(
    settings: LedgerSettings,
    state: Path,
    prices: Prices,
    events: LedgerEvents,
    replica_hour_usd: Decimal,
) -> DatabaseLedger:
    """Return a ledger that is not started yet; the database may be away.

    replica_hour_usd: what all local replicas of the stack cost an hour, busy or idle. Raises
    InvalidSettings for a URL of another kind of database.
    """
    database = Database(database_url(settings.url, state))
    line = ConnectionWatchdog(database)
    spilled = state / "ledger" / "spill"
    instance = Instance.of_this_process(replica_hour_usd)
    keeper = LedgerWorker(Books(database, line, Spill(spilled), instance), events)
    return DatabaseLedger(
        LedgerDeps(Writer(keeper, line, Spill(spilled), events), prices, settings, instance.id)
    )
