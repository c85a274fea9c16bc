"""What tokens cost."""

from dataclasses import dataclass
from decimal import Decimal

from serving.contracts.answer import Usage


@dataclass(frozen=True, slots=True)
class TokenPrices:
    """US dollars a token, by exclusive class; reasoning tokens cost what output does."""

    uncached_input: Decimal
    cache_read: Decimal
    cache_write_5m: Decimal
    cache_write_1h: Decimal
    output: Decimal

    def cost(self, usage: Usage) -> Decimal:
        """Return what a usage costs, US dollars."""
        return (
            usage.uncached_input_tokens * self.uncached_input
            + usage.cache_read_tokens * self.cache_read
            + usage.cache_write_5m_tokens * self.cache_write_5m
            + usage.cache_write_1h_tokens * self.cache_write_1h
            + (usage.output_tokens + usage.reasoning_tokens) * self.output
        )
