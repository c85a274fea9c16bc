"""A file of tasks, `auto` and a provider's model as one batch, while the gateway is killed thrice.

python -m tests.integration.batch_proof [--lines N] [--postgres] [--json FILE]

The stack is the real one without Ray and without a local model, the client is OpenAI's SDK, and the
provider is the fake one over HTTP. The provider records what it saw and billed.
"""

import argparse
import contextlib
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any

import openai
from sqlalchemy import select

from serving.contracts.batch_settings import BatchSettings
from serving.ledger.pricing.book import PriceBook
from serving.ledger.reports.reconcile import reconcile
from serving.ledger.schema import calls, exits

from ..provider.billing import billed_classes, billed_usd
from ..provider.script import BatchPlan, Fault, Seen
from ..provider.server import ProviderServer
from ..unit.batch_kit import CHAT, jsonl
from ..unit.database import fresh_postgres, postgres_server
from .killed_gateway import KEY, KilledGateway

TASK_MODEL = "azure/gpt-4.1-nano"
TIER_MODEL = "openai/gpt-4.1-mini"
BATCH_MODEL = "openai/gpt-4.1"
"""The last two are asked in the provider's batch: chosen for `auto`, and named by lines."""
KINDS = {"task": "task/sentiment", "auto": "auto", "provider": BATCH_MODEL}
KILLS = 3
_RUNNING = BatchSettings().max_concurrent_lines
_END_S = 3000.0
_OPEN_S = 45.0
"""How long the fake provider keeps a batch open at least."""
_NUMBER = re.compile(r"message no\. (\d+),")


def kind_of(number: int) -> str:
    """Return what a line of the file asks for."""
    return ("task", "auto", "provider")[number % 3]


def line(number: int) -> dict[str, Any]:
    """Return a line of the file."""
    text = f"This is message no. {number}, and the staff were friendly."
    body: dict[str, Any] = {"model": KINDS[kind_of(number)]}
    body["messages"] = [{"role": "user", "content": text}]
    if kind_of(number) != "task":
        body["max_tokens"] = 50
    return {"custom_id": f"c{number}", "method": "POST", "url": CHAT, "body": body}


def number_of(seen: Seen) -> int:
    """Return the line that a request to the provider belongs to."""
    found = _NUMBER.findall(seen.text)
    assert len(set(found)) == 1, seen.text
    return int(found[-1])


def answer(seen: Seen) -> str:
    """Return the provider's answer: a label to a task, words of some length to others."""
    number = number_of(seen)
    if kind_of(number) == "task":
        return json.dumps({"label": "positive"})
    return f"Answer to {number}:" + " thank you" * (number % 7)


