"""Times one tenant's chats while another one floods the cache with near-equal questions."""

import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from benchmarks.load import percentile
from benchmarks.processes import listening

if TYPE_CHECKING:
    import aiohttp

    from serving.contracts.settings import Settings

Arm = Literal["alone", "bypassing", "flooding"]
Kind = Literal["exact hit", "miss"]

_START_S = 120.0
_CHATS = 40
"""Of each kind in one window."""
_FLOOD_A_S = 20.0
_MOST_WAITING = 64
_QUESTION = "What is a narrow gate?"
_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Flood:
    """Times of one tenant's chats, seconds, by what the other tenant did; a list a window.

    sent: chats of the other tenant in all windows. elapsed_s: of these windows.
    """

    times: Mapping[tuple[Kind, Arm], list[list[float]]]
    sent: Mapping[Arm, int]
    elapsed_s: Mapping[Arm, float]

    def document(self) -> list[dict[str, Any]]:
        """Return percentiles by kind and arm, and the medians' difference from `alone`, in ms.

        difference_low_ms, difference_high_ms: its 95 % interval, by resampling windows.
        """
        rows = []
        for (kind, arm), windows in self.times.items():
            alone = self.times[kind, "alone"]
            low, high = _interval(windows, alone)
            every = [one for window in windows for one in window]
            middle = statistics.median(every) - statistics.median([o for w in alone for o in w])
            rows.append({
                "kind": kind, "arm": arm, "chats": len(every),
                "p50_ms": percentile(every, 0.5) * 1000, "p99_ms": percentile(every, 0.99) * 1000,
                "difference_ms": middle * 1000, "difference_low_ms": low * 1000,
                "difference_high_ms": high * 1000,
                "flood_per_s": self.sent[arm] / self.elapsed_s[arm],
            })  # fmt: skip
        return rows


def time_flood(settings: "Settings", model: str, rounds: int) -> Flood:
    """Start a gateway with keys, and time a tenant's chats in windows of each arm, in turn.

    The other tenant sends so many chats a second, whatever the answers take: none; chats that
    bypass the cache; and near-equal questions, which are looked up by meaning, refused by guards,
    answered by the provider and stored.
    """
    from serving.lifecycle.ports import free_port

    keys = _keys(settings)
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.cache_server", str(port)]
    with listening(command, port, _START_S, settings.model_dump_json()) as url:
        return asyncio.run(_time_flood(url, keys, model, rounds))


def _keys(settings: "Settings") -> dict[str, str]:
    """Make two tenants; return a key of each."""
    from serving.contracts.ledger import Tenant
    from serving.ledger.access.keys import create_key
    from serving.ledger.access.tenants import create_tenant
    from serving.ledger.database import Database, database_url
    from serving.ledger.migrate import migrate

    database = Database(database_url(None, settings.state))
    migrate(database)
    keys = {}
    for name in ("flooding", "other"):
        create_tenant(database, Tenant(name))
        keys[name] = create_key(database, name).text.get_secret_value()
    database.close()
    return keys


async def _time_flood(url: str, keys: Mapping[str, str], model: str, rounds: int) -> Flood:
    import aiohttp

    from benchmarks.cache_replay import questions

    times: dict[tuple[Kind, Arm], list[list[float]]] = {
        (kind, arm): [] for kind in get_args(Kind) for arm in get_args(Arm)
    }
    sent, elapsed_s = dict.fromkeys(get_args(Arm), 0), dict.fromkeys(get_args(Arm), 0.0)
    numbers = count(1)
    fresh = iter(questions((rounds + 1) * len(sent) * _CHATS, seed=41))
    path = f"{url}/v1/chat/completions"
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
        client = _Client(session, path, keys, model)
        # Round 0 fills the cache, warms connections, and is not counted.
        for number in range(rounds + 1):
            for arm in get_args(Arm):
                started = time.perf_counter()
                async with _flooded(client, arm, numbers) as done:
                    window = await _window(client, fresh)
                if number:
                    elapsed_s[arm] += time.perf_counter() - started
                    sent[arm] += len(done)
                    for kind, values in window.items():
                        times[kind, arm].append(values)
    return Flood(times, sent, elapsed_s)


@dataclass(frozen=True, slots=True)
class _Client:
    """Sends chats as either tenant."""

    session: "aiohttp.ClientSession"
    url: str
    keys: Mapping[str, str]
    model: str

    async def ask(self, tenant: str, text: str, cache: str = "use") -> str:
        """Return what the cache did. Raises where the gateway refuses."""
        headers = {"authorization": f"Bearer {self.keys[tenant]}", "x-narrowgate-cache": cache}
        body = {"model": self.model, "messages": [{"role": "user", "content": text}]}
        async with self.session.post(self.url, json=body, headers=headers) as response:
            await response.read()
            response.raise_for_status()
            return response.headers["x-narrowgate-cache"]


async def _window(client: _Client, fresh: Iterator[str]) -> dict[Kind, list[float]]:
    found: dict[Kind, list[float]] = {"exact hit": [], "miss": []}
    await client.ask("other", _QUESTION)
    for _ in range(_CHATS):
        turns: list[tuple[Kind, str]] = [("exact hit", _QUESTION), ("miss", next(fresh))]
        for kind, text in turns:
            started = time.perf_counter()
            state = await client.ask("other", text)
            found[kind].append(time.perf_counter() - started)
            assert state == kind.removeprefix("exact "), (kind, state)
    return found


@asynccontextmanager
async def _flooded(
    client: _Client, arm: Arm, numbers: "count[int]"
) -> AsyncIterator[list["asyncio.Task[str]"]]:
    """Send the other tenant's chats at their times until the block ends; yield those sent."""
    tasks: list[asyncio.Task[str]] = []
    room = asyncio.Semaphore(_MOST_WAITING)

    async def send() -> None:
        cache = "bypass" if arm == "bypassing" else "use"
        began = time.perf_counter()
        for number in count():
            await asyncio.sleep(max(0.0, began + number / _FLOOD_A_S - time.perf_counter()))
            # What a machine cannot keep up with would grow without end.
            await room.acquire()
            text = f"How long do I boil egg {next(numbers)}?"
            tasks.append(asyncio.create_task(client.ask("flooding", text, cache)))
            tasks[-1].add_done_callback(lambda _: room.release())

    sending = None if arm == "alone" else asyncio.create_task(send())
    try:
        yield tasks
    finally:
        if sending is not None:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        await asyncio.gather(*tasks)


def _interval(some: list[list[float]], alone: list[list[float]]) -> tuple[float, float]:
    """Return the 95 % interval of the difference of the medians, by resampling rounds."""
    rng = np.random.default_rng(1)
    first, second = np.array(some), np.array(alone)
    differences = []
    for _ in range(_DRAWS):
        chosen = rng.integers(0, len(first), len(first))
        differences.append(float(np.median(first[chosen]) - np.median(second[chosen])))
    return float(np.quantile(differences, 0.025)), float(np.quantile(differences, 0.975))
