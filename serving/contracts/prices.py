"""Prices of a provider's tokens: by class, by length of the prompt, by service tier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from functools import cached_property
from types import MappingProxyType
from typing import Protocol

from serving.contracts.answer import Usage
from serving.contracts.errors import UnpricedModel

PICODOLLAR = Decimal("1e-12")
"""US dollars. Every price of a token is a whole number of it, and so is every cost."""

MIN_CACHED_TOKENS = 1024
"""Shortest prefix that OpenAI and most Anthropic models cache.

A shorter marked prefix is ignored and costs nothing extra.
"""

STANDARD = "standard"
DEAREST = "dearest"

BATCH = "batch"
"""The tier of a provider's batches. No request asks for it, and OpenAI does not report it."""

STANDARD_NAMES = frozenset({STANDARD, "default", "auto", "scale"})
"""Names of the standard tier. `scale` is prepaid; usage beyond it costs the standard price."""

# A request for one of these gets no more expensive tier. `auto` and no tier depend on the account.
_CAPPED = frozenset({STANDARD, "default", "standard_only", "flex"})


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """US dollars per token, by exclusive class; reasoning tokens cost what output tokens do.

    Raises ValueError for a price that is negative or not a whole number of picodollars.
    """

    uncached_input: Decimal
    cache_read: Decimal
    cache_write_5m: Decimal
    cache_write_1h: Decimal
    output: Decimal

    def __post_init__(self) -> None:
        for name in (item.name for item in fields(self)):
            price: Decimal = getattr(self, name)
            if not price.is_finite() or price < 0 or price.scaleb(12) % 1:
                raise ValueError(f"{name} is {price} dollars a token, not whole picodollars")

    @property
    def highest_input(self) -> Decimal:
        """Return the highest price among the classes of input."""
        return max(self.uncached_input, self.cache_read, self.cache_write_5m, self.cache_write_1h)

    def cost(self, usage: Usage) -> Decimal:
        """Return the cost of a usage, US dollars."""
        return (
            usage.uncached_input_tokens * self.uncached_input
            + usage.cache_read_tokens * self.cache_read
            + usage.cache_write_5m_tokens * self.cache_write_5m
            + usage.cache_write_1h_tokens * self.cache_write_1h
            + (usage.output_tokens + usage.reasoning_tokens) * self.output
        )


@dataclass(frozen=True, slots=True)
class PriceStep:
    """Prices of all tokens of a request whose input is longer than over_input_tokens."""

    over_input_tokens: int
    prices: TokenPrices


@dataclass(frozen=True, slots=True)
class AppliedPrice:
    """The prices applied to one usage. service_tier: `dearest` where the reported tier has none."""

    service_tier: str
    step: PriceStep