@dataclass
class Proof:
    """One run. marks: what happened, with the seconds since the batch was created."""

    gateway: KilledGateway
    provider: ProviderServer
    lines: int
    marks: list[str] = field(default_factory=list)
    open_kills: int = 0
    seconds: float = 0.0

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(api_key="none", base_url=f"{self.gateway.url}/v1", max_retries=8)

    @property
    def is_open(self) -> bool:
        """Return whether the provider has a batch whose results were not asked for."""
        asked = Counter(operation for operation, _ in list(self.provider.script.batch_requests))
        return asked["create"] > 0 and asked["results"] == 0

    def run(self) -> dict[str, Any]:
        """Submit the file, kill the gateway on the way, and return what was found at the end."""
        self.gateway.start()
        data = jsonl(*(line(number) for number in range(self.lines)))
        file = self.client.files.create(file=("in.jsonl", data), purpose="batch")
        began = time.monotonic()
        batch = self.client.batches.create(
            input_file_id=file.id, endpoint=CHAT, completion_window="24h"
        )
        asked = sum(kind_of(number) == "task" for number in range(self.lines))
        # On the way of the tasks; once the provider has a batch; on the way of the rest.
        self._kill(began, lambda: self._asked_alone() >= asked // 4)
        self._kill(began, lambda: self.is_open)
        # Lines that the kills made `outcome_unknown` may never be asked.
        until = min((self._asked_alone() + asked) // 2, asked - KILLS * _RUNNING)
        self._kill(began, lambda: self._asked_alone() >= until)
        while batch.status not in ("completed", "failed", "cancelled", "expired"):
            if time.monotonic() > began + _END_S:
                raise RuntimeError(f"the batch is {batch.status}, {batch.request_counts}")
            time.sleep(0.5)
            batch = self.client.batches.retrieve(batch.id)
        self.seconds = time.monotonic() - began
        if batch.status != "completed":
            raise RuntimeError(f"the batch is {batch.status}: {batch.errors}")
        found = [
            json.loads(text)
            for name in (batch.output_file_id, batch.error_file_id)
            if name is not None
            for text in self.client.files.content(name).text.splitlines()
        ]
        return self._figures(found, batch)

    def _asked_alone(self) -> int:
        """Return how many lines the provider was asked outside of a batch."""
        return sum(one.batch_id is None for one in list(self.provider.script.seen))

    def _kill(self, began: float, is_due: Callable[[], bool]) -> None:
        """Kill the gateway once it is due, and start it again."""
        deadline = time.monotonic() + _END_S
        while not is_due():
            if time.monotonic() > deadline:
                raise RuntimeError("the time to kill the gateway did not come")
            time.sleep(0.005)
        is_open = self.is_open
        self.open_kills += is_open
        self.gateway.kill()
        state = "with" if is_open else "without"
        asked = len(self.provider.script.seen)
        self.marks.append(
            f"{time.monotonic() - began:.1f} s: killed after {asked} answers, {state} a provider's "
            "batch open"
        )
        print(self.marks[-1], file=sys.stderr, flush=True)
        self.gateway.start()

    def _figures(self, found: list[dict[str, Any]], batch: Any) -> dict[str, Any]:
        ids = Counter(one["custom_id"] for one in found)
        expected = {f"c{number}": 1 for number in range(self.lines)}
        answered = {one["custom_id"] for one in found if (one["response"] or {}).get(
            "status_code") == 200}  # fmt: skip
        codes = Counter(_code(one) for one in found if one["custom_id"] not in answered)
        bills = _Bills(list(self.provider.script.seen))
        database = self.gateway.database()
        try:
            ledger = _Ledger(database)
            problems = [
                *_different("custom_ids", dict(ids), expected),
                *bills.paid_twice(),
                *ledger.against(bills, answered),
                *(f"reconciliation: {one}" for one in reconcile(database)),
            ]
        finally:
            database.close()
        report = json.loads(self.gateway.command("report", "--json"))
        lane = next((one for one in report["lanes"] if one["name"] == "batch"), None)
        if self.open_kills == 0:
            problems.append("the gateway was never killed while a provider's batch was open")
        if lane is None:
            problems.append("the report has no lane `batch`")
        if codes.keys() - {"outcome_unknown"}:
            problems.append(f"lines failed: {dict(codes)}")
        return {
            "lines": self.lines,
            "answered": len(answered),
            "without_answer": dict(codes),
            "without_answer_by_kind": dict(
                Counter(kind_of(int(name[1:])) for name in ids if name not in answered)
            ),
            "seconds": round(self.seconds, 1),
            "kills": self.marks,
            "kills_with_open_provider_batch": self.open_kills,
            "provider_answers": len(bills.usd),
            "provider_batch_answers": bills.in_batches,
            "provider_usd": f"{bills.total:f}",
            "ledger_known_usd": f"{ledger.known_usd:f}",
            "ledger_held_usd": f"{ledger.held_usd:f}",
            "ledger_held_calls": ledger.held,
            "batch_cost_usd": (batch.model_extra or {})["narrowgate"]["cost_usd"],
            "report_lane": lane,
            "report_savings": report.get("savings"),
            "problems": problems,
        }


def by_class() -> dict[str, dict[str, Decimal]]:
    """Return the synchronous prices of each model of the provider, by class of tokens."""
    book = PriceBook.load()
    prices = {}
    for model in (TASK_MODEL, TIER_MODEL, BATCH_MODEL):
        known = book.of(model)
        assert known is not None
        tokens = known.base
        prices[model.partition("/")[2]] = {
            "uncached_input_tokens": tokens.uncached_input,
            "cache_read_tokens": tokens.cache_read,
            "cache_write_5m_tokens": tokens.cache_write_5m,
            "cache_write_1h_tokens": tokens.cache_write_1h,
            "output_tokens": tokens.output,
            "reasoning_tokens": tokens.output,
        }
    return prices


class _Bills:
    """What the provider billed, by line."""

    def __init__(self, seen: list[Seen]) -> None:
        prices = by_class()
        self.times: Counter[int] = Counter()
        self.usd: dict[int, Decimal] = {}
        self.tokens: dict[int, dict[str, int]] = {}
        self.in_batches = 0
        for one in seen:
            number = number_of(one)
            self.times[number] += 1
            # A request that a kill cut off before its end was worked on and is billed.
            self.tokens[number] = billed_classes(one)
            self.usd[number] = billed_usd(one, prices[one.model])
            self.in_batches += one.batch_id is not None

    @property
    def total(self) -> Decimal:
        return sum(self.usd.values(), Decimal(0))

    def paid_twice(self) -> list[str]:
        """Return the lines that the provider was asked more than once."""
        return [f"line {n} was asked {times} times" for n, times in self.times.items() if times > 1]


class _Ledger:
    """The ledger's calls of the lane, by line."""

    def __init__(self, database: Any) -> None:
        with database.read() as connection:
            rows = connection.execute(
                select(exits.c.lane, exits.c.request_id, calls).join(
                    calls, calls.c.exit_id == exits.c.id
                )
            ).all()
        self._lanes = {row.lane for row in rows}
        # BATCH_LINE_ATTEMPT, lines from 1.
        numbered = [(int(row.request_id.split("_")[2]) - 1, row) for row in rows]
        self._known = [(n, row) for n, row in numbered if row.state == "closed" and row.cost_usd]
        self._held = [(n, row) for n, row in numbered if row.held_usd]
        self.held = len(self._held)
        self.known_usd = sum((row.cost_usd for _, row in self._known), Decimal(0))
        self.held_usd = sum((row.held_usd for _, row in self._held), Decimal(0))

    def against(self, bills: _Bills, answered: set[str]) -> Iterator[str]:
        """Yield differences from what the provider billed."""
        if self._lanes != {"batch"}:
            yield f"the ledger has the lanes {self._lanes}"
        known, held = Counter(n for n, _ in self._known), Counter(n for n, _ in self._held)
        for number, times in (known + held).items():
            if times > 1:
                yield f"line {number} has {times} paid calls in the ledger"
        for number, row in self._known:
            billed = bills.usd.get(number)
            if billed is None or billed != row.cost_usd:
                yield f"line {number} cost {row.cost_usd}, and the provider billed {billed}"
        for number, row in self._held:
            if bills.usd.get(number, Decimal(0)) > row.held_usd:
                yield f"line {number} holds {row.held_usd}, less than {bills.usd[number]}"
            if f"c{number}" in answered:
                yield f"line {number} was answered and is held at its worst case"
        yield from (
            f"line {number} was billed and is not in the ledger"
            for number in bills.usd.keys() - known.keys() - held.keys()
        )
        yield from (
            f"line {custom_id} was answered and not paid"
            for custom_id in answered
            if int(custom_id[1:]) not in known and int(custom_id[1:]) not in held
        )


def _code(one: dict[str, Any]) -> str:
    if one["error"]:
        return str(one["error"]["code"])
    return str(one["response"]["body"]["error"]["code"])


def _different(name: str, found: dict[str, int], expected: dict[str, int]) -> Iterator[str]:
    if found != expected:
        keys = found.keys() | expected.keys()
        wrong = [key for key in keys if found.get(key, 0) != expected.get(key, 0)]
        yield f"{name}: {len(wrong)} are not there once, such as {wrong[:5]}"


@contextlib.contextmanager
def running(lines: int, *, postgres: bool) -> Iterator[Proof]:
    """Run the provider and the database; yield a proof that has not begun."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        provider = stack.enter_context(ProviderServer(keys=[KEY]))
        url = None
        if postgres:
            server = stack.enter_context(postgres_server())
            url = fresh_postgres(server, "batch").get_secret_value()
        provider.script.answer = answer
        provider.script.on("gpt-4.1-nano", Fault("slow", delay_s=0.05))
        provider.script.batch_plan = BatchPlan(polls=2, seconds=_OPEN_S if lines > 1000 else 8.0)
        place = {"api": "openai", "base_url": f"{provider.url}/v1", "api_key_env": "OPENAI_API_KEY"}
        gateway = KilledGateway(
            folder, provider, url,
            batch={"lease_s": 10.0, "provider_poll_s": 1.0},
            frontier={
                # Tasks are asked one by one: this provider has no batches.
                "providers": {"openai": {**place, "batch": True}, "azure": place},
                "tiers": {
                    "economy": [TASK_MODEL], "standard": [TIER_MODEL], "frontier": [TIER_MODEL],
                },
            },
        )  # fmt: skip
        stack.callback(gateway.close)
        yield Proof(gateway, provider, lines)


def main() -> int:
    """Return 0 if each line ended once and the provider's records equal the ledger."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])  # type: ignore[union-attr]
    parser.add_argument("--lines", type=int, default=10_000)
    parser.add_argument("--postgres", action="store_true", help="the ledger's database; or SQLite")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    if args.lines < 30:
        parser.error(f"--lines is {args.lines}; at least 30 are needed for three kills")
    with running(args.lines, postgres=args.postgres) as proof:
        try:
            figures = proof.run()
        except RuntimeError:
            print(proof.gateway.log.read_text()[-6000:], file=sys.stderr)
            raise
        print(json.dumps(figures, indent=1))
        print(proof.gateway.command("report"))
        if figures["problems"]:
            print(proof.gateway.log.read_text()[-6000:], file=sys.stderr)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    print("kept" if not figures["problems"] else "NOT KEPT", file=sys.stderr)
    return 0 if not figures["problems"] else 1


if __name__ == "__main__":
    sys.exit(main())
