"""A batch spends all that its max_cost_usd has room for, and never more."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from openai.types import Batch
from pydantic import SecretStr

from serving.batch.room import BatchRoom
from serving.batch.store import ClaimedLine
from serving.contracts.errors import MaxCostExceeded
from serving.ledger.reports.reconcile import reconcile

from ..provider.script import Fault, Seen
from ..provider.server import ProviderServer
from .batch_gateway import KEY_VALUE, KEY_VARIABLE, Running, running
from .batch_kit import chat_line, jsonl
from .test_batch_scheduler import ledger_rows, settled_rows
from .test_batch_submissions import FAST, answers

IN_BATCHES, ALONE = "openai/gpt-4.1", "azure/gpt-4.1-mini"
LEAST = Decimal("0.000000000001")
"""What amounts are counted in."""


class Spending:
    """Notes at each call of the provider how much the batches have spent and hold."""

    def __init__(self, gateway: Running, provider: ProviderServer) -> None:
        self._database = gateway.database
        self.most = Decimal(0)
        provider.script.answer = self._answer

    def _answer(self, seen: Seen) -> str:
        rows = ledger_rows(self._database)
        self.most = max(self.most, sum((row.paid_usd or 0) + row.hold_usd for row in rows))
        return f"answer to {seen.body['messages'][-1]['content']}"


@asynccontextmanager
async def started(
    provider: ProviderServer, state: Path, url: SecretStr | None = None, **more: Any
) -> AsyncIterator[tuple[Running, Spending]]:
    """Run a gateway with a provider that has batches and one that has none."""
    place = {"api": "openai", "base_url": f"{provider.url}/v1", "api_key_env": KEY_VARIABLE,
             "max_retries": 0}  # fmt: skip
    frontier = {
        "providers": {"openai": {**place, "batch": True}, "azure": place},
        "tiers": {tier: [IN_BATCHES] for tier in ("economy", "standard", "frontier")},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY_VALUE)
        async with running(provider, state, url, batch=FAST, frontier=frontier, **more) as found:
            yield found, Spending(found, provider)


def lines(count: int, model: str) -> list[Any]:
    name = model.partition("/")[0]
    return [
        chat_line(f"{name}{n}", f"question {n}", model=model, max_tokens=10) for n in range(count)
    ]


async def worst_usd(gateway: Running, data: bytes) -> Decimal:
    """Return what a file may cost, at batch prices where its lines go into a batch."""
    file = await gateway.acme.files.create(file=("in.jsonl", data), purpose="batch")
    found: Any = await gateway.acme.post(
        "/batches/check",
        body={"input_file_id": file.id, "endpoint": "/v1/chat/completions",
              "completion_window": "24h"},
        cast_to=object,
    )  # fmt: skip
    return sum((Decimal(one["batch_usd"] or one["max_usd"]) for one in found["plan"]), Decimal(0))


async def limited(gateway: Running, data: bytes, usd: Decimal) -> Batch:
    metadata = {"max_cost_usd": f"{usd:f}"}
    return await gateway.ended(await gateway.submit(data, metadata=metadata))


async def test_a_line_in_a_providers_batch_counts_at_its_price(
    provider: ProviderServer, state: Path, ledger_url: SecretStr | None
) -> None:
    data = jsonl(*lines(6, IN_BATCHES))
    async with started(provider, state, ledger_url) as (gateway, spending):
        worst = await worst_usd(gateway, data)
        whole = await limited(gateway, data, worst)
        assert len(answers(await gateway.results(whole))) == 6
        # In one batch of the provider: the ledger holds what the lines count.
        assert len({seen.batch_id for seen in provider.script.seen}) == 1
        assert spending.most == worst
        provider.script.seen.clear()
        one = jsonl(*lines(1, IN_BATCHES))
        none = await limited(gateway, one, await worst_usd(gateway, one) - LEAST)
        assert none.status == "cancelled"
        assert provider.script.seen == []
        assert await asyncio.to_thread(reconcile, gateway.database) == []


@pytest.mark.parametrize("share", ["1", "0.6"])
async def test_lines_of_both_lanes_stay_within_one_limit(
    provider: ProviderServer, state: Path, share: str
) -> None:
    # Alternating, so that both lanes begin lines at the same time.
    pairs = zip(lines(12, IN_BATCHES), lines(12, ALONE), strict=True)
    data = jsonl(*(line for pair in pairs for line in pair))
    provider.script.on("gpt-4.1-mini", Fault("slow", delay_s=0.2))
    async with started(provider, state) as (gateway, spending):
        limit = round(await worst_usd(gateway, data) * Decimal(share), 12)
        batch = await limited(gateway, data, limit)
        found = await gateway.results(batch)
        rows = await settled_rows(gateway.database)
    assert len(found) == 24
    assert spending.most <= limit
    assert sum(row.paid_usd for row in rows) <= limit
    # An answer costs less than its worst case: what is left over is used again.
    assert (batch.status, len(answers(found))) == ("completed", 24)


async def test_a_task_that_goes_into_a_providers_batch_counts_at_its_price(
    provider: ProviderServer, state: Path
) -> None:
    line = chat_line("a", "The day was bad.", model="task/sentiment")
    async with started(provider, state) as (gateway, _):
        provider.script.answer = lambda _: '{"label": "negative"}'
        worst = await worst_usd(gateway, jsonl(line))
        batch = await limited(gateway, jsonl(line), worst)
        assert len(answers(await gateway.results(batch))) == 1
        under = await limited(gateway, jsonl(line), worst - LEAST)
        assert under.status == "cancelled"
    assert [seen.batch_id is None for seen in provider.script.seen] == [False]


async def test_lines_that_wait_for_a_batch_do_not_wait_for_lines_without_room(
    provider: ProviderServer, state: Path
) -> None:
    # The second line never fits; the first one is sent once no more can come.
    task = chat_line("task", "The day was bad.", model="task/sentiment")
    data = jsonl(task, chat_line("alone", model=ALONE, max_tokens=30_000))
    async with started(provider, state) as (gateway, _):
        provider.script.answer = lambda seen: '{"label": "negative"}'
        limit = await worst_usd(gateway, jsonl(task))
        batch = await limited(gateway, data, limit)
        found = await gateway.results(batch)
    assert found["task"]["response"]["status_code"] == 200
    assert found["alone"]["error"]["code"] == "max_cost_exceeded"
    assert batch.status == "cancelled"


# The room of one batch.


def claimed(number: int, worst: str | None, batch: str | None = None) -> ClaimedLine:
    known = (None if usd is None else Decimal(usd) for usd in (worst, batch))
    return ClaimedLine("batch_1", number, 1, "a", 0, 10, None, *known)


async def room_of(limit: str, committed: str = "0") -> BatchRoom:
    async def read() -> Decimal:
        # As a database: another line may run meanwhile.
        await asyncio.sleep(0)
        return Decimal(committed)

    return BatchRoom(Decimal(limit), read)


async def test_what_a_line_reserves_is_free_again_when_it_has_ended() -> None:
    room = await room_of("1", "0.2")
    room.begin([claimed(1, "0.4", "0.2"), claimed(2, "0.1")], Decimal("0.8"), in_batch=True)
    assert await room.free_usd() == Decimal("0.5")
    room.release(1)
    assert await room.free_usd() == Decimal("0.7")
    room.begin([claimed(3, None)], Decimal("0.7"), in_batch=True)
    assert await room.free_usd() == 0


async def test_calls_beyond_what_was_reserved_need_room() -> None:
    room = await room_of("1")
    room.begin([claimed(1, "0.4", "0.2"), claimed(2, "0.4")], Decimal(1), in_batch=True)
    await room.require(1, Decimal("0.2"))
    await room.require(1, Decimal("0.6"))
    with pytest.raises(MaxCostExceeded):
        await room.require(2, Decimal("0.41"))
    await room.require(2, Decimal("0.4"))
    assert await room.free_usd() == 0


async def test_two_lines_do_not_reserve_the_same_room() -> None:
    room = await room_of("1")
    found = await asyncio.gather(
        room.require(1, Decimal("0.6")), room.require(2, Decimal("0.6")), return_exceptions=True
    )
    assert [type(one) for one in found] == [type(None), MaxCostExceeded]


async def test_without_a_limit_nothing_is_reserved() -> None:
    async def read() -> Decimal:
        raise AssertionError("the database is not asked")

    room = BatchRoom(None, read)
    await room.require(1, Decimal(5))
    assert await room.free_usd() is None
