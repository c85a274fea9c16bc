"""Closed-loop HTTP load: each client sends its next request after the answer to its last one."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# aiohttp comes with Ray Serve. It needs a third of the CPU time of httpx; on a small machine the
# load generator competes with the system under test.
import aiohttp

from serving.contracts.errors import EngineFailure


@dataclass(frozen=True, slots=True)
class LoadResult:
    """latencies_s: one a request, in order of completion. elapsed_s: of the whole round."""

    latencies_s: tuple[float, ...]
    elapsed_s: float

    @property
    def requests_per_s(self) -> float:
        """Return the throughput of the round."""
        return len(self.latencies_s) / self.elapsed_s


async def run_load(
    url: str,
    bodies: Sequence[dict[str, Any] | None],
    clients: int,
    headers: Mapping[str, str] | None = None,
) -> LoadResult:
    """Send every body (None: a GET) with that many clients. headers: of every request.

    Raises EngineFailure if a response has a status other than 200.
    """
    pending = iter(bodies)
    latencies: list[float] = []
    connector = aiohttp.TCPConnector(limit=clients)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, headers=headers
    ) as session:

        async def client() -> None:
            for body in pending:
                started = time.perf_counter()
                method = "GET" if body is None else "POST"
                async with session.request(method, url, json=body) as response:
                    content = await response.read()
                if response.status != 200:
                    raise EngineFailure(f"{url} answered {response.status}: {content[:300]!r}")
                latencies.append(time.perf_counter() - started)

        started = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(client())
        except ExceptionGroup as failures:
            # The first one cancelled the rest.
            raise failures.exceptions[0] from None
        return LoadResult(tuple(latencies), time.perf_counter() - started)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values do not exceed."""
    ordered = sorted(values)
    index = max(0, -(-int(share * 1_000_000) * len(ordered) // 1_000_000) - 1)
    return ordered[min(index, len(ordered) - 1)]
