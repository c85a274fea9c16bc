"""The cost of a call and the price it was charged at, so that the cost can be recomputed."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

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
    """Price of one unit when a call was priced: a token of a provider, an hour of a local replica.

    id: digest of the other fields, equal for equal prices. source: origin of the price.
    service_tier: `dearest` where the provider's tier has no prices. over_input_tokens: input length
    above which the prices apply. replica_hour_usd: US dollars.
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
    """A cost and its price. cost_usd: whole picodollars."""

    cost_usd: Decimal
    price: Price


class Pricing:
    """Prices calls at the prices of their time. Raises for an unknown price."""

    def __init__(
        self, book: PriceBook, replica_hours: Mapping[str, Decimal], reference_model: str
    ) -> None:
        """replica_hours: cost of one replica-hour of each local model, US dollars.

        Raises InvalidSettings for a cost that is not a whole number of picodollars.
        """
        self._book = book
        self._hours = {model: _hour_price(model, usd) for model, usd in replica_hours.items()}
        self.reference_model = reference_model

    def frontier(
        self, model: str, usage: Usage, service_tier: str | None, at: datetime | None = None
    ) -> Priced:
        """Return the cost of a provider's tokens. service_tier: as reported; at: now by default.

        Raises UnpricedModel.
        """
        prices = self._prices(model, "model", at)
        applied = prices.applied(usage, service_tier)
        step = applied.step
        price = _token_price(
            model, prices.source, applied.service_tier, step.over_input_tokens, step.prices
        )
        return Priced(step.prices.cost(usage), price)

    def local(self, model: str, replica_s: float) -> Priced:
        """Return the cost of a share of a local replica's time. Raises UnpricedModel."""
        price = self._hours.get(model)
        if price is None or price.replica_hour_usd is None:
            raise UnpricedModel(
                f"the price of a replica-hour of {model!r} is unknown",
                field="models.replica_hour_usd",
                fix="give the cost of a replica per hour; 0 if it costs nothing",
            )
        return Priced(replica_cost_usd(price.replica_hour_usd, replica_us(replica_s)), price)

    def reference(self, usage: Usage, at: datetime | None = None) -> Decimal:
        """Return the cost of the same tokens at the reference model, US dollars.

        This is an approximation: another model counts other tokens and answers at another length.
        Providers cache no prefix under 1,024 tokens, so all input of a shorter request counts as
        uncached; a longer request is priced class by class. Raises UnpricedModel.
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
    """Raise UnpricedModel if a model has no price now. setting: the field to correct."""
    missing = [model for model in dict.fromkeys(models) if book.of(model) is None]
    if missing:
        raise unpriced(missing, setting)


def replica_us(replica_s: float) -> int:
    """Return a share of a replica's time in whole microseconds, as it is stored and priced."""
    return round(replica_s * 1_000_000)


def replica_cost_usd(replica_hour_usd: Decimal, replica_us: int) -> Decimal:
    """Return the cost of replica time, rounded half-even to a picodollar."""
    # A fraction, because no decimal context rounds it earlier.
    return round(Fraction(picodollars(replica_hour_usd) * replica_us, _HOUR_US)) * PICODOLLAR


def picodollars(usd: Decimal) -> int:
    """Return an amount in picodollars. Raises ValueError if it is not a whole number."""
    whole = int(usd.scaleb(12))
    if whole * PICODOLLAR != usd:
        raise ValueError(f"{usd} dollars are not a whole number of picodollars")
    return whole


# The digest in it takes as long as the rest of pricing a call.
@lru_cache(maxsize=1024)
def _token_price(
    model: str, source: str, service_tier: str | None, over_input_tokens: int, tokens: TokenPrices
) -> Price:
    return Price(model, source, service_tier, over_input_tokens, tokens)


def _hour_price(model: str, usd: Decimal) -> Price:
    try:
        return Price(model, REPLICA_HOUR_SOURCE, None, 0, replica_hour_usd=usd)
    except ValueError as error:
        raise InvalidSettings(
            f"replica_hour_usd of {model!r} is {usd}, not a whole number of picodollars",
            field="models.replica_hour_usd",
            fix="give at most 12 decimals",
        ) from error