@dataclass(frozen=True)
class ModelPrices:
    """A model's prices at one time.

    model: `provider/model`. source: origin of the prices. standard, and each service tier: steps in
    ascending order, the first over 0. Raises ValueError for other steps.
    """

    model: str
    source: str
    standard: tuple[PriceStep, ...]
    service_tiers: Mapping[str, tuple[PriceStep, ...]] = field(
        default_factory=lambda: MappingProxyType({})
    )

    def __post_init__(self) -> None:
        for steps in (self.standard, *self.service_tiers.values()):
            over = [step.over_input_tokens for step in steps]
            if over[:1] != [0] or over != sorted(set(over)):
                raise ValueError(f"steps of {self.model} begin over {over}, not over 0 and rising")

    @property
    def base(self) -> TokenPrices:
        """Return the standard prices of short requests."""
        return self.standard[0].prices

    def applied(self, usage: Usage, service_tier: str | None) -> AppliedPrice:
        """Return the prices of an answer. service_tier: as reported by the provider.

        A tier without prices costs the highest price of each class in any tier.
        """
        tokens = input_tokens(usage)
        name = (service_tier or STANDARD).lower()
        if name in self.service_tiers:
            return AppliedPrice(name, _step(self.service_tiers[name], tokens))
        if name in STANDARD_NAMES:
            return AppliedPrice(STANDARD, _step(self.standard, tokens))
        return AppliedPrice(DEAREST, _step(self._highest, tokens))

    def worst_case(
        self, input_tokens: int, output_tokens: int, service_tier: str | None = None
    ) -> Decimal:
        """Return the highest possible cost of at most this many tokens, in any class, US dollars.

        service_tier: as requested. Where the request does not limit the tier, the provider may
        choose it, and the most expensive tier counts.
        """
        return _most(self._possible(service_tier), input_tokens, output_tokens)

    def worst_case_in_batch(self, input_tokens: int, output_tokens: int) -> Decimal:
        """Return the highest possible cost of a line of a provider's batch, US dollars.

        Without batch prices the highest price of each class in any tier counts, as in `applied`.
        """
        steps = self.service_tiers.get(BATCH, self._highest)
        return _most(steps, input_tokens, output_tokens)

    def _possible(self, requested: str | None) -> tuple[PriceStep, ...]:
        name = (requested or "").lower()
        if name not in _CAPPED:
            return self._highest
        return _highest_of([self.standard, self.service_tiers.get(name, self.standard)])

    @cached_property
    def _highest(self) -> tuple[PriceStep, ...]:
        return _highest_of([self.standard, *self.service_tiers.values()])


class PriceList(Protocol):
    """Looks up prices; serving.ledger implements it."""

    def of(self, model: str) -> ModelPrices | None:
        """Return the current prices of `provider/model`; None where unknown. Does not block."""
        ...


def plain_usd(amount: Decimal) -> str:
    """Return an amount of US dollars in digits, without zeros at its end."""
    return f"{amount.normalize():f}"


def input_tokens(usage: Usage) -> int:
    """Return the input tokens of all classes, which decide the price step."""
    return (
        usage.uncached_input_tokens
        + usage.cache_read_tokens
        + usage.cache_write_5m_tokens
        + usage.cache_write_1h_tokens
    )


def unpriced(models: Sequence[str], setting: str) -> UnpricedModel:
    """Return the error for models without a price. setting: the field that names the models."""
    return UnpricedModel(
        f"the price is unknown for {', '.join(map(repr, models))}",
        field=setting,
        fix=f"give ledger.prices_file a line `{models[0]}: {{input: 2.50, output: 10}}`, "
        "US dollars a million tokens; 0 where it is free",
    )


def _step(steps: tuple[PriceStep, ...], tokens: int) -> PriceStep:
    """Return the last step that the input exceeds. It applies to all tokens of the request."""
    return next((step for step in reversed(steps) if tokens > step.over_input_tokens), steps[0])


def _most(steps: tuple[PriceStep, ...], input_tokens: int, output_tokens: int) -> Decimal:
    """Return the highest cost of at most this many tokens, at the steps that they can reach."""
    most = Decimal(0)
    ends = [*(step.over_input_tokens for step in steps[1:]), input_tokens]
    for step, end in zip(steps, ends, strict=True):
        if step.over_input_tokens == 0 or step.over_input_tokens < input_tokens:
            longest = min(end, input_tokens) * step.prices.highest_input
            most = max(most, longest + output_tokens * step.prices.output)
    return most


def _highest_of(tiers: Sequence[tuple[PriceStep, ...]]) -> tuple[PriceStep, ...]:
    """Return the highest price of each class at each length."""
    starts = sorted({step.over_input_tokens for steps in tiers for step in steps})
    # The shortest length over a start is one token more.
    return tuple(
        PriceStep(start, _highest([_step(steps, start + 1).prices for steps in tiers]))
        for start in starts
    )


def _highest(prices: Sequence[TokenPrices]) -> TokenPrices:
    names = [item.name for item in fields(TokenPrices)]
    return TokenPrices(*(max(getattr(each, name) for each in prices) for name in names))
