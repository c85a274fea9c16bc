"""A gateway that is killed while it runs a batch: each line ends once, each call is paid once.

The gateway is a process of its own without a local model; the provider is the fake one, over HTTP.
It records what it saw and billed.
"""

import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import select

from serving.ledger.reports.reconcile import reconcile
from serving.ledger.schema import calls, exits

from ..provider.script import Fault
from ..provider.server import ProviderServer
from ..unit.batch_kit import chat_line, jsonl
from ..unit.database import fresh_postgres, postgres_server
from .killed_gateway import KEY, KilledGateway

pytestmark = [pytest.mark.timeout(900)]

LINES = 400
KILLS = 3
END_S = 400.0


@pytest.fixture(params=["sqlite", "postgresql"])
def gateway(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[KilledGateway, ProviderServer]]:
    with contextlib.ExitStack() as stack:
        provider = stack.enter_context(ProviderServer(keys=[KEY]))
        url = None
        if request.param == "postgresql":
            server = stack.enter_context(postgres_server())
            url = fresh_postgres(server, "batch").get_secret_value()
        found = KilledGateway(
            tmp_path, provider, url, batch={"max_concurrent_lines": 8, "lease_s": 2.0}
        )
        try:
            yield found, provider
        finally:
            found.close()


def test_a_batch_survives_kills(gateway: tuple[KilledGateway, ProviderServer]) -> None:
    running, provider = gateway
    provider.script.answer = lambda seen: f"answer to {seen.body['messages'][-1]['content']}"
    provider.script.on("gpt-4.1", Fault("slow", delay_s=0.05))
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown where the test fails
    chance = random.Random(seed)  # noqa: S311  # when to kill, no secret
    running.start()
    client = openai.OpenAI(api_key="none", base_url=f"{running.url}/v1", max_retries=5)
    data = jsonl(*(chat_line(f"c{n}", f"question {n}") for n in range(LINES)))
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    for _ in range(KILLS):
        seen = len(provider.script.seen)
        # Somewhere in the next part of the file.
        until = min(LINES - 1, seen + chance.randrange(1, LINES // (KILLS + 1)))
        deadline = time.monotonic() + END_S
        while len(provider.script.seen) < until and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        running.kill()
        running.start()
    deadline = time.monotonic() + END_S
    while batch.status not in ("completed", "failed") and time.monotonic() < deadline:
        time.sleep(0.5)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed", running.log.read_text()[-4000:]
    found = [
        json.loads(text)
        for name in (batch.output_file_id, batch.error_file_id)
        if name is not None
        for text in client.files.content(name).text.splitlines()
    ]
    assert sorted(line["custom_id"] for line in found) == sorted(f"c{n}" for n in range(LINES))
    _assert_bills(running, provider, found)


def _assert_bills(running: KilledGateway, provider: ProviderServer, found: list[Any]) -> None:
    """Assert that each line was billed at most once, and that the ledger has each bill."""
    asked = Counter(seen.body["messages"][-1]["content"] for seen in provider.script.seen)
    twice = {text: count for text, count in asked.items() if count > 1}
    assert twice == {}, "a line was paid for twice"
    answered = {f"question {line['custom_id'][1:]}" for line in found if line["response"]}
    lost = {f"question {line['custom_id'][1:]}" for line in found if not line["response"]}
    assert {line["error"]["code"] for line in found if line["error"]} <= {"outcome_unknown"}
    assert answered <= set(asked)
    # What the provider was asked and what nobody answered was in flight at a kill.
    assert set(asked) - answered <= lost
    database = running.database()
    try:
        with database.read() as connection:
            rows = connection.execute(
                select(exits.c.lane, exits.c.request_id, calls).join(
                    calls, calls.c.exit_id == exits.c.id
                )
            ).all()
        assert {row.lane for row in rows} == {"batch"}
        known = [row for row in rows if row.state == "closed" and row.cost_usd > 0]
        held = [row for row in rows if row.held_usd > 0]
        print(f"answered {len(answered)}, lost {len(lost)}, known {len(known)}, held {len(held)}")
        # Every bill has a row: with its cost, or with its worst case where a kill hid the cost.
        assert len(known) + len(held) >= sum(asked.values())
        assert len(known) + len(held) == LINES
        billed = {
            seen.body["messages"][-1]["content"]: seen.billed for seen in provider.script.seen
        }
        for row in known:
            # BATCH_LINE_ATTEMPT, lines from 1.
            usage = billed[f"question {int(row.request_id.split('_')[2]) - 1}"]
            assert usage is not None
            assert row.output_tokens + row.reasoning_tokens == usage["completion_tokens"]
            assert row.uncached_input_tokens + row.cache_read_tokens == usage["prompt_tokens"]
        assert reconcile(database) == []
    finally:
        database.close()
