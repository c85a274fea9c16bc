"""Requests that read or change what the server keeps: bodies and queries are read whole."""

import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from serving.cache.entry_store import EntryFilter
from serving.contracts.routing import end_user_id
from serving.contracts.task_spec import TaskSpec
from serving.evidence.store import EvidenceOwner
from serving.ledger.database import Database
from serving.tasks.grant import Grant

from .attested import result
from .authenticated import opened
from .cache_kit import Cached, cached
from .chat_kit import CHAT, chat_body
from .evidence_kit import EARLY, EvidenceServer, audit, opening
from .frontier_kit import OPENAI
from .scripted import MODEL, assert_error

KEPT = EARLY.model_copy(update={"keep_texts": 7, "high_rate": 1.0})
JSON = {"content-type": "application/json"}


@pytest.fixture
def database(ledger_url: SecretStr | None, state: Path) -> Iterator[Database]:
    found = opened(ledger_url, state)
    yield found
    found.close()


@pytest.fixture
async def served(specs: dict[str, TaskSpec], database: Database) -> AsyncIterator[Cached]:
    """A gateway with evidence and a cache, and a claim whose id is `claim`."""
    grants = {"topic": Grant(result(specs["topic"]), "sha256:abc", None)}
    found = EvidenceServer(specs, database, grants, KEPT, lambda _: json.dumps({"label": "World"}))
    await found.ready()
    async with cached(found.server, database, found.evidence) as made:
        made.evidence = found  # type: ignore[attr-defined]
        yield made


def quoted(text: str) -> str:
    return quote(text.encode("utf-8", "replace"), safe="")


async def held(served: Cached) -> str:
    found: EvidenceServer = served.evidence  # type: ignore[attr-defined]
    await found.ask("the first input")
    await found.settle()
    name = found.claim.id
    found.store.append(events=[opening(name)])
    found.store.append([audit(name, n, reference=found.claim.reference) for n in range(5)])
    await found.worker.round()
    return name


BODIES: list[tuple[str, bytes, str | None]] = [
    ("/v1/cache/feedback", b'{"id": "x", "id": "y", "good": false}', "id"),
    *(("/v1/cache/feedback", b'{"id": "x", "good": %s}' % value, "good")
      for value in (b'"no"', b'"yes"', b"1", b"0", b"1.0", b"null", b"[]", b'"true"')),
    *(("/v1/cache/feedback", b'{"id": %s, "good": true}' % value, "id")
      for value in (b"5", b'""', b'"%s"' % (b"x" * 65), b"null", b'"a\\u0000b"', b"[]")),
    ("/v1/cache/feedback", b'{"id": "x"}', "good"),
    ("/v1/cache/feedback", b'{"id": "x", "good": true, "why": 1}', "why"),
    ("/v1/cache/feedback", b"[]", None),
    ("/v1/cache/feedback", b"", None),
    ("/v1/admin/claims/CLAIM/withdraw", b'{"reason": "a\\u0000b"}', "reason"),
    ("/v1/admin/claims/CLAIM/withdraw", b'{"reason": ""}', "reason"),
    ("/v1/admin/claims/CLAIM/withdraw", b'{"reason": 5}', "reason"),
    ("/v1/admin/claims/CLAIM/labels", b'{"labels": {}}', "labels"),
    ("/v1/admin/claims/CLAIM/labels", b'{"labels": []}', "labels"),
    ("/v1/admin/claims/CLAIM/labels", b'{"labels": [5]}', "labels.0"),
    ("/v1/admin/claims/CLAIM/labels", b'{"labels": [{"input": "\\u0000", "label": "World"}]}',
     "labels.0.input"),
    ("/v1/admin/claims/CLAIM/labels", b'{"labels": [{"input": "i", "label": 7}]}',
     "labels.0.label"),
]  # fmt: skip


async def test_a_body_is_read_without_conversion_and_its_fault_is_named(served: Cached) -> None:
    name = await held(served)
    for path, content, param in BODIES:
        response = await served.server.post(
            path.replace("CLAIM", name), content=content, headers=JSON
        )
        error = assert_error(response, 400, "invalid_request")
        assert error["param"] == param, (path, content)
        for inside in ("Input should", "Field required", "pydantic", "dictionary"):
            assert inside not in error["message"]
    for headers in ({"content-type": "text/plain"}, {**JSON, "content-encoding": "gzip"}):
        response = await served.server.post(
            "/v1/cache/feedback", content=b'{"id": "x", "good": true}', headers=headers
        )
        assert_error(response, 415, "unsupported_media_type")


