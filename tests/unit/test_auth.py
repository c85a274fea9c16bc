"""Authentication: which callers are admitted to what, and the errors of all others."""

import asyncio
import logging
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from serving.contracts.errors import LedgerUnavailable, NotFound, Unauthenticated
from serving.contracts.evidence import Claim, ClaimState, Scope
from serving.contracts.ledger import DEFAULT_TENANT, Caller, Tenant
from serving.contracts.ledger_settings import AuthSettings
from serving.contracts.task_spec import TaskSpec
from serving.gateway.auth import Authentication
from serving.gateway.http import build_http
from serving.ledger.access.directory import Directory
from serving.ledger.access.keys import create_key, revoke_key
from serving.ledger.access.tenants import create_tenant
from serving.ledger.database import Database, database_url

from .authenticated import BODY, TASK, Clock, KeyedServer, opened
from .database import fresh_postgres, postgres_server
from .scripted import assert_error

FIX = "send Authorization: Bearer KEY; narrowgate key create makes one"
UNKNOWN = "ng-" + "0" * 12 + "-" + "A" * 43


@pytest.fixture
async def keyed(specs: dict[str, TaskSpec], database: Database) -> KeyedServer:
    keyed = KeyedServer(specs, database)
    await keyed.server.ready()
    return keyed


@pytest.mark.parametrize(
    "header",
    [("authorization", "Bearer {}"), ("authorization", "bearer  {} "), ("x-api-key", "{}"),
     ("X-Api-Key", " {}")],
)  # fmt: skip
async def test_a_key_is_taken_as_either_sdk_sends_it(
    keyed: KeyedServer, header: tuple[str, str]
) -> None:
    key = await keyed.tenant("acme")
    name, value = header
    answer = await keyed.server.post(TASK, json=BODY, headers={name: value.format(key)})
    assert answer.status_code == 200


async def test_another_scheme_does_not_hide_a_key(keyed: KeyedServer) -> None:
    key = await keyed.tenant("acme")
    headers = {"authorization": "Basic eDp5", "x-api-key": key}
    assert (await keyed.server.post(TASK, json=BODY, headers=headers)).status_code == 200


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key"])
async def test_a_key_header_that_is_sent_twice_is_refused(keyed: KeyedServer, name: str) -> None:
    key = await keyed.tenant("acme")
    value = f"Bearer {key}" if name == "authorization" else key
    for second in (value, "Bearer other", ""):
        for headers in ([(name, value), (name, second)], [(name, second), (name.upper(), value)]):
            answer = await keyed.server.post(TASK, json=BODY, headers=headers)
            error = assert_error(answer, 400, "invalid_request")
            assert error["param"] == name
            assert key not in answer.text


async def test_metrics_need_no_key_and_name_no_tenant(keyed: KeyedServer) -> None:
    key = await keyed.tenant("acme")
    await keyed.ask(key)
    claim = Claim(
        "c1", Scope("acme", "topic", {"model": "tiny"}), "local_task", "exact", 0.15, "openai/x",
        ClaimState.HELD, datetime(2026, 11, 2, tzinfo=UTC),
    )  # fmt: skip
    events = keyed.server.context.metrics.evidence
    events.claims_changed([claim])
    events.claim_transition(claim, "earned")
    text = (await keyed.get("/metrics")).text
    assert 'narrowgate_claim_audits{claim="c1",task="topic"}' in text
    assert 'narrowgate_claim_transitions_total{kind="earned",task="topic"} 1.0' in text
    assert "acme" not in text


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": ""}, {"authorization": "Bearer"}, {"authorization": "Basic eDp5"},
     {"x-api-key": ""}, {"authorization": f"Bearer {UNKNOWN}"}, {"x-api-key": "sk-other"},
     {"authorization": "Bearer caf\u00e9".encode("latin-1")}],
)  # fmt: skip
@pytest.mark.parametrize(
    "path", [TASK, "/v1/models", "/v1/admin/report", "/nowhere", "/docs/x", "/"]
)
async def test_requests_without_a_known_key_are_refused(
    keyed: KeyedServer, headers: Any, path: str
) -> None:
    await keyed.tenant("acme")
    refused = await keyed.get(path, headers)
    error = assert_error(refused, 401, "invalid_api_key")
    assert (error["type"], error["fix"]) == ("authentication_error", FIX)
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"])
async def test_probes_and_documentation_need_no_key(keyed: KeyedServer, path: str) -> None:
    # The directory knows nothing yet.
    assert (await keyed.get(path)).status_code == 200


async def test_with_keys_a_public_name_and_any_page_with_a_key_may_call(keyed: KeyedServer) -> None:
    key = {"authorization": f"Bearer {await keyed.tenant('acme')}"}
    for headers in ({"host": "api.example.com"}, {"origin": "https://evil.example"}):
        done = await keyed.server.post(TASK, json=BODY, headers={**key, **headers})
        assert done.status_code == 200, done.text
        # A browser has no key to add by itself.
        refused = await keyed.server.post(TASK, json=BODY, headers=headers)
        assert refused.status_code == 401


