"""Opens the ledger's database for a subcommand."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from serving.commands.options import settings_from

if TYPE_CHECKING:
    from serving.ledger.database import Database


@contextmanager
def opened_ledger(args: argparse.Namespace) -> Iterator["Database"]:
    """Yield the database that the settings name, brought up to date; blocking.

    Raises InvalidSettings, LedgerUnavailable or LedgerUnusable.
    """
    from serving.ledger.database import Database, database_url
    from serving.ledger.migrate import migrate

    settings = settings_from(args)
    database = Database(database_url(settings.ledger.url, settings.state))
    try:
        migrate(database)
        yield database
    finally:
        database.close()
