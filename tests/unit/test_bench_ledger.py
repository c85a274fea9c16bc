"""The ledger benchmark: its temporary ledger, its figures, its gateway, its writer."""

import asyncio
import json
import sys
from decimal import Decimal
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from benchmarks.fake_ledger import NullLedger
from benchmarks.ledger import MODEL, PATHS, chat_bodies
from benchmarks.ledger_capacity import Route, rows_per_s
from benchmarks.ledger_databases import LedgerDatabase, open_ledger, rows_in, versions
from benchmarks.ledger_figures import WITHOUT, Cell, Measured, Round, as_json, lines, rows_of
from benchmarks.ledger_server import Plan, build_context
from benchmarks.load import LoadResult
from benchmarks.processes import listening, reports_only
from benchmarks.temporary_ledger import temporary_ledger, without_keys
from serving.commands.first_start import Origin
from serving.commands.serve import CheckedSettings
from serving.contracts.deadline import Deadline
from serving.contracts.errors import EngineFailure
from serving.contracts.exits import Exit
from serving.contracts.ledger import CallEnd, Caller
from serving.contracts.ledger_settings import AuthSettings, LedgerSettings
from serving.contracts.settings import Settings
from serving.gateway.http import build_http
from serving.ledger.reports.reconcile import reconcile
from serving.ledger.reports.written import written_ledger
from serving.lifecycle.ports import free_port

from ..provider.server import ProviderServer

ABOUT = {"machine": {"cores": 2}, "versions": {"python": "3.11"}, "workload": {"rounds": 3}}


def test_a_benchmark_does_not_write_into_the_ledger_of_its_state_folder(tmp_path: Path) -> None:
    for folder in ("models", "ledger"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text(folder)
    with temporary_ledger(
        CheckedSettings(Settings(state=tmp_path), {}, Origin(None, None))
    ) as checked:
        state = checked.settings.state
        assert (state / "models" / "file").read_text() == "models"
        assert not (state / "ledger").exists()
        (state / "ledger").mkdir()
        (state / "ledger" / "ledger.db").touch()
    assert not state.exists()
    assert [path.name for path in (tmp_path / "ledger").iterdir()] == ["file"]
    assert (tmp_path / "models" / "file").is_file()


def test_a_benchmark_asks_for_no_keys_and_keeps_off_a_shared_ledger() -> None:
    ledger = LedgerSettings.model_validate(
        {"url": "postgresql://a:b@h/d", "time_zone": "Europe/Rome"}
    )
    found = without_keys(Settings(auth=AuthSettings(mode="keys"), ledger=ledger))
    assert found.auth.mode == "off"
    assert not found.cache.enabled
    assert (found.ledger.url, found.ledger.time_zone) == (None, "Europe/Rome")


def load(*milliseconds: float) -> LoadResult:
    seconds = tuple(item / 1000 for item in milliseconds)
    return LoadResult(seconds, sum(seconds))


def test_added_latency_is_the_difference_within_a_round() -> None:
    measured = Measured()
    for slow, rows in ((1, 4), (10, 8), (1, 4)):
        measured.add(Cell("local", 1, WITHOUT), Round(load(2 * slow, 4 * slow)))
        measured.add(Cell("local", 1, "sqlite"), Round(load(2 * slow + 1, 4 * slow + 3), rows))
    without, sqlite = rows_of(measured)
    assert (without.added_p50_ms, without.rows_per_s) == (0, 0)
    assert sqlite.added_p50_ms == pytest.approx(1)
    assert sqlite.added_p95_ms == pytest.approx(3)
    assert sqlite.rows_per_s == pytest.approx(400)
    document = as_json(measured, {"sqlite": {"local": 1234.0}}, ABOUT)
    text = "\n".join(lines(document))
    assert "400 rows/s" in text
    assert "1234 rows/s" in text
    assert json.loads(json.dumps(document)) == document


@pytest.mark.parametrize("path", ["frontier", "local"])
def test_the_writer_writes_two_rows_a_request(
    ledger_url: SecretStr | None, state: Path, path: Route
) -> None:
    database = LedgerDatabase("ledger", state, ledger_url and ledger_url.get_secret_value())
    assert rows_per_s(database, path, MODEL, 30) > 0
    assert rows_in(database) == 60
    assert versions(database).split()[0] in {"SQLite", "PostgreSQL"}
    with written_ledger(ledger_url, state) as opened:
        assert reconcile(opened) == []


async def test_the_gateway_of_the_benchmark_records_both_routes(
    state: Path, keyless_provider: ProviderServer
) -> None:
    database = LedgerDatabase("sqlite", state, None)
    ledger = open_ledger(database.url, database.state)
    await ledger.start()
    # In a thread: it imports the providers' SDKs, which takes seconds.
    plan = Plan(0, keyless_provider.url, MODEL, str(state))
    context = await asyncio.to_thread(build_context, plan, ledger)
    transport = httpx.ASGITransport(build_http(context))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        for path in PATHS:
            for body in chat_bodies(path, 3, seed=0):
                response = await client.post("/v1/chat/completions", json=body)
                assert response.status_code == 200, response.text
                assert response.headers["x-narrowgate-route"] == path
    await context.frontier.aclose()
    await ledger.aclose()
    assert rows_in(database) == 2 * 2 * 3
    with written_ledger(None, state) as opened:
        assert reconcile(opened) == []


async def test_the_ledger_to_compare_with_writes_nothing() -> None:
    entry = NullLedger().entry(Caller("default"), "r", "chat", None, 0)
    call = await entry.open_call(MODEL, Decimal(1), Deadline.after(1.0))
    call.close(CallEnd("ok", None, "unknown", 0.1))
    left = Exit("r", "chat", None, "frontier", "requested", MODEL, None, 0.1)
    assert entry.close(left) is None
    await entry.written()


def test_standard_output_holds_only_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    with reports_only():
        print("an actor has ended")
    print("{}")
    found = capsys.readouterr()
    assert (found.out, found.err) == ("{}\n", "an actor has ended\n")


def test_a_server_that_ends_before_it_listens_is_named() -> None:
    server = listening([sys.executable, "-c", "exit()", "the server"], free_port(), start_s=30.0)
    with pytest.raises(EngineFailure, match="did not listen on port"):
        server.__enter__()
