"""A gateway that is killed at each await of the batch lane, and at random times.

Each line ends once, the provider is asked about it at most once, and the ledger has each bill. Half
of the kills leave a batch unfinished, which the next process goes on with beside a new one.
"""

import contextlib
import json
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import openai
import pytest
from sqlalchemy import select

from serving.ledger.database import Database
from serving.ledger.reports.reconcile import reconcile
from serving.ledger.schema import calls, exits

from ..provider.billing import billed_usd
from ..provider.script import BatchPlan, Fault, Seen
from ..provider.server import ProviderServer
from ..unit.batch_kit import CHAT, jsonl
from ..unit.database import fresh_postgres, postgres_server
from .batch_proof import KINDS, TASK_MODEL, TIER_MODEL, by_class, number_of
from .killed_gateway import KEY, KilledGateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

RANDOM_KILLS = 20
LINES = 12
_LIMIT_S = 120.0
_AT_START = ("BatchStore.take_lease", "BatchStore.left_running", "paid_attempts",
             "OpenAIBatches.find")  # fmt: skip
"""Points of a process that takes over what another one left."""
_BY_TIME = ("BatchStore.held_usd", "BatchStore.open_lines", "Scheduler._has_work")
"""Reads for metrics each ten seconds, and of a process that does not lead yet: a batch may end
before. The gateway is killed then where it is."""


class BatchedGateway(KilledGateway):
    """A gateway that kills itself at a point of the batch lane."""

    module = "tests.integration.batched_process"

    def begin(self) -> None:
        """Start; the process may have killed itself before it was ready."""
        try:
            self.start()
        except RuntimeError:
            if not self.is_killed:
                raise

    @property
    def is_killed(self) -> bool:
        return self.process is not None and self.process.poll() == -signal.SIGKILL


@pytest.fixture(params=["sqlite", "postgresql"])
def gateway(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[BatchedGateway, ProviderServer]]:
    with contextlib.ExitStack() as stack:
        provider = stack.enter_context(ProviderServer(keys=[KEY]))
        url = None
        if request.param == "postgresql":
            server = stack.enter_context(postgres_server())
            url = fresh_postgres(server, "awaits").get_secret_value()
        place = {"api": "openai", "base_url": f"{provider.url}/v1", "api_key_env": "OPENAI_API_KEY"}
        found = BatchedGateway(
            tmp_path, provider, url, cache={"enabled": True, "lookup_timeout_s": 10.0},
            batch={"max_concurrent_lines": 4, "lease_s": 1.0, "provider_poll_s": 0.1},
            frontier={
                # Tasks are asked one by one: this provider has no batches.
                "providers": {"openai": {**place, "batch": True}, "azure": place},
                "tiers": {
                    "economy": [TASK_MODEL], "standard": [TIER_MODEL], "frontier": [TIER_MODEL],
                },
            },
        )  # fmt: skip
        stack.callback(found.close)
        yield found, provider


class Lines:
    """Files of lines. texts: of each line by custom_id. Each fourth is the same as the one before.

    Line n of a file asks for a task, `auto` or a provider's model in turn.
    """

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}
        self._numbers = count()

    def file(self) -> bytes:
        """Return a further file."""
        made, number, kind = [], 0, ""
        for place in range(LINES):
            if place % 4 != 3:
                number = next(self._numbers)
                kind = tuple(KINDS)[number % 3]
            body: dict[str, Any] = {"model": KINDS[kind], "messages": [
                {"role": "user", "content": f"This is message no. {number}, and all was good."}
            ]}  # fmt: skip
            if kind != "task":
                body["max_tokens"] = 50
            custom_id = f"c{number}-{place}"
            self.texts[custom_id] = number
            made.append({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body})
        return jsonl(*made)


