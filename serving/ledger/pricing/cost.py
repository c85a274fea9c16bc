"""What a call cost, and by which price: a row's cost can be computed again from the row."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from serving.contracts.answer import Usage
from serving.contracts.errors import InvalidSettings, UnpricedModel
from serving.contracts.prices import (
    MIN_CACHED_TOKENS,
    PICODOLLAR,
    STANDARD,
    ModelPrices,
    TokenPrices,
    input_tokens,
    unpriced,
)
from serving.ledger.pricing.book import PriceBook

REPLICA_HOUR_SOURCE = "replica_hour_usd"
_HOUR_US = 3_600_000_000
_REFERENCE_FIELD = "ledger.reference_model"


@dataclass(frozen=True, slots=True)
class Price:
    """What one unit cost when a call was priced; tokens for providers, an hour for local models.

    id: digest of the rest, the same for the same price. source: where it is from. service_tier:
    whose prices they are, `dearest` where the provider's tier has none. over_input_tokens: length
    from which they hold. replica_hour_usd: US dollars.
    """

    id: str = field(init=False)
    model: str
    source: str
    service_tier: str | None
    over_input_tokens: int
    tokens: TokenPrices | None = None
    replica_hour_usd: Decimal | None = None

    def __post_init__(self) -> None:
        units = astuple(self.tokens) if self.tokens is not None else ()
        rest = [
            *(self.model, self.source, self.service_tier, self.over_input_tokens),
            *(None if usd is None else picodollars(usd) for usd in (*units, self.replica_hour_usd)),
        ]
        object.__setattr__(self, "id", hashlib.sha256(json.dumps(rest).encode()).hexdigest()[:16])


@dataclass(frozen=True, slots=True)
class Priced:
    """cost_usd: whole picodollars."""

    cost_usd: Decimal
    price: Price


class Pricing:
    """Prices calls by what is known when they were made; raises rather than guess."""

    def __init__(
        self, book: PriceBook, replica_hours: Mapping[str, Decimal], reference_model: str
    ) -> None:
        """Take what one replica of each local model costs an hour, US dollars.

        Raises InvalidSettings for what is no whole number of picodollars.
        """
        self._book = book
        self._hours = {model: _hour_price(model, usd) for model, usd in replica_hours.items()}
        self.reference_model = reference_model

    def frontier(
        self, model: str, usage: Usage, service_tier: str | None, at: datetime | None = None
    ) -> Priced:
        """Return what a provider's tokens cost. service_tier: as it names it; at: now by default.

        Raises UnpricedModel.
        """
        prices = self._prices(model, "model", at)
        applied = prices.applied(usage, service_tier)
        step = applied.step
        price = Price(
            model, prices.source, applied.service_tier, step.over_input_tokens, step.prices
        )
        return Priced(step.prices.cost(usage), price)

    def local(self, model: str, replica_s: float) -> Priced:
        """Return what a share of a local replica's time cost. Raises UnpricedModel."""
        price = self._hours.get(model)
        if price is None or price.replica_hour_usd is None:
            raise UnpricedModel(
                f"an hour of a replica of {model!r} has no price",
                field="models.replica_hour_usd",
                fix="give what a replica costs an hour, 0 where it costs nothing",
            )
        return Priced(replica_cost_usd(price.replica_hour_usd, replica_us(replica_s)), price)

    def reference(self, usage: Usage, at: datetime | None = None) -> Decimal:
        """Return what the same tokens would have cost at the reference model, US dollars.

        An approximation: its tokenizer would count others, and it would answer at another length.
        Providers cache no prefix under 1,024 tokens, so a shorter request pays all of its input as
        uncached; a longer one pays class by class. Raises UnpricedModel.
        """
        tokens = input_tokens(usage)
        if tokens < MIN_CACHED_TOKENS:
            uncached = {"cache_read_tokens": 0, "cache_write_5m_tokens": 0}
            uncached |= {"cache_write_1h_tokens": 0, "uncached_input_tokens": tokens}
            usage = usage.model_copy(update=uncached)
        prices = self._prices(self.reference_model, _REFERENCE_FIELD, at)
        return prices.applied(usage, STANDARD).step.prices.cost(usage)

    def _prices(self, model: str, setting: str, at: datetime | None) -> ModelPrices:
        prices = self._book.of(model, at)
        if prices is None:
            raise unpriced([model], setting)
        return prices


def check_priced(
    models: Iterable[str], book: PriceBook, setting: str = "ledger.prices_file"
) -> None:
    """Raise UnpricedModel where a model has no price now. setting: the field to correct."""
    missing = [model for model in dict.fromkeys(models) if book.of(model) is None]
    if missing:
        raise unpriced(missing, setting)


def replica_us(replica_s: float) -> int:
    """Return a share of a replica's time in the whole microseconds that are stored and priced."""
    return round(replica_s * 1_000_000)


def replica_cost_usd(replica_hour_usd: Decimal, replica_us: int) -> Decimal:
    """Return what so much of a replica's time costs, rounded half-even to a picodollar."""
    # A fraction, which no context rounds before that.
    return round(Fraction(picodollars(replica_hour_usd) * replica_us, _HOUR_US)) * PICODOLLAR


def picodollars(usd: Decimal) -> int:
    """Return an amount in picodollars. Raises ValueError where it is no whole number of them."""
    whole = int(usd.scaleb(12))
    if whole * PICODOLLAR != usd:
        raise ValueError(f"{usd} dollars are no whole number of picodollars")
    return whole


def _hour_price(model: str, usd: Decimal) -> Price:
    try:
        return Price(model, REPLICA_HOUR_SOURCE, None, 0, replica_hour_usd=usd)
    except ValueError as error:
        raise InvalidSettings(
            f"replica_hour_usd of {model!r} is {usd}, no whole number of picodollars",
            field="models.replica_hour_usd",
            fix="give at most 12 decimals",
        ) from error
