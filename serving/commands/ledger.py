"""Opens the ledger's database for a subcommand."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from serving.commands.options import settings_from

if TYPE_CHECKING:
    from serving.contracts.settings import Settings
    from serving.ledger.database import Database


@contextmanager
def opened_ledger(args: argparse.Namespace) -> Iterator["Database"]:
    """Yield the database that the settings name, brought up to date; blocking.

    Raises InvalidSettings, LedgerUnavailable or LedgerUnusable.
    """
    from serving.ledger.database import Database, database_url, ledger_url
    from serving.ledger.migrate import migrate

    settings = settings_from(args)
    database = Database(database_url(ledger_url(settings.ledger), settings.state))
    try:
        migrate(database)
        yield database
    finally:
        database.close()


def check_ledger(settings: "Settings", environ: Mapping[str, str]) -> None:
    """Check the ledger's URL and that every model that may be called has a price.

    Does not touch the database. Blocking. Raises InvalidSettings or UnpricedModel.
    """
    from serving.frontier.keys import resolve_key
    from serving.ledger.database import database_url, ledger_url
    from serving.ledger.pricing.book import PriceBook
    from serving.ledger.pricing.cost import check_priced

    database_url(ledger_url(settings.ledger), settings.state)
    prices = PriceBook.load(settings.ledger.prices_file)
    check_priced([settings.ledger.reference_model], prices, "ledger.reference_model")
    usable = {
        name
        for name, provider in settings.frontier.providers.items()
        if provider.keyless or resolve_key(name, provider, environ) is not None
    }
    targets = [target for models in settings.frontier.tiers.values() for target in models]
    paid = [target for target in targets if target.partition("/")[0] in usable]
    check_priced(paid, prices, "ledger.prices_file")
    judge = settings.tiers.judge
    if settings.tiers.mode != "off" and judge is not None:
        check_priced([judge], prices, "tiers.judge")


def prepare_ledger(settings: "Settings", environ: Mapping[str, str]) -> None:
    """Check the ledger's settings and bring its database up to date; blocking.

    Raises LedgerUnavailable, LedgerUnusable, UnpricedModel or InvalidSettings.
    """
    from serving.ledger.database import Database, database_url, ledger_url
    from serving.ledger.migrate import migrate

    check_ledger(settings, environ)
    database = Database(database_url(ledger_url(settings.ledger), settings.state))
    try:
        migrate(database)
    finally:
        database.close()
