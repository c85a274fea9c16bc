"""Equal lines of one batch are answered by one call, where the tenant's cache is on."""

from collections import Counter
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from serving.batch.check import FileCheck
from serving.batch.schema import batch_lines
from serving.batch.store import BatchStore, Limits, LineEnd
from serving.contracts.batch import BatchOrder, Checked
from serving.contracts.task_spec import TaskSpec

from ..provider.script import Fault, Seen
from ..provider.server import ProviderServer
from .authenticated import opened
from .batch_gateway import Running
from .batch_kit import ACME, CHAT, chat_line, jsonl, line_rules, task_line
from .cache_kit import NOW
from .test_batch_routes import CACHE, exits_of, started
from .test_batch_submissions import answers, asked

EQUAL = jsonl(*(chat_line(f"c{n}", f"Tell me about gate {n % 2}.") for n in range(6)))


async def routes(gateway: Running) -> Counter[str]:
    return Counter(row.route for row in await exits_of(gateway))


@pytest.mark.parametrize("deadline", ["24h", "1h"])
async def test_equal_lines_are_asked_once(
    provider: ProviderServer, state: Path, ledger_url: SecretStr | None, deadline: str
) -> None:
    async with started(provider, state, ledger_url, **CACHE) as gateway:
        batch = await gateway.submit(EQUAL, metadata={"deadline": deadline})
        batch = await gateway.ended(batch)
        found = await gateway.results(batch)
        assert await routes(gateway) == {"frontier": 2, "cache": 4}
    assert len(answers(found)) == 6
    texts = {name: line["response"]["body"]["choices"][0]["message"]["content"]
             for name, line in found.items()}  # fmt: skip
    assert texts == {f"c{n}": f"answer to Tell me about gate {n % 2}." for n in range(6)}
    assert set(asked(provider).values()) == {1}
    assert {seen.batch_id is None for seen in provider.script.seen} == {deadline == "1h"}


async def test_equal_inputs_of_a_task_are_asked_once(provider: ProviderServer, state: Path) -> None:
    data = jsonl(*(task_line(f"c{n}", "sentiment", "The day was bad.") for n in range(4)))
    async with started(provider, state, **CACHE) as gateway:
        batch = await gateway.ended(await gateway.submit(data, endpoint="/v1/tasks/sentiment"))
        found = await gateway.results(batch)
        assert await routes(gateway) == {"frontier": 1, "cache": 3}
    assert [line["response"]["body"]["value"] for line in found.values()] == ["negative"] * 4


@pytest.mark.parametrize(
    "cache", [{"enabled": False}, {"enabled": True, "excluded_tenants": ["acme"]}]
)
async def test_without_a_cache_equal_lines_are_each_asked(
    provider: ProviderServer, state: Path, cache: dict[str, Any]
) -> None:
    async with started(provider, state, cache=cache) as gateway:
        batch = await gateway.ended(await gateway.submit(EQUAL))
        assert len(answers(await gateway.results(batch))) == 6
    assert set(asked(provider).values()) == {3}


async def test_an_answer_that_is_not_kept_leaves_the_equal_lines_to_ask(
    provider: ProviderServer, state: Path
) -> None:
    refused: list[str] = []

    def once(seen: Seen) -> Fault | None:
        if refused:
            return None
        refused.append(seen.text)
        return Fault("status", 400, message="not this one")

    data = jsonl(*(chat_line(f"c{n}", "Tell me about gates.") for n in range(3)))
    async with started(provider, state, **CACHE) as gateway:
        provider.script.line_fault = once
        batch = await gateway.ended(await gateway.submit(data))
        found = await gateway.results(batch)
    assert batch.status == "completed"
    assert [line["response"]["status_code"] for line in found.values()].count(200) == 2


