"""The two arms of the cost benchmark: chats sent directly, and through the stack."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from benchmarks.cost_mix import Chat, Kind
from serving.contracts.answer import Usage
from serving.contracts.errors import EngineFailure
from serving.contracts.openai import usage_from_openai

MAX_TOKENS = 512
_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class ChatResult:
    """One request and its outcome.

    usage: reported by the answer. route, reason: of the stack. cost_usd: reported by the stack,
    None if unknown. error: its code; such a request got no answer.
    """

    kind: Kind
    repeat: bool
    latency_s: float
    usage: Usage | None = None
    route: str | None = None
    reason: str | None = None
    cost_usd: Decimal | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """Requests in the order in which they were sent. elapsed_s: of all of them."""

    results: tuple[ChatResult, ...] = ()
    elapsed_s: float = 0.0

    def __add__(self, other: "Arm") -> "Arm":
        """Return both as one."""
        return Arm(self.results + other.results, self.elapsed_s + other.elapsed_s)


def body_of(chat: Chat, model: str) -> dict[str, Any]:
    """Return the request body; both arms differ in the model's name only."""
    return {
        "model": model,
        "messages": chat.text.messages(),
        "max_tokens": MAX_TOKENS,
        "temperature": 0.7,
        "seed": chat.number,
    }


async def run_arm(url: str, model: str, chats: Sequence[Chat], clients: int) -> Arm:
    """Send every chat with `clients` concurrent clients."""
    import aiohttp

    found: list[ChatResult | None] = [None] * len(chats)
    pending = iter(enumerate(chats))
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:

        async def client() -> None:
            for place, chat in pending:
                found[place] = await _send(session, url, chat, model)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(client())
        elapsed_s = time.perf_counter() - started
    return Arm(tuple(item for item in found if item is not None), elapsed_s)


async def _send(session: Any, url: str, chat: Chat, model: str) -> ChatResult:
    from serving.gateway.middleware import COST, REASON, ROUTE

    started = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=body_of(chat, model)) as response:
        document = await response.json()
    latency_s = time.perf_counter() - started
    headers = response.headers
    error = None if response.status == 200 else _code(document, response.status)
    cost = headers.get(COST)
    return ChatResult(
        kind=chat.text.kind,
        repeat=chat.repeat,
        latency_s=latency_s,
        usage=usage_from_openai(document.get("usage")),
        route=headers.get(ROUTE),
        reason=headers.get(REASON),
        cost_usd=None if cost is None else Decimal(cost),
        error=error,
    )


def _code(document: Any, status: int) -> str:
    found = document.get("error") if isinstance(document, dict) else None
    return str(found.get("code")) if isinstance(found, dict) else str(status)


def require_answers(arm: Arm) -> None:
    """Raise EngineFailure if a request failed: its cost could not be compared."""
    failed = [results.error for results in arm.results if results.error is not None]
    if failed:
        raise EngineFailure(
            f"the fake provider refused {len(failed)} requests, first with {failed[0]!r}"
        )
