"""Prices of frontier models from the snapshot that genai-prices carries; no network."""

from collections.abc import Iterable
from datetime import UTC, date, datetime, time
from decimal import Decimal

from genai_prices.data_snapshot import DataSnapshot
from genai_prices.types import ModelPrice, TieredPrices

from serving.contracts.prices import TokenPrices

_PER = Decimal(1_000_000)


def load_prices(models: Iterable[str], on: date) -> dict[str, TokenPrices]:
    """Return the prices of `provider/model` names on a day, in US dollars a token.

    A model that the snapshot does not know, or knows without a price for input and output, is left
    out: the caller decides what an unknown price means. Where a model costs more beyond some
    context length, this is its base tier, so requests beyond that length cost more than this says.
    A class without a price of its own costs what input does; writes that live for an hour cost what
    other writes do. Imports a large module and takes about 0.6 s once: call it at start.
    """
    # The table is 30,000 lines of Python: read here, not where this module is imported.
    from genai_prices.data import providers

    # Not get_snapshot(): that one can be replaced at run time by an updater that uses the network.
    snapshot = DataSnapshot(providers=providers, from_auto_update=False)
    noon = datetime.combine(on, time(12), tzinfo=UTC)
    found: dict[str, TokenPrices] = {}
    for name in dict.fromkeys(models):
        provider, _, model = name.partition("/")
        try:
            _, info = snapshot.find_provider_model(model, None, provider, None)
        except LookupError:
            continue
        prices = _token_prices(info.get_prices(noon))
        if prices is not None:
            found[name] = prices
    return found


def _token_prices(prices: ModelPrice) -> TokenPrices | None:
    uncached, output = _base(prices, "input_mtok"), _base(prices, "output_mtok")
    if uncached is None or output is None:
        return None
    read = _base(prices, "cache_read_mtok")
    write = _base(prices, "cache_write_mtok")
    write_1h = _base(prices, "cache_write_1h_mtok")
    write = uncached if write is None else write
    return TokenPrices(
        uncached_input=uncached,
        cache_read=uncached if read is None else read,
        cache_write_5m=write,
        cache_write_1h=write if write_1h is None else write_1h,
        output=output,
    )


def _base(prices: ModelPrice, key: str) -> Decimal | None:
    """Return the base tier of one price, US dollars a token."""
    value: object = getattr(prices, key, None)
    if isinstance(value, TieredPrices):
        value = value.base
    return value / _PER if isinstance(value, Decimal) else None
