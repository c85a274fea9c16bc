"""The ledger's costs equal the provider's bill for every request of the whole stack."""

import contextlib
import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy import select

from serving.ledger.pricing.book import PriceBook
from serving.ledger.schema import calls, exits

from ...provider.script import Fault, Reply, Script
from ..conftest import Stack
from .conftest import LedgerTool, bearer, chat, wait_for_key

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]

CHAT = "/v1/chat/completions"
TOPIC = "/v1/tasks/topic"
OPEN_ENDED = "Write a short poem about a lighthouse keeper who has lost his dog."
SURE = "The striker signed a new contract before the cup final on Saturday."
LONG = "A preface that providers keep. " * 400


def usd(document: dict[str, Any], *path: str) -> Decimal:
    for name in path:
        document = document[name]
    return Decimal(str(document))


def eventually(check: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def billed(script: Script) -> Decimal:
    """The provider's bill for all its answers, by its own counts and the price table."""
    book, total = PriceBook.load(), Decimal(0)
    for seen in script.seen:
        name = f"{seen.api}/{seen.model}"
        prices = book.of(name)
        assert prices is not None, name
        price, told = prices.base, seen.usage
        assert told is not None
        if seen.api == "anthropic":
            written = told["cache_creation"]
            total += told["input_tokens"] * price.uncached_input
            total += told["cache_read_input_tokens"] * price.cache_read
            total += written["ephemeral_5m_input_tokens"] * price.cache_write_5m
            total += written["ephemeral_1h_input_tokens"] * price.cache_write_1h
            total += told["output_tokens"] * price.output
        else:
            details = told["prompt_tokens_details"]
            cached, wrote = details["cached_tokens"], details.get("cache_write_tokens", 0)
            total += (told["prompt_tokens"] - cached - wrote) * price.uncached_input
            total += cached * price.cache_read + wrote * price.cache_write_5m
            total += told["completion_tokens"] * price.output
    return total


def test_requests_without_a_key_are_refused(routed: Stack, key: str, script: Any) -> None:
    for headers in ({}, bearer("ng-0123456789ab-" + "A" * 43), bearer(key[:-1] + "!")):
        refused = httpx.post(routed.url + CHAT, json=chat(OPEN_ENDED), headers=headers, timeout=30)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
    assert script.seen == []
    assert httpx.get(f"{routed.url}/readyz", timeout=30).status_code == 200


def test_the_ledger_equals_the_providers_bill(
    routed: Stack, ledger: LedgerTool, script: Any
) -> None:
    name, headers = "reconciled", bearer(ledger.tenant("reconciled"))
    wait_for_key(routed, headers["authorization"].removeprefix("Bearer "))
    script.answer = lambda seen: Reply("An answer of a few words.", reasoning_tokens=11)
    with httpx.Client(base_url=routed.url, headers=headers, timeout=60) as client:
        for model in ("anthropic/claude-sonnet-5-5", "openai/gpt-4.1", "openai/gpt-6.1-sol"):
            for streamed in (False, True):
                # The second time, part of the input is read from the provider's cache.
                for text in ("One question.", f"{LONG}---CACHE_BREAK---Now.", f"{LONG}Again."):
                    asked = chat(text, model, stream=streamed, max_tokens=64)
                    answered = client.post(CHAT, json=asked)
                    assert answered.status_code == 200, answered.text
        answered = client.post(CHAT, json=chat("And what does it say?", "openai/gpt-4.1"))
        local = client.post(TOPIC, json={"input": SURE}).json()
    assert len(script.seen) == 19
    report = ledger.report("--tenant", name)
    spent = usd(report, "totals", "frontier_usd")
    assert spent == billed(script)
    assert usd(report, "totals", "held_usd") == 0
    assert usd(report, "totals", "local_usd") == Decimal(local["cost_usd"])
    assert Decimal(answered.headers["x-narrowgate-cost-usd"]) < spent
    classes = {row["name"]: row for row in report["token_classes"]}
    assert classes["cache_read"]["tokens"] > 0
    assert classes["reasoning"]["tokens"] == 19 * 11


def test_a_tenant_sees_its_own_usage_and_only_an_admin_sees_all(
    routed: Stack, ledger: LedgerTool, client: httpx.Client, script: Any
) -> None:
    client.post(CHAT, json=chat(OPEN_ENDED))
    admin = ledger.command("key", "create", "--admin").stdout.strip()
    other = ledger.tenant("other")
    wait_for_key(routed, other)  # and so the older one counts, too
    own = httpx.get(f"{routed.url}/v1/usage", headers=bearer(other), timeout=60).json()
    assert own["totals"]["exits"] == 0
    refused = httpx.get(f"{routed.url}/v1/admin/report", headers=bearer(other), timeout=60)
    assert refused.status_code == 403
    whole = httpx.get(f"{routed.url}/v1/admin/report", headers=bearer(admin), timeout=60)
    assert whole.status_code == 200, whole.text
    assert whole.json()["reconciliation"]["discrepancies"] == []
    assert whole.json()["totals"]["exits"] > 0
    spending = httpx.post(routed.url + CHAT, json=chat("x"), headers=bearer(admin), timeout=60)
    assert spending.status_code == 403


def test_of_two_hundred_at_once_a_budget_for_a_hundred_lets_a_hundred_pass(
    routed: Stack, ledger: LedgerTool, script: Any
) -> None:
    # A dollar an output token, four tokens at most, and none for input: four dollars a call.
    poor = ledger.tenant("poor", "--day-usd", "400")
    wait_for_key(routed, poor)
    script.answer = lambda seen: "sixteen letters."
    body = chat("x", "openai/dollar", max_tokens=4)

    def send(_: int) -> str:
        answered = httpx.post(routed.url + CHAT, json=body, headers=bearer(poor), timeout=120)
        if answered.status_code == 200:
            return "answered"
        if answered.status_code == 429:
            assert answered.headers["x-should-retry"] == "false"
        error = answered.json()["error"]
        if error["code"] == "budget_exceeded":
            return f"{answered.status_code} {error['code']}"
        return f"{answered.status_code} {error['code']}: {error['message']}"

    with ThreadPoolExecutor(200) as pool:
        outcomes = Counter(pool.map(send, range(200)))
    assert outcomes == {"answered": 100, "429 budget_exceeded": 100}
    assert len(script.seen) == 100
    totals = ledger.report("--tenant", "poor")["totals"]
    assert Decimal(totals["frontier_usd"]) == 400
    assert totals["answered"] == 100
    # Requests without a provider are answered.
    free = httpx.post(routed.url + TOPIC, json={"input": SURE}, headers=bearer(poor), timeout=60)
    assert free.status_code == 200


def test_a_tenants_rate_is_its_own(routed: Stack, ledger: LedgerTool, client: httpx.Client) -> None:
    slow = ledger.tenant("slow", "--requests-per-minute", "3")
    wait_for_key(routed, slow)  # one of the three
    url, headers = f"{routed.url}/v1/models", bearer(slow)
    statuses = [httpx.get(url, headers=headers, timeout=30).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert client.get("/v1/models").status_code == 200


def test_a_revoked_key_stops_working(routed: Stack, ledger: LedgerTool) -> None:
    gone = ledger.tenant("gone")
    wait_for_key(routed, gone)
    revoked = ledger.command("key", "revoke", gone.split("-")[1])
    assert revoked.returncode == 0, revoked.stderr
    url = f"{routed.url}/v1/models"
    eventually(lambda: httpx.get(url, headers=bearer(gone), timeout=30).status_code == 401)


def test_a_stopped_database_holds_up_no_local_answer_and_lets_no_call_through(
    routed: Stack, ledger: LedgerTool, client: httpx.Client, script: Any
) -> None:
    assert client.post(TOPIC, json={"input": SURE}).status_code == 200
    stopped = ledger.processes()
    ids = []
    for process in stopped:
        process.suspend()
    try:
        for _ in range(3):
            answered = client.post(TOPIC, json={"input": SURE})
            assert answered.status_code == 200
            ids.append(answered.json()["request_id"])
        refused = client.post(CHAT, json=chat(OPEN_ENDED))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "ledger_unavailable"
        assert script.seen == []
        ready = f"{routed.url}/readyz"
        eventually(lambda: httpx.get(ready, timeout=10).json()["ledger"] == "down")
        assert httpx.get(ready, timeout=10).status_code == 200
    finally:
        for process in reversed(stopped):
            process.resume()
    database = ledger.database()

    def rows() -> list[str]:
        with database.read() as connection:
            found = select(exits.c.request_id).where(exits.c.request_id.in_(ids))
            return sorted(connection.execute(found).scalars())

    eventually(lambda: rows() == sorted(ids))
    eventually(lambda: client.post(CHAT, json=chat(OPEN_ENDED)).status_code == 200)
    database.close()


def test_a_gateway_killed_in_the_middle_of_calls_loses_no_row(
    routed: Stack, ledger: LedgerTool, client: httpx.Client, script: Any
) -> None:
    script.on("*", Fault("hang"))
    (gateway,) = [p for p in routed.descendants() if "ServeReplica:narrowgate:Gateway" in _of(p)]
    before = _states(ledger)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(_fire, client, chat(OPEN_ENDED, "openai/gpt-4.1"))
        eventually(lambda: len(script.seen) == 8)
        gateway.send_signal(signal.SIGKILL)
    script.reset()
    eventually(lambda: _ready(routed), 120)

    def lost() -> int:
        return _states(ledger).get("unknown", 0) - before.get("unknown", 0)

    eventually(lambda: lost() == 8, 60)
    assert _states(ledger).get("open", 0) == 0
    report = ledger.report()
    assert Decimal(report["totals"]["held_usd"]) > 0
    assert report["reconciliation"]["discrepancies"] == []
    # The new one works, and records its calls.
    eventually(lambda: client.post(TOPIC, json={"input": SURE}).status_code == 200, 120)


def test_the_report_is_one_page_without_references(ledger: LedgerTool, tmp_path: Any) -> None:
    page = tmp_path / "report.html"
    done = ledger.command("report", "--html", str(page))
    assert done.returncode == 0, done.stdout + done.stderr
    text = page.read_text(encoding="utf-8")
    assert "<svg" in text
    assert "<script" not in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert json.loads(ledger.command("tenant", "list", "--json").stdout)


def _of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _fire(client: httpx.Client, body: dict[str, Any]) -> None:
    with contextlib.suppress(httpx.HTTPError):  # its gateway is killed
        client.post(CHAT, json=body)


def _ready(stack: Stack) -> bool:
    try:
        return httpx.get(f"{stack.url}/readyz", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def _states(ledger: LedgerTool) -> dict[str, int]:
    database = ledger.database()
    with database.read() as connection:
        states = list(connection.execute(select(calls.c.state)).scalars())
    database.close()
    return {state: states.count(state) for state in set(states)}