QUERIES: list[tuple[str, str, str]] = [
    ("DELETE", "/v1/cache?namespce=x", "namespce"),
    ("DELETE", "/v1/cache?namespace=a&namespace=b", "namespace"),
    ("DELETE", "/v1/cache/entries/x?entry=y", "entry"),
    ("DELETE", "/v1/admin/cache?tenant=a&requestid=r", "requestid"),
    ("DELETE", "/v1/admin/cache?tenant=a%00b", "tenant"),
    ("DELETE", "/v1/admin/evidence?tenant=a&requestid=r", "requestid"),
    ("DELETE", "/v1/admin/evidence?tenant=a&tenant=b", "tenant"),
    ("DELETE", "/v1/admin/evidence?tenant=", "tenant"),
    ("DELETE", "/v1/admin/evidence?tenant=a&request_id=", "request_id"),
    ("DELETE", "/v1/admin/evidence?tenant=a%00b", "tenant"),
    ("DELETE", "/v1/admin/evidence?tenant=a&end_user=%00", "end_user"),
    ("DELETE", "/v1/admin/evidence?tenant=a&request_id=%00", "request_id"),
    *(("GET", f"/v1/admin/claims/c/texts?count={count}", "count")
      for count in ("1_0", "%2B5", "%205", "5.0", "1e1", "%D9%A3", "0", "1001", "-1", "")),
    ("GET", "/v1/admin/claims?state=held", "state"),
    ("GET", "/v1/admin/report?tenant=a%00b", "tenant"),
    ("GET", "/v1/admin/report?tennant=a", "tennant"),
    ("GET", "/v1/usage?since=7d&since=8d", "since"),
]  # fmt: skip


async def test_a_query_is_read_whole_and_its_fault_is_named(served: Cached) -> None:
    assert (await served.task("topic", {"input": "A text."})).status_code == 200
    assert len(await served.entries()) == 1
    for method, path, param in QUERIES:
        response = await served.server.client.request(method, path)
        error = assert_error(response, 400, "invalid_request")
        assert error["param"] == param, path
    assert len(await served.entries()) == 1


async def test_an_id_of_an_end_user_that_no_database_holds_is_refused(served: Cached) -> None:
    for name in ("user", "safety_identifier"):
        body = chat_body("task/topic", "A text.", **{name: "a\0b"})
        error = assert_error(await served.server.post(CHAT, json=body), 400, "invalid_request")
        assert error["param"] == name


async def test_an_end_user_of_any_length_is_deleted_by_the_id_that_was_sent(
    served: Cached,
) -> None:
    found: EvidenceServer = served.evidence  # type: ignore[attr-defined]
    person, other = "p" * 5000, "p" * 4999 + "q"
    assert len(end_user_id(person)) == 256
    assert EvidenceOwner("t", None, person).end_user == EntryFilter(end_user=person).end_user
    for user in (person, other):
        body = chat_body("task/topic", f"A text of {user[-1]}.", user=user)
        assert (await served.server.post(CHAT, json=body)).status_code == 200
    await found.settle()
    assert len(await served.entries()) == 2
    query = {"tenant": "default", "end_user": person}
    done = await served.server.client.delete("/v1/admin/evidence", params=query)
    assert done.status_code == 200, done.text
    assert done.json()["deleted"] == 1
    users = {row["end_user"] for row in await served.entries()}
    assert users == {end_user_id(other)}


async def test_two_names_of_an_end_user_are_refused_and_nothing_is_stored(served: Cached) -> None:
    header = "x-narrowgate-user"
    for named in (
        {"user": "a", "safety_identifier": "b"},
        {"user": "a", header: "b"},
        {"safety_identifier": "a", header: "b"},
        {"user": "a", "safety_identifier": "a", header: "b"},
    ):
        headers = {header: named[header]} if header in named else {}
        fields = {name: value for name, value in named.items() if name != header}
        for path, body in (
            (CHAT, chat_body("task/topic", "A text.", **fields)),
            ("/v1/tasks/topic", {"input": "A text.", **fields}),
        ):
            response = await served.server.post(path, json=body, headers=headers)
            error = assert_error(response, 400, "invalid_request")
            assert error["param"] in named
            assert all(name in error["message"] for name in named)
    assert await served.entries() == []


