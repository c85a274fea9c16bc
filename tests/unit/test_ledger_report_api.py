"""Reports over HTTP: tenant, time window, and a limit on waiting."""

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from pydantic import SecretStr
from starlette.middleware.base import RequestResponseEndpoint

from serving.contracts.errors import InvalidRequest, LedgerUnavailable, NarrowgateError
from serving.contracts.ledger import Caller
from serving.contracts.report import Report
from serving.contracts.report_window import parse_window
from serving.gateway import errors, report_api
from serving.ledger.database import Database, database_url
from serving.ledger.reports.reconcile import reconcile
from serving.ledger.reports.served import LedgerReports

from .ledger_kit import (
    WORST,
    Reader,
    ended,
    entry_of,
    in_time,
    left,
    left_locally,
    running,
    set_aside,
)
from .ledger_rows import LedgerRows, frontier
from .patience import GUARD_S
from .scripted import assert_error

AUCKLAND = ZoneInfo("Pacific/Auckland")
NOW = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)


@pytest.fixture
async def client(ledger_url: SecretStr | None, state: Path) -> AsyncIterator[httpx.AsyncClient]:
    database = Database(database_url(ledger_url, state))
    made = LedgerRows()
    made.exit(0, [frontier()], tenant="a", task="secret-of-a")
    made.exit(1, [frontier()], tenant="b", task="secret-of-b")
    made.write(database)
    reports = LedgerReports(database, AUCKLAND)
    app = FastAPI(exception_handlers={NarrowgateError: errors.on_narrowgate_error})
    app.state.context = SimpleNamespace(reports=reports)
    app.include_router(report_api.router)

    @app.middleware("http")
    async def as_a(request: Request, call_next: RequestResponseEndpoint) -> Response:
        request.state.caller = Caller("a")
        return await call_next(request)

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as found:
        yield found
    reports.close()
    database.close()


async def get(client: httpx.AsyncClient, path: str, **query: str) -> dict[str, Any]:
    response = await client.get(path, params=query)
    assert response.status_code == 200, response.text
    content: dict[str, Any] = response.json()
    return content


async def test_a_tenant_sees_its_own_usage_and_nothing_of_others(client: httpx.AsyncClient) -> None:
    window = {"since": "2026-11-01", "until": "2026-11-02"}
    named = await client.get("/v1/usage", params={"tenant": "b", **window})
    assert assert_error(named, 400, "invalid_request")["param"] == "tenant"
    found = await get(client, "/v1/usage", **window)
    assert found["tenant"] == "a"
    assert found["totals"]["exits"] == 1
    assert found["totals"]["cost_usd"] == "0.0003"
    assert found["idle"] is None
    assert found["tenants"] == []
    assert found["reconciliation"] is None
    assert "secret-of-b" not in str(found)
    assert "secret-of-a" in str(found)


async def test_the_admin_report_is_on_all_or_on_one(client: httpx.AsyncClient) -> None:
    window = {"since": "2026-11-01", "until": "2026-11-02"}
    found = await get(client, "/v1/admin/report", **window)
    assert found["tenant"] is None
    assert [part["name"] for part in found["tenants"]] == ["a", "b"]
    assert found["reconciliation"]["discrepancies"] == []
    assert Report.model_validate(found).totals.exits == 2
    of_b = await get(client, "/v1/admin/report", tenant="b", **window)
    assert [part["name"] for part in of_b["tasks"]] == ["secret-of-b"]


async def test_days_begin_where_the_ledger_is(client: httpx.AsyncClient) -> None:
    # In Auckland it is 13:00 on the first of November when it is midnight in UTC.
    found = await get(client, "/v1/usage", since="2026-11-01", until="2026-11-01T13:00:01")
    assert found["totals"]["exits"] == 1
    earlier = await get(client, "/v1/usage", since="2026-11-01", until="2026-11-01T13:00")
    assert earlier["totals"]["exits"] == 0


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/admin/report"])
async def test_a_time_that_is_none_is_refused_with_the_field(
    client: httpx.AsyncClient, path: str
) -> None:
    for query, field in (({"since": "soon"}, "since"), ({"until": "2026-13-01"}, "until")):
        response = await client.get(path, params=query)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == field


