"""Prices of frontier models from the table that genai-prices carries; no network."""

from collections.abc import Mapping
from datetime import date, datetime
from decimal import ROUND_HALF_EVEN, Decimal
from importlib.metadata import version

from genai_prices.types import (
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    TieredPrices,
)

from serving.contracts.prices import STANDARD_NAMES, ModelPrices, PriceStep, TokenPrices

_PER = Decimal(1_000_000)
_FINEST = Decimal("0.000001")  # dollars a million tokens: a picodollar a token
_CLASSES = (
    "input_mtok",
    "output_mtok",
    "cache_read_mtok",
    "cache_write_mtok",
    "cache_write_1h_mtok",
)
# Keys of the table for what OpenAI and Anthropic report as a service tier.
_TIER_KEYS = frozenset({"service_tier", "processing"})


class PriceTable:
    """The table of genai-prices. Creating the first one imports the table; blocking."""

    def __init__(self) -> None:
        # 30,000 lines of Python, so not imported with this module. Not get_snapshot(), which an
        # updater that uses the network can replace at run time.
        from genai_prices.data import providers

        self.source = f"genai-prices {version('genai-prices')}"
        self._all = providers
        self._providers = {provider.id: provider for provider in providers}

    def newest_change(self, until: date) -> date | None:
        """Return the last day, not after `until`, on which a price of the table changed.

        The table does not state its own date. It is no older than this.
        """
        days = {
            price.constraint.start_date
            for provider in self._all
            for info in provider.models
            if not isinstance(info.prices, ModelPrice)
            for price in info.prices
            if isinstance(price, ConditionalPrice)
            and isinstance(price.constraint, StartDateConstraint)
        }
        return max((day for day in days if day <= until), default=None)

    def find(self, name: str, at: datetime) -> ModelPrices | None:
        """Return the prices of a `provider/model` at a time, with its zone.

        The provider's name must match the table's id exactly: a guess could find the prices of
        another server. None if the table does not have the model, or has it without prices for
        input and output. Prices finer than a picodollar per token are rounded.
        """
        provider_id, _, model = name.partition("/")
        provider = self._providers.get(provider_id)
        # Not the snapshot's search, which remembers every name that clients send.
        info = provider.find_model(model, all_providers=self._all) if provider else None
        standard = _steps(info.get_prices(at)) if info else ()
        if provider is None or info is None or not standard:
            return None
        return ModelPrices(name, self.source, standard, _service_tiers(provider, info, at))


def _service_tiers(
    provider: Provider, info: ModelInfo, at: datetime
) -> Mapping[str, tuple[PriceStep, ...]]:
    if not any(info is own for own in provider.models):
        return {}  # the entry belongs to another provider, and so do its tiers
    tiers = {}
    for variant in info.price_variants or ():
        (key, tier), *more = variant.when.items()
        active = variant.constraint is None or variant.constraint.active(at)
        if key in _TIER_KEYS and not more and active and tier not in STANDARD_NAMES:
            tiers[tier] = _steps(info.get_prices(at, variant.when))
    return tiers


def _steps(prices: ModelPrice) -> tuple[PriceStep, ...]:
    """Return the steps of a price list; none if input or output has no price."""
    if _at(prices, "input_mtok", 0) is None or _at(prices, "output_mtok", 0) is None:
        return ()
    tiered = [
        value for name in _CLASSES if isinstance(value := getattr(prices, name), TieredPrices)
    ]
    starts = {0} | {tier.start for value in tiered for tier in value.tiers}
    return tuple(PriceStep(start, _token_prices(prices, start)) for start in sorted(starts))


def _token_prices(prices: ModelPrice, start: int) -> TokenPrices:
    uncached, output, *rest = (_at(prices, name, start) for name in _CLASSES)
    assert uncached is not None
    assert output is not None
    return by_class(uncached, output, *rest)


def _at(prices: ModelPrice, name: str, start: int) -> Decimal | None:
    """Return the price of a class for inputs longer than `start`, dollars per million."""
    value = getattr(prices, name)
    if isinstance(value, TieredPrices):
        reached = [tier.price for tier in value.tiers if tier.start <= start]
        value = reached[-1] if reached else value.base
    return value.quantize(_FINEST, ROUND_HALF_EVEN) if isinstance(value, Decimal) else None


def by_class(
    uncached_input: Decimal,
    output: Decimal,
    cache_read: Decimal | None = None,
    cache_write: Decimal | None = None,
    cache_write_1h: Decimal | None = None,
) -> TokenPrices:
    """Return prices per token, from US dollars per million tokens.

    A class without a price costs what input does; 1-hour writes cost what 5-minute writes do.
    """
    write = uncached_input if cache_write is None else cache_write
    return TokenPrices(
        uncached_input=uncached_input / _PER,
        cache_read=(uncached_input if cache_read is None else cache_read) / _PER,
        cache_write_5m=write / _PER,
        cache_write_1h=(write if cache_write_1h is None else cache_write_1h) / _PER,
        output=output / _PER,
    )