async def test_an_end_user_is_deleted_by_each_field_that_named_it(served: Cached) -> None:
    found: EvidenceServer = served.evidence  # type: ignore[attr-defined]
    # One name in several fields, and one that a client sends in UTF-8 or in Latin-1.
    fields = [{"user": "ann", "safety_identifier": "ann"}, {}, {}]
    sent = [b"ann", "Jos\u00e9 \u6f22".encode(), "Zo\u00e9".encode("latin-1")]
    for n, (given, header) in enumerate(zip(fields, sent, strict=True)):
        response = await served.server.post(
            CHAT,
            json=chat_body("task/topic", f"A text {n}.", **given),
            headers=[(b"x-narrowgate-user", header)],
        )
        assert response.status_code == 200, response.text
    await found.settle()
    for end_user in ("ann", "Jos\u00e9 \u6f22", "Zo\u00e9"):
        query = {"tenant": "default", "end_user": end_user}
        done = await served.server.client.delete("/v1/admin/evidence", params=query)
        assert (done.json()["deleted"], done.json()["cached"]) == (1, 1), end_user


MARKER = "xylograph4711"


async def test_no_text_of_a_client_is_in_a_log(
    served: Cached, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    name, server = await held(served), served.server
    texts = [
        MARKER,
        f"{MARKER}\0",
        f"\ud83d{MARKER}",
        f"{MARKER}\n",
        f"<context>{MARKER}</context>?",
    ]
    for text in texts:
        for body in (
            chat_body("task/topic", text),
            chat_body(OPENAI, text),
            chat_body("auto", text),
            chat_body(MODEL, text),
            chat_body(text),
            chat_body(f"task/{text}"),
            chat_body(f"openai/{text}"),
            {text: 1},
            *(
                chat_body(OPENAI, **{field: text})
                for field in (
                    "user",
                    "stop",
                    "stream_options",
                    "logprobs",
                    "max_tokens",
                    "tools",
                    "metadata",
                    "response_format",
                    "narrowgate",
                    "route",
                    "deadline_s",
                    "audit",
                    "service_tier",
                    "prompt_cache_key",
                    "safety_identifier",
                    text,
                )
            ),
        ):
            content = json.dumps(body)
            await server.post(CHAT, content=content, headers=JSON)
            await server.post(CHAT, content=content[:-1], headers=JSON)
        await server.post(f"/v1/tasks/{quoted(text)}", json={"input": "x"})
        for body in ({"input": text}, {"inputs": [text, 5]}, {"input": 5, text: 1}):
            content = json.dumps(body)
            await server.post("/v1/tasks/topic", content=content, headers=JSON)
        await server.post(f"/v1/admin/claims/{quoted(text)}/withdraw", json={"reason": "x"})
        await server.client.delete(f"/v1/cache?namespace={quoted(text)}")
        await server.client.get(f"/{quoted(text)}?{quoted(text)}=1")
        label = {"labels": [{"input": "i", "label": MARKER}]}
        await server.post(f"/v1/admin/claims/{name}/labels", json=label)
        await server.client.get("/healthz", headers={"x-narrowgate-cache": MARKER})
    await served.evidence.settle()  # type: ignore[attr-defined]
    await served.entries()
    ours = [r for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
    assert ours
    for record in ours:
        # httpx and httpcore are the test's own client.
        assert MARKER not in record.getMessage(), record.name
        assert MARKER not in str(record.exc_text or record.exc_info or "")


async def test_a_row_that_the_database_refuses_keeps_no_other_back(
    served: Cached, ledger_url: SecretStr | None
) -> None:
    found: EvidenceServer = served.evidence  # type: ignore[attr-defined]
    rows = [audit("c1", number) for number in range(3)]
    # PostgreSQL refuses NUL, SQLite a value of no type that it knows.
    bad: dict[str, Any] = {"end_user": "a\0b" if ledger_url else object()}
    for row in (rows[0], audit("c1", 7, **bad), rows[1], rows[2]):
        found.appender.append(row)
    assert await found.appender.flush()
    written = [row.input for row in found.audits()]
    assert written == ["i0", "i1", "i2"]
    assert found.appender.lost == 1
