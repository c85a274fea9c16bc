"""Shared pieces of the frontier tests: the provider, settings for it, calls, a recorder."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

from serving.contracts.deadline import Deadline
from serving.contracts.frontier import FrontierCall, OutputBounds
from serving.contracts.frontier_settings import (
    BreakerSettings,
    FrontierSettings,
    ProviderSettings,
)
from serving.contracts.ledger import Caller
from serving.contracts.prices import ModelPrices, PriceStep, TokenPrices
from serving.frontier.build import build_frontier
from serving.frontier.frontier import FrontierStack

from ..provider.server import ProviderServer
from .memory_ledger import MemoryLedger, Page
from .patience import GUARD_S

KEY = "sk-narrowgate-1234567890abcdef"
OPENAI = "openai/gpt-4.1"
OTHER = "other/gpt-4.1-mini"
ANTHROPIC = "anthropic/claude-sonnet-5-5"
BOUNDS = OutputBounds(64)
ENVIRON = {"OPENAI_API_KEY": KEY, "OTHER_API_KEY": KEY, "ANTHROPIC_API_KEY": KEY}


def dollars_a_million(*prices: str) -> TokenPrices:
    return TokenPrices(*(Decimal(price) / 1_000_000 for price in prices))


SONNET = dollars_a_million("2", "0.1", "2.5", "4", "10")


class FlatPrices(dict[str, TokenPrices]):
    """Prices that know no lengths and no service tiers."""

    def of(self, model: str) -> ModelPrices | None:
        return flat(self[model], model) if model in self else None


def flat(prices: TokenPrices, model: str = ANTHROPIC) -> ModelPrices:
    return ModelPrices(model, "test", (PriceStep(0, prices),))


PRICES = FlatPrices(
    {
        ANTHROPIC: SONNET,
        OPENAI: dollars_a_million("2", "0.5", "2", "2", "8"),
        OTHER: dollars_a_million("4", "1", "4", "4", "16"),
        "anthropic/claude-haiku-5-5": SONNET,
        "anthropic/claude-opus-5-5": SONNET,
    }
)


class Recorder:
    """Keeps the frontier's reports."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.retries: list[tuple[str, str]] = []
        self.fallbacks: list[tuple[str, str, str]] = []
        self.breakers: list[tuple[str, str]] = []
        self.reads: list[tuple[str, int, int]] = []
        self.unstable: list[str] = []

    def called(self, provider: str, model: str, outcome: str, elapsed_s: float) -> None:
        assert elapsed_s >= 0
        self.calls.append((provider, model, outcome))

    def retried(self, provider: str, reason: str) -> None:
        self.retries.append((provider, reason))

    def fell_back(self, from_target: str, to_target: str, reason: str) -> None:
        self.fallbacks.append((from_target, to_target, reason))

    def breaker_changed(self, provider: str, state: str) -> None:
        self.breakers.append((provider, state))

    def prefix_read(
        self, prefix_id: str, read_tokens: int, written_tokens: int, input_tokens: int
    ) -> None:
        assert written_tokens >= 0
        self.reads.append((prefix_id, read_tokens, input_tokens))

    def prefix_unstable(self, prefix_id: str) -> None:
        self.unstable.append(prefix_id)


def settings(server: ProviderServer, provider: dict[str, Any] | None = None, **more: Any) -> Any:
    """Return settings of three providers at the server.

    A test that waits for a time-out sets it: on a busy machine a short one ends other calls, too.
    """
    usual = {
        "connect_timeout_s": GUARD_S,
        "first_byte_timeout_s": GUARD_S,
        "idle_timeout_s": GUARD_S,
        "max_retries": 0,
        "breaker": BreakerSettings(failures=100),
        **(provider or {}),
    }
    return FrontierSettings(
        providers={
            "openai": ProviderSettings(api="openai", base_url=f"{server.url}/v1", **usual),
            "other": ProviderSettings(api="openai", base_url=f"{server.url}/v1", **usual),
            "anthropic": ProviderSettings(api="anthropic", base_url=server.url, **usual),
        },
        **more,
    )


@asynccontextmanager
async def frontier(
    config: FrontierSettings, events: Recorder | None = None, **more: Any
) -> AsyncIterator[FrontierStack]:
    stack = build_frontier(
        config,
        more.get("prices", PRICES),
        more.get("environ", ENVIRON),
        events or Recorder(),
        more.get("clock", time.monotonic),
    )
    try:
        yield stack
    finally:
        await stack.aclose()


def page() -> Page:
    """Return an input's page in a ledger of its own."""
    return MemoryLedger().entry(Caller("acme"), "req-1", "chat", None, 0)


def call(*targets: str, body: dict[str, Any] | None = None, **more: Any) -> FrontierCall:
    message = {"role": "user", "content": "What is a narrow gate?"}
    entry = more.pop("entry", None) or page()
    return FrontierCall(
        body={"messages": [message], **(body or {})},
        targets=targets,
        bounds=more.pop("bounds", BOUNDS),
        deadline=Deadline.after(more.pop("seconds", GUARD_S)),
        request_id="req-1",
        entry=entry,
        **more,
    )