async def test_a_wrong_secret_and_a_revoked_key_are_refused_alike(keyed: KeyedServer) -> None:
    key = await keyed.tenant("acme")
    revoked = await keyed.key("acme")
    assert (await keyed.ask(revoked)).status_code == 200
    await keyed.revoke(revoked)
    other = key[:-1] + ("A" if key[-1] != "A" else "B")
    answers = [await keyed.ask(text) for text in (UNKNOWN, other, revoked)]
    assert len({answer.text for answer in answers}) == 1
    assert_error(answers[0], 401, "invalid_api_key")
    assert (await keyed.ask(key)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/admin", "/v1/admin/", "/v1/admin/nothing", "//v1/admin"])
async def test_admin_keys_are_for_admin_paths_and_no_others(keyed: KeyedServer, path: str) -> None:
    tenant, admin = await keyed.tenant("acme"), await keyed.key(None)
    is_admin_path = not path.startswith("//")
    as_admin = await keyed.get(path, {"x-api-key": admin})
    as_tenant = await keyed.get(path, {"x-api-key": tenant})
    allowed, refused = (as_admin, as_tenant) if is_admin_path else (as_tenant, as_admin)
    assert_error(refused, 403, "forbidden")
    assert_error(allowed, 404, "not_found")
    for spending in (TASK, "/v1/chat/completions", "/v1/adminreport"):
        error = assert_error(await keyed.ask(admin, spending), 403, "forbidden")
        assert "narrowgate key create --tenant" in error["fix"]


async def test_a_path_prefix_hides_no_admin_path(database: Database) -> None:
    create_tenant(database, Tenant("acme"))
    key = create_key(database, "acme").text.get_secret_value()
    directory = Directory(database, AuthSettings())
    await directory.refresh()

    async def report(request: Request) -> JSONResponse:
        return JSONResponse("reached")

    inner = Starlette(routes=[Route("/v1/admin/report", report)])
    guarded = Authentication(inner, directory, enforced=True)
    for prefix in ("", "/llm"):
        app = Starlette(routes=[Mount(prefix, guarded)])
        sent: list[Any] = []
        await app(http_scope(f"{prefix}/v1/admin/report", key), unread, appending(sent))
        assert sent[0]["status"] == 403


def http_scope(path: str, key: str | None, method: str = "GET") -> dict[str, Any]:
    headers = [(b"content-type", b"application/json")]
    if key is not None:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    return {"type": "http", "method": method, "path": path, "headers": headers, "root_path": "",
            "query_string": b"", "http_version": "1.1", "scheme": "http",
            "asgi": {"spec_version": "2.4"}}  # fmt: skip


async def unread() -> Any:
    raise AssertionError("the body was read")


def appending(sent: list[Any]) -> Any:
    async def send(message: Any) -> None:
        sent.append(message)

    return send


async def test_a_body_is_not_read_before_its_sender_is_known(keyed: KeyedServer) -> None:
    await keyed.tenant("acme")
    for key in (None, UNKNOWN):
        sent: list[Any] = []
        await build_http(keyed.server.context)(
            http_scope(TASK, key, "POST"), unread, appending(sent)
        )
        assert sent[0]["status"] == 401


async def test_the_caller_is_with_the_request(keyed: KeyedServer) -> None:
    key = await keyed.tenant("acme")
    seen: list[Caller] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["state"]["caller"])

    guarded = Authentication(app, keyed.directory, enforced=True)
    await guarded(http_scope(TASK, key), unread, appending([]))
    admin = await keyed.key(None)
    await guarded(http_scope("/v1/admin/report", admin), unread, appending([]))
    assert seen == [
        Caller("acme", key.split("-")[1]), Caller("", admin.split("-")[1], admin=True)
    ]  # fmt: skip


async def test_with_keys_off_everybody_is_the_default_tenant(
    specs: dict[str, TaskSpec], database: Database
) -> None:
    keyed = KeyedServer(specs, database, mode="off")
    await keyed.server.ready()
    assert_error(await keyed.ask(None), 503, "ledger_unavailable")
    await keyed.directory.refresh()
    assert (await keyed.ask(None)).status_code == 200
    assert (await keyed.ask("anything")).status_code == 200
    assert_error(await keyed.get("/v1/admin/nothing"), 404, "not_found")
    seen: list[Caller] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["state"]["caller"])

    unguarded = Authentication(app, keyed.directory, enforced=False)
    for path in (TASK, "/v1/admin/report"):
        await unguarded(http_scope(path, None), unread, appending([]))
    assert seen == [Caller(DEFAULT_TENANT), Caller(DEFAULT_TENANT, admin=True)]
    await keyed.tenant(DEFAULT_TENANT, requests_per_minute=1)
    assert (await keyed.ask(None)).status_code == 200
    assert_error(await keyed.ask(None), 429, "rate_limit_exceeded")