@pytest.mark.parametrize(
    ("since", "until", "start", "end"),
    [
        (None, None, datetime(2026, 10, 31, 11, tzinfo=UTC), NOW),
        ("7d", "24h", NOW - timedelta(days=7), NOW - timedelta(days=1)),
        ("2026-11-01", "2026-11-02T06:00+00:00", datetime(2026, 10, 31, 11, tzinfo=UTC),
         datetime(2026, 11, 2, 6, tzinfo=UTC)),
        ("2026-11-02T01:30:15", None, datetime(2026, 11, 1, 12, 30, 15, tzinfo=UTC), NOW),
    ],
)  # fmt: skip
def test_windows_as_people_write_them(
    since: str | None, until: str | None, start: datetime, end: datetime
) -> None:
    window = parse_window(since, until, AUCKLAND, NOW)
    assert (window.since, window.until) == (start, end)


@pytest.mark.parametrize(
    ("since", "until"),
    [("", None), ("7", None), ("-3d", None), ("0d", None), ("7 days", None), ("9999999d", None),
     ("2026-02-30", None), (None, "x"), ("2026-12-01", None), ("1d", "2d"), ("0001-01-01", None)],
)  # fmt: skip
def test_windows_that_are_none_are_refused(since: str | None, until: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_window(since, until, AUCKLAND, NOW)
    assert caught.value.field in {"since", "until"}
    assert caught.value.fix


async def test_a_report_that_waits_too_long_has_a_retry_after(state: Path) -> None:
    database = Database(database_url(None, state))
    LedgerRows().write(database)
    reports = LedgerReports(database, AUCKLAND, timeout_s=0.2)
    busy = threading.Event()
    reports._turns.submit(busy.wait, GUARD_S)
    try:
        with pytest.raises(LedgerUnavailable, match=r"within 0\.2 s"):
            await reports.report(NOW - timedelta(days=1), NOW, None)
    finally:
        busy.set()
    reports._timeout_s = GUARD_S
    found = await reports.report(NOW - timedelta(days=1), NOW, None)
    assert found.totals.exits == 0
    reports.close()
    database.close()


async def test_the_ledgers_rows_reconcile_at_every_moment(
    ledger_url: SecretStr | None, state: Path
) -> None:
    reader = Reader(ledger_url, state)
    async with running(ledger_url, state) as ledger:
        reports = LedgerReports(reader.database, AUCKLAND)

        async def spend(number: int) -> None:
            entry = entry_of(ledger, Caller("ab"[number % 2]), f"r{number}")
            if number % 3 == 0:
                entry.close(left_locally(request_id=f"r{number}", attempts=(set_aside(),)))
                return
            call = await entry.open_call("anthropic/claude-test", WORST, in_time())
            failed = await entry.open_call("anthropic/claude-test", WORST, in_time())
            failed.close(ended(None, "unknown", "frontier_timeout"))
            call.close(ended())
            entry.close(left(request_id=f"r{number}"))
            await entry.written()

        async with asyncio.TaskGroup() as group:
            for number in range(24):
                group.create_task(spend(number))
            for _ in range(4):
                now = datetime.now(UTC) + timedelta(seconds=1)
                found = await reports.report(now - timedelta(days=1), now, None)
                assert found.reconciliation is not None
                assert found.reconciliation.discrepancies == ()
    now = datetime.now(UTC) + timedelta(seconds=1)
    found = await reports.report(now - timedelta(days=1), now, None)
    assert found.totals.exits == found.totals.answered == 24
    assert found.totals.held_usd == 16 * WORST
    assert found.idle is not None
    assert found.idle.alive_s > 0
    assert reconcile(reader.database) == []
    reports.close()
    reader.close()