class Awaits:
    """A gateway that is killed again and again while batches run."""

    def __init__(self, running: BatchedGateway, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.running = running
        self.lines = Lines()
        self.kills = 0
        self.unreached: list[str] = []
        self.seconds = 0.0
        self._patch = patch
        self._armed, self._points = folder / "armed", folder / "points"
        patch.setenv("ARMED", str(self._armed))
        patch.setenv("POINTS", str(self._points))

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            api_key="none", base_url=f"{self.running.url}/v1", max_retries=0, timeout=60
        )

    def points(self) -> Counter[str]:
        """Return the points of one undisturbed batch, each with how often it was reached."""
        self.running.start()
        self._armed.touch()
        began = time.monotonic()
        self.submit()
        self.wait(self.are_ended, "the batch does not end")
        self.seconds = time.monotonic() - began
        self._armed.unlink()
        self.running.kill()
        return Counter(self._points.read_text().splitlines())

    def submit(self) -> None:
        """Create a batch; the gateway may be killed meanwhile."""
        with contextlib.suppress(openai.APIConnectionError):
            file = self.client.files.create(file=("in.jsonl", self.lines.file()), purpose="batch")
            self.client.batches.create(
                input_file_id=file.id, endpoint=CHAT, completion_window="24h"
            )

    def at(self, point: str, times: int) -> None:
        """Have the gateway kill itself at a point."""
        self._armed.unlink(missing_ok=True)
        self._patch.setenv("KILL_AT", f"{point} {times}")
        is_at_start = point.partition(" ")[2] in _AT_START
        if is_at_start:
            self._armed.touch()
        self.running.begin()
        if not self.running.is_killed:
            self._armed.touch()
            self.submit()
        deadline = time.monotonic() + _LIMIT_S
        while not self.running.is_killed:
            if time.monotonic() > deadline or (not is_at_start and self.are_ended()):
                self.unreached.append(point)
                self.running.kill()
            time.sleep(0.05)
        self.kills += 1

    def after(self, seconds: float) -> None:
        """Kill the gateway after a while."""
        self._armed.unlink(missing_ok=True)
        self._patch.delenv("KILL_AT", raising=False)
        self.running.start()
        self.submit()
        time.sleep(seconds)
        self.running.kill()
        self.kills += 1

    def are_ended(self) -> bool:
        with contextlib.suppress(openai.APIConnectionError):
            batches = self.client.batches.list(limit=100)
            return all(one.status in ("completed", "failed") for one in batches)
        return False

    def wait(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _LIMIT_S
        while not is_so():
            assert time.monotonic() < deadline, f"{what}: {self.running.log.read_text()[-3000:]}"
            time.sleep(0.1)

    def results(self) -> list[dict[str, Any]]:
        """Let all batches end; return the lines of their files."""
        self._armed.unlink(missing_ok=True)
        self._patch.delenv("KILL_AT", raising=False)
        self.running.start()
        self.wait(self.are_ended, "a batch does not end")
        found = []
        for batch in self.client.batches.list(limit=100):
            assert batch.status == "completed", batch
            for name in (batch.output_file_id, batch.error_file_id):
                if name is not None:
                    text = self.client.files.content(name).text
                    found += [json.loads(line) for line in text.splitlines()]
        self.running.kill()
        return found


def test_each_line_ends_once_wherever_the_gateway_is_killed(
    gateway: tuple[BatchedGateway, ProviderServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, provider = gateway
    provider.script.answer = _answer
    provider.script.on("gpt-4.1-nano", Fault("slow", delay_s=0.05))
    provider.script.batch_plan = BatchPlan(polls=1, seconds=0.3)
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    print(f"seed {seed}")  # shown where the test fails
    chance = random.Random(seed)  # noqa: S311  # when to kill, no secret
    awaits = Awaits(running, tmp_path, monkeypatch)
    reached = awaits.points()
    points = [point for point in sorted(reached) if point.partition(" ")[2] not in _AT_START]
    # KILLS in the environment draws so many of them, for a short run.
    kills = int(os.environ.get("KILLS") or len(points))
    for point in sorted(chance.sample(points, min(kills, len(points)))):
        awaits.at(point, chance.randint(1, max(1, reached[point] // 2)))
        print(f"{awaits.kills} killed {point}", flush=True)
    at_start = [(when, name) for name in _AT_START for when in ("before", "after")]
    for when, name in chance.sample(at_start, min(kills, len(at_start))):
        # What it takes over: lines that run, or a batch of which only the provider knows.
        left = "OpenAIBatches.submit" if name == "OpenAIBatches.find" else "Provider.whole"
        awaits.at(f"after {left}", 1)
        awaits.at(f"{when} {name}", 1)
        print(f"{awaits.kills} killed {when} {name}", flush=True)
    at_points = awaits.kills
    for _ in range(min(kills, RANDOM_KILLS)):
        awaits.after(chance.uniform(0, awaits.seconds))
    found = awaits.results()
    database = running.database()
    try:
        lost = check(awaits.lines, found, provider, database)
    finally:
        database.close()
    print(
        f"points {at_points}, not reached {awaits.unreached}, random kills "
        f"{awaits.kills - at_points}, lines {len(found)}, outcome_unknown {lost}, provider calls "
        f"{len(provider.script.seen)}"
    )
    assert {point.partition(" ")[2] for point in awaits.unreached} <= set(_BY_TIME)


def _answer(seen: Seen) -> str:
    number = number_of(seen)
    if "response_format" in seen.body:
        return json.dumps({"label": "positive"})
    return f"Answer to {number}:" + " thank you" * (number % 7)


def check(
    lines: Lines, found: list[dict[str, Any]], provider: ProviderServer, database: Database
) -> int:
    """Compare files, provider and ledger; return how many lines have an unknown outcome."""
    times = Counter(one["custom_id"] for one in found)
    assert set(times.values()) == {1}
    # A batch whose creation a kill cut off may not exist.
    assert times.keys() <= lines.texts.keys()
    failed = [one for one in found if (one["response"] or {}).get("status_code") != 200]
    assert {(one["error"] or {}).get("code") for one in failed} <= {"outcome_unknown"}, failed
    # Lines in a provider's batch lose nothing.
    kinds = tuple(KINDS)
    assert {kinds[lines.texts[one["custom_id"]] % 3] for one in failed} <= {"task"}
    for one in found:
        if one["response"]:
            content = one["response"]["body"]["choices"][0]["message"]["content"]
            number = lines.texts[one["custom_id"]]
            assert kinds[number % 3] == "task" or content.startswith(f"Answer to {number}:")
    _check_bills(lines, times, provider, database)
    return len(failed)


def _check_bills(
    lines: Lines, found: Counter[str], provider: ProviderServer, database: Database
) -> None:
    sharing = Counter(lines.texts[custom_id] for custom_id in found)
    asked: Counter[int] = Counter()
    billed: defaultdict[int, Decimal] = defaultdict(Decimal)
    prices = by_class()
    for seen in provider.script.seen:
        asked[number_of(seen)] += 1
        billed[number_of(seen)] += billed_usd(seen, prices[seen.model])
    # Equal lines are asked at most once each: the first one's answer may be lost in a kill.
    twice = {number: times for number, times in asked.items() if times > sharing[number]}
    assert twice == {}
    with database.read() as connection:
        query = select(exits.c.lane, exits.c.request_id, calls).join(
            calls, calls.c.exit_id == exits.c.id
        )
        rows = connection.execute(query).all()
    assert {row.lane for row in rows} == {"batch"}
    known = sum((row.cost_usd or Decimal(0) for row in rows), Decimal(0))
    held = sum((row.held_usd or Decimal(0) for row in rows), Decimal(0))
    total = sum(billed.values(), Decimal(0))
    if not held:
        assert known == total
    assert known <= total <= known + held
    repeated = sum(times - 1 for times in asked.values() if times > 1)
    equal = sum(times - 1 for times in sharing.values())
    assert reconcile(database) == []
    print(f"equal lines {equal}, asked again {repeated}, known {known}, held {held}, "
          f"billed {total}")  # fmt: skip
