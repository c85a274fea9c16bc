"""What providers report is what the ledger holds and the report adds up; the arithmetic that it is
compared with is genai-prices' own, on the providers' own documents."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from genai_prices import extract_usage
from pydantic import SecretStr
from sqlalchemy import insert, select

from serving.contracts.errors import BudgetExceeded, FrontierError
from serving.contracts.exits import Exit
from serving.contracts.ledger import Caller
from serving.contracts.ledger_settings import LedgerSettings
from serving.frontier.frontier import FrontierStack
from serving.ledger.build import build_ledger
from serving.ledger.database import Database, database_url
from serving.ledger.ledger import DatabaseLedger
from serving.ledger.migrate import migrate
from serving.ledger.pricing.book import PriceBook
from serving.ledger.pricing.cost import Pricing
from serving.ledger.reports.build import build_report
from serving.ledger.reports.query import Scope
from serving.ledger.schema import calls, exits, tenants

from ..provider.script import Fault, Reply, Seen
from ..provider.server import ProviderServer
from .frontier_kit import (
    call,
    frontier,
    settings,
)
from .ledger_kit import Noted
from .patience import until

SONNET, OPUS = "anthropic/claude-sonnet-5-5", "anthropic/claude-opus-5-5"
GPT, SOL = "openai/gpt-4.1", "openai/gpt-6.1-sol"
PREFACE = "A preface that providers keep. " * 400
PROMPTS = ("A short question.", f"{PREFACE}---CACHE_BREAK---Now.", f"{PREFACE}Then.")
BATCHED = "One of a batch."


def is_batch(seen: Seen) -> bool:
    """Return whether the provider says of an answer that it was one of a batch."""
    return seen.api == "openai" and seen.body["messages"][-1]["content"] == BATCHED


def oracle(seen: Seen) -> Decimal:
    """The cost of a request, by the price table's reading of the provider's counts."""
    document = {"model": seen.model, "usage": seen.usage}
    flavor = "chat" if seen.api == "openai" else None
    read = extract_usage(document, provider_id=seen.api, api_flavor=flavor or "default")
    batch = {"processing": "batch"} if is_batch(seen) else None
    return read.calc_price(price_context=batch).total_price


class Kept:
    """A ledger on a real database, a frontier before the provider, and what came of both."""

    def __init__(self, ledger: DatabaseLedger, stack: FrontierStack, database: Database) -> None:
        self.ledger = ledger
        self.stack = stack
        self.database = database

    async def ask(self, target: str, text: str, *, streamed: bool) -> None:
        entry = self.ledger.entry(Caller("acme"), "r", "chat", None, 0)
        fields: dict[str, Any] = {"messages": [{"role": "user", "content": text}]}
        asked = call(target, body=fields, entry=entry)
        left: Exit | None = None
        try:
            if streamed:
                stream = await self.stack.stream(asked)
                async for _ in stream.events:
                    pass
                left = _answered(target, stream.usage, stream.service_tier)
            else:
                done = await self.stack.complete(asked)
                left = _answered(target, done.usage, done.service_tier)
        except FrontierError as error:
            left = Exit("r", "chat", None, "none", "requested", None, None, 0.1, error=error.code)
        entry.close(left)
        await entry.written()

    async def hang_up(self, target: str, text: str) -> None:
        """Take the first event of a stream and close it, as a client that leaves does."""
        entry = self.ledger.entry(Caller("acme"), "r", "chat", None, 0)
        fields = {"messages": [{"role": "user", "content": text}]}
        try:
            stream = await self.stack.stream(call(target, body=fields, entry=entry))
            await anext(stream.events)
            await stream.events.aclose()  # type: ignore[attr-defined]
            error = "client_closed"
        except BudgetExceeded as refusal:
            error = refusal.code
        entry.close(Exit("r", "chat", None, "none", "requested", None, None, 0.1, error=error))
        await entry.written()

    def limit(self, day_usd: Decimal) -> None:
        with self.database.begin() as connection:
            row = {"name": "acme", "created_at": datetime.now(UTC), "day_usd": day_usd}
            connection.execute(insert(tenants), row)

    def rows(self) -> list[Any]:
        with self.database.read() as connection:
            return list(connection.execute(select(calls).order_by(calls.c.opened_at)))


def _answered(model: str, usage: Any, tier: str | None) -> Exit:
    return Exit("r", "chat", None, "frontier", "requested", model, usage, 0.1, service_tier=tier)


@pytest.fixture
async def kept(
    provider: ProviderServer,
    ledger_url: SecretStr | None,
    state: Path,
) -> AsyncIterator[Kept]:
    book = PriceBook.load()
    database = Database(database_url(ledger_url, state))
    migrate(database)
    config = LedgerSettings(url=ledger_url, commit_wait_s=5.0)
    ledger = build_ledger(config, state, Pricing(book, {}, SONNET), Noted(), Decimal(0))
    await ledger.start()
    provider.script.answer = lambda seen: Reply(
        "An answer of a few words.",
        reasoning_tokens=9,
        service_tier="batch" if is_batch(seen) else None,
    )
    async with frontier(settings(provider), prices=book) as stack:
        yield Kept(ledger, stack, database)
    await ledger.aclose()
    database.close()


async def test_every_shape_of_usage_is_booked_to_the_cent_that_was_billed(
    kept: Kept,
    provider: ProviderServer,
) -> None:
    for target in (SONNET, OPUS, GPT, SOL):
        for streamed in (False, True):
            for text in PROMPTS:
                await kept.ask(target, text, streamed=streamed)
            # Half price, where the provider says that it was a batch.
            await kept.ask(target, BATCHED, streamed=streamed)
    billed = [oracle(seen) for seen in provider.script.seen]
    rows = kept.rows()
    assert [row.cost_usd for row in rows] == billed
    assert {row.state for row in rows} == {"closed"}
    assert {row.usage_source for row in rows} == {"reported"}
    assert sum(row.cache_read_tokens for row in rows) > 0
    assert sum(row.cache_write_5m_tokens for row in rows) > 0
    assert {row.reasoning_tokens for row in rows} == {9}
    assert sum(row.service_tier == "batch" for row in rows) == 4
    now = datetime.now(UTC)
    scope = Scope(now - timedelta(hours=1), now + timedelta(hours=1), "acme")
    report = build_report(kept.database, scope, ZoneInfo("UTC"))
    assert report.totals.frontier_usd == sum(billed)
    assert sum(day.cost_usd for day in report.days) == sum(billed)
    assert sum(part.cost_usd for part in report.token_classes) == sum(billed)
    assert report.reconciliation is not None
    assert report.reconciliation.discrepancies == ()


async def test_the_report_shows_what_caching_saved_by_prefix(
    kept: Kept, provider: ProviderServer
) -> None:
    system = {"role": "system", "content": PREFACE}
    for question in ("One?", "Two?", "Three?"):
        entry = kept.ledger.entry(Caller("acme"), "r", "chat", None, 0)
        messages = [system, {"role": "user", "content": question}]
        done = await kept.stack.complete(call(SONNET, body={"messages": messages}, entry=entry))
        entry.close(_answered(SONNET, done.usage, done.service_tier))
        await entry.written()
    await kept.ask(SONNET, "A short question.", streamed=False)
    now = datetime.now(UTC)
    scope = Scope(now - timedelta(hours=1), now + timedelta(hours=1), "acme")
    with_prefix, without = build_report(kept.database, scope, ZoneInfo("UTC")).prefixes
    rows = [row for row in kept.rows() if row.prefix is not None]
    assert {with_prefix.name, without.name} == {rows[0].prefix, None}
    assert (with_prefix.calls, without.calls) == (3, 1)
    assert PREFACE[:12] not in str(with_prefix.name)
    assert with_prefix.read_tokens == sum(row.cache_read_tokens for row in rows)
    assert with_prefix.read_share == with_prefix.read_tokens / with_prefix.input_tokens > 0.6
    model = PriceBook.load().of(SONNET)
    assert model is not None
    answers = sum(row.output_tokens + row.reasoning_tokens for row in rows) * model.base.output
    plain = with_prefix.input_tokens * model.base.uncached_input + answers
    assert with_prefix.saved_usd == plain - sum(row.cost_usd for row in rows) > 0


async def test_unreported_usage_is_held_or_estimated_and_never_free(
    kept: Kept,
    provider: ProviderServer,
) -> None:
    faults = [
        (Fault("cut", after_events=4), "unknown"),
        (Fault("no_usage"), "estimated"),
        (Fault("html"), "unknown"),
    ]
    for target in (SONNET, GPT):
        for fault, source in faults:
            provider.script.next(fault)
            await kept.ask(target, "A question of some length.", streamed=True)
            row = kept.rows()[-1]
            assert row.usage_source == source
            if source == "unknown":
                assert (row.state, row.cost_usd) == ("unknown", None)
                assert row.held_usd > 0
            else:
                assert (row.state, row.held_usd) == ("closed", 0)
                assert row.cost_usd > 0
    with kept.database.read() as connection:
        held = list(connection.execute(select(exits.c.held_usd)).scalars())
    assert sum(usd > 0 for usd in held) == 4


async def test_a_tenant_that_hangs_up_on_every_stream_pays_what_is_billed(
    kept: Kept, provider: ProviderServer
) -> None:
    provider.script.answer = lambda _: Reply("word " * 40, reasoning_tokens=10)
    for target in (SONNET, GPT) * 3:
        await kept.hang_up(target, "A question of some length.")
    await until(lambda: all(row.state == "closed" for row in kept.rows()))
    assert [row.cost_usd for row in kept.rows()] == [oracle(seen) for seen in provider.script.seen]
    with kept.database.read() as connection:
        # The calls ended behind their exits, which have the cost all the same.
        costs = list(connection.execute(select(exits.c.cost_usd)).scalars())
    assert sum(costs) == sum(oracle(seen) for seen in provider.script.seen)


async def test_a_budget_holds_against_streams_that_are_left_and_never_read_to_their_end(
    kept: Kept, provider: ProviderServer
) -> None:
    provider.script.answer = lambda _: "word " * 40
    provider.script.on("*", Fault("hang_mid_stream", after_events=3))
    for api in kept.stack._providers.values():
        object.__setattr__(api.settings, "drain_s", 0.0)
    kept.limit(Decimal("0.02"))
    for _ in range(40):
        await kept.hang_up(SONNET, "A question of some length.")
    await until(lambda: all(row.state == "unknown" for row in kept.rows()))
    made = len(provider.script.seen)
    assert 0 < made < 40
    held = sum(row.held_usd for row in kept.rows())
    billed = sum(oracle(seen) for seen in provider.script.seen)
    assert billed <= held <= Decimal("0.02")