async def test_a_key_is_in_no_log_no_answer_and_no_repr(
    keyed: KeyedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    keys = [await keyed.tenant("acme", requests_per_minute=2), await keyed.key(None)]
    wrong = keys[0][:-1] + ("A" if keys[0][-1] != "A" else "B")
    answers = [
        await keyed.ask(key, path)
        for key in (*keys, wrong, UNKNOWN)
        for path in (TASK, "/v1/admin/nothing", "/nowhere")
    ]
    assert {answer.status_code for answer in answers} == {200, 401, 403, 404}
    with pytest.raises(Unauthenticated) as caught:
        keyed.directory.find(wrong)
    shown = [caplog.text, repr(caught.value), repr(keyed.access), repr(keyed.server.context)]
    shown += [answer.text + repr(answer.headers) for answer in answers]
    shown += [repr(keyed.directory.find(key)) for key in keys]
    shown += [repr(vars(keyed.directory))]
    assert "request_finished" in caplog.text
    for key in (*keys, wrong, UNKNOWN):
        secret = key.split("-", 2)[2]
        assert not [text for text in shown if secret in text]


async def test_a_refused_request_is_logged_with_its_id(
    keyed: KeyedServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "serving")
    await keyed.directory.refresh()
    await keyed.get("/v1/models", {"x-request-id": "abc", "x-api-key": UNKNOWN})
    assert "request_finished id=abc endpoint=unmatched method=GET status=401" in caplog.text


async def test_before_the_database_was_read_every_key_is_refused(keyed: KeyedServer) -> None:
    refused = await keyed.ask(UNKNOWN)
    error = assert_error(refused, 503, "ledger_unavailable")
    assert refused.headers["retry-after"] == "5"
    assert error["fix"] == "check that the database runs; keys are read again within auth.refresh_s"
    await keyed.directory.refresh()
    assert_error(await keyed.ask(UNKNOWN), 401, "invalid_api_key")


async def test_a_database_without_tables_lets_nobody_in(
    specs: dict[str, TaskSpec], state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = Database(database_url(None, state))
    keyed = KeyedServer(specs, database)
    await keyed.directory.refresh()
    await keyed.directory.refresh()
    assert_error(await keyed.ask(UNKNOWN), 503, "ledger_unavailable")
    assert caplog.text.count("keys.stale") == 1
    opened(None, state).close()
    key = await keyed.tenant("acme")
    assert keyed.directory.find(key).tenant == "acme"
    database.close()


async def test_tenants_are_found_by_name(keyed: KeyedServer) -> None:
    await keyed.tenant("acme", requests_per_minute=7)
    assert keyed.directory.tenant("acme") == Tenant("acme", requests_per_minute=7)
    assert keyed.directory.tenant(DEFAULT_TENANT) == Tenant(DEFAULT_TENANT)
    with pytest.raises(NotFound):
        keyed.directory.tenant("other")


async def test_new_and_revoked_keys_count_without_a_restart(
    ledger_url: SecretStr | None, state: Path
) -> None:
    database = opened(ledger_url, state)
    directory = Directory(database, AuthSettings(refresh_s=0.01))
    create_tenant(database, Tenant("acme"))
    watch = asyncio.create_task(directory.watch())

    async def until(known: bool, key: str) -> None:
        while True:
            try:
                directory.find(key)
            except (Unauthenticated, LedgerUnavailable):
                if not known:
                    return
            else:
                if known:
                    return
            assert not watch.done()
            await asyncio.sleep(0.005)

    issued = await asyncio.to_thread(create_key, database, "acme")
    await until(True, issued.text.get_secret_value())
    await asyncio.to_thread(revoke_key, database, issued.id)
    await until(False, issued.text.get_secret_value())
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watch
    database.close()


async def test_known_keys_work_for_a_time_while_the_database_is_unreachable(
    specs: dict[str, TaskSpec], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as servers:
        # In a thread: the start and the end of a server wait for a process.
        server = await asyncio.to_thread(servers.enter_context, postgres_server())
        database = opened(fresh_postgres(server, "ledger"), tmp_path)
        keyed = KeyedServer(specs, database, max_stale_s=60.0)
        await keyed.server.ready()
        key = await keyed.tenant("acme")
        assert (await keyed.ask(key)).status_code == 200
        await asyncio.to_thread(servers.close)
    await keyed.directory.refresh()
    assert "keys.stale error=LedgerUnavailable" in caplog.text
    keyed.clock.now_s += 60.0
    assert (await keyed.ask(key)).status_code == 200
    assert_error(await keyed.ask(UNKNOWN), 401, "invalid_api_key")
    keyed.clock.now_s += 0.1
    refused = await keyed.ask(key)
    assert_error(refused, 503, "ledger_unavailable")
    assert refused.headers["x-should-retry"] == "true"
    assert (await keyed.get("/healthz")).status_code == 200
    database.close()


def test_a_new_reading_lets_everybody_in_again(database: Database) -> None:
    clock = Clock()
    directory = Directory(database, AuthSettings(refresh_s=1.0, max_stale_s=10.0), clock)
    asyncio.run(directory.refresh())
    clock.now_s += 10.0
    assert directory.tenant(DEFAULT_TENANT).name == DEFAULT_TENANT
    clock.now_s += 0.5
    with pytest.raises(LedgerUnavailable):
        directory.tenant(DEFAULT_TENANT)
    asyncio.run(directory.refresh())
    assert directory.tenant(DEFAULT_TENANT).name == DEFAULT_TENANT