async def test_a_limit_of_cost_counts_equal_lines_once(
    provider: ProviderServer, state: Path
) -> None:
    async with started(provider, state, **CACHE) as gateway:
        data = jsonl(*(chat_line(f"c{n}", "Hello", max_tokens=5) for n in range(4)))
        found = await gateway.ended(await gateway.submit(jsonl(chat_line("a", max_tokens=5))))
        plan: Any = found.model_extra["narrowgate"]["plan"]  # type: ignore[index]
        metadata = {"max_cost_usd": plan[0]["batch_usd"], "deadline": "24h"}
        # As long, and not in the cache.
        data = data.replace(b"Hello", b"Howdy")
        batch = await gateway.ended(await gateway.submit(data, metadata=metadata))
        assert len(answers(await gateway.results(batch))) == 4
    assert asked(provider)["Howdy"] == 1


# The check and the database.


def test_the_check_names_the_first_of_equal_lines(specs: dict[str, TaskSpec]) -> None:
    texts = ["a", "b", "a", "c", "a", "c"]
    data = jsonl(*(chat_line(f"c{n}", text) for n, text in enumerate(texts)))

    def key_of(request: Any, context: Any) -> str | None:
        text = str(request.messages[-1].content)
        return None if text == "c" else text

    check = FileCheck(line_rules(specs, key_of=key_of), CHAT, ACME)
    assert [line.same_as for line in check.good_lines([data])] == [None, None, 1, None, 1, None]


@pytest.fixture
def store(ledger_url: SecretStr | None, state: Path) -> Any:
    database = opened(ledger_url, state)
    yield BatchStore(database)
    database.close()


def filled(store: BatchStore, specs: dict[str, TaskSpec]) -> str:
    """Return a batch of four lines; the last two are the same as the first."""
    rules = line_rules(specs, key_of=lambda request, _: str(request.messages[-1].content))
    data = jsonl(*(chat_line(f"c{n}", text) for n, text in enumerate("abaa")))
    lines = list(FileCheck(rules, CHAT, ACME).good_lines([data]))
    batch = store.create(
        ACME, BatchOrder(CHAT, "file-1", "24h"), NOW, Limits(NOW + timedelta(days=1))
    )
    store.add_lines(batch, lines)
    store.checked(batch, Checked(4, (), ()), NOW, is_good=True)
    return batch


def states(store: BatchStore) -> list[str]:
    with store.database.read() as connection:
        query = select(batch_lines.c.state).order_by(batch_lines.c.number)
        return list(connection.execute(query).scalars())


def test_equal_lines_wait_until_the_first_has_ended(
    store: BatchStore, specs: dict[str, TaskSpec]
) -> None:
    batch = filled(store, specs)
    assert store.take_lease("one", 15.0)
    assert [line.number for line in store.claim("one", batch, 9, NOW)] == [1, 2]
    # A first line that goes on waiting, as for a provider's batch, has not ended.
    store.end_lines("one", [LineEnd(batch, 1, "waiting"), LineEnd(batch, 2, "succeeded", b"{}")])
    assert states(store) == ["waiting", "succeeded", "following", "following"]
    assert [line.number for line in store.claim("one", batch, 9, NOW)] == [1]
    # An end that is not written, because another process holds the line, releases nothing.
    store.end_lines("two", [LineEnd(batch, 1, "succeeded", b"{}")])
    assert states(store)[2:] == ["following", "following"]
    store.end_lines("one", [LineEnd(batch, 1, "failed", b"{}")])
    assert states(store)[2:] == ["waiting", "waiting"]
    assert [line.number for line in store.claim("one", batch, 9, NOW)] == [3, 4]


def test_equal_lines_of_a_stopped_batch_end_with_it(
    store: BatchStore, specs: dict[str, TaskSpec]
) -> None:
    batch = filled(store, specs)
    assert store.take_lease("one", 15.0)
    store.claim("one", batch, 1, NOW)
    assert store.open_lines() == {"running": 1, "waiting": 1, "following": 2}
    store.stop(batch, "cancelled", NOW, None)
    assert store.end_waiting(batch, "cancelled") == ("cancelled", 3)
    store.end_lines("one", [LineEnd(batch, 1, "succeeded", b"{}", cost_usd=Decimal(1))])
    assert states(store) == ["succeeded", "cancelled", "cancelled", "cancelled"]
