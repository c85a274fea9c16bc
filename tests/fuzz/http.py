"""Generated requests to the HTTP API: no traceback, no undocumented status, one error shape.

`python -m tests.fuzz.http` sends them to the application with a scripted engine and provider;
`--url URL` sends them to a running stack, whose `/openapi.json` they are made from.
"""

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import httpx
import schemathesis
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from schemathesis.generation import GenerationMode

from serving.contracts.errors import NarrowgateError
from serving.contracts.frontier import FrontierCall

from ..unit.database import fresh_postgres, postgres_server
from .rounds import Checks, parser, run_rounds

UNAVAILABLE = {
    "frontier_not_configured", "queue_full", "model_starting", "model_unavailable",
    "ledger_unavailable", "shutting_down",
}  # fmt: skip
"""Codes that may come with status 503. No other status of 500 and above may come."""

PATHS = {
    "/v1/chat/completions": {
        "model": "tiny", "messages": [{"role": "user", "content": "Name a colour."}],
    },
    "/v1/completions": {"model": "tiny", "prompt": "A colour:"},
    "/v1/tasks/sentiment": {"input": "A fine day."},
    "/v1/tasks/ner": {"inputs": ["Ann lives in Oslo.", "Bo does not."]},
    "/v1/tasks/translation": {"input": "Where is it?", "target_language": "fr"},
}  # fmt: skip
"""A valid body for each path; generated fields are added to it or replace its own."""

FIELDS = (
    "model", "messages", "prompt", "input", "inputs", "n", "best_of", "max_tokens",
    "max_completion_tokens", "temperature", "top_p", "stop", "stream", "stream_options", "logprobs",
    "top_logprobs", "logit_bias", "seed", "tools", "tool_choice", "response_format", "user",
    "metadata", "route", "deadline_s", "max_cost_usd", "source_language", "target_language",
    "service_tier", "echo", "suffix", "frequency_penalty", "presence_penalty", "reasoning_effort",
    "store", "safety_identifier", "narrowgate", "audit", "deterministic", "verbosity",
    "prompt_cache_retention", "prompt_cache_key", "function_call", "functions", "prediction",
    "modalities", "audio", "web_search_options", "parallel_tool_calls", "top_k", "min_p",
    "repetition_penalty", "plugins",
)  # fmt: skip
HEADERS = (
    "x-narrowgate-route", "x-narrowgate-deadline-s", "x-narrowgate-max-cost-usd", "x-request-id",
    "content-type", "content-encoding", "accept", "authorization", "x-narrowgate-cache",
    "x-narrowgate-cache-ttl-s", "x-narrowgate-user", "x-narrowgate-audit", "cache-control",
)  # fmt: skip


CONTROLS = (
    ("GET", "/v1/usage"), ("GET", "/v1/admin/report"), ("GET", "/v1/admin/cache"),
    ("DELETE", "/v1/cache"), ("DELETE", "/v1/cache/entries/{}"), ("DELETE", "/v1/admin/cache"),
    ("DELETE", "/v1/admin/cache/entries/{}"), ("POST", "/v1/cache/feedback"),
    ("GET", "/v1/admin/claims"), ("GET", "/v1/admin/claims/{}"),
    ("GET", "/v1/admin/claims/{}/page"), ("GET", "/v1/admin/claims/{}/texts"),
    ("POST", "/v1/admin/claims/{}/withdraw"), ("POST", "/v1/admin/claims/{}/labels"),
    ("DELETE", "/v1/admin/evidence"),
)  # fmt: skip
"""Paths that show, delete or change what the server keeps; {} is a name."""
QUERIES = ("since", "until", "tenant", "namespace", "request_id", "end_user", "count", "other")
NAMES = (
    "default", "tenant/default", "u", "", " ", "\x00", "a\x00", "\ud800", "..", "%", "x" * 3000,
    "CLAIM", "CLAIM", "ENTRY", "1_0", "-1", "7d", "2026-11-01", "0", "\u0661", "\u202e",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request."""

    method: str
    path: str
    content: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)


Send = Callable[[Request], httpx.Response]

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["", " ", "0", "auto", "task/topic", "openai/x", "tiny", "\ud800", "\x00", 1e308]
    ),
)
VALUES: SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "name", "function", "x", "include_usage", "url"]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


@st.composite
def changed_bodies(draw: st.DrawFn) -> Request:
    """A valid body with one to three fields changed, removed or added, and odd headers."""
    path = draw(st.sampled_from(sorted(PATHS)))
    body = dict(PATHS[path])
    for name in draw(st.lists(st.sampled_from(FIELDS), min_size=1, max_size=3)):
        if name in body and draw(st.booleans()):
            del body[name]
        else:
            body[name] = draw(VALUES)
    text = json.dumps(body, ensure_ascii=draw(st.booleans()))
    printable = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
    headers = draw(st.dictionaries(st.sampled_from(HEADERS), printable, max_size=2))
    headers = {"content-type": "application/json", **headers}
    return Request("POST", path, text.encode("utf-8", "surrogatepass"), headers)


@st.composite
def broken_bodies(draw: st.DrawFn) -> Request:
    """Bytes that may be no JSON, no UTF-8, or nested deeply; any method."""
    path = draw(st.sampled_from([*PATHS, "/v1/models", "/v1/none", "/v1/tasks/none", "/healthz"]))
    valid = json.dumps(PATHS.get(path, {})).encode()
    depth = draw(st.sampled_from([1, 50, 100_000]))
    content = draw(
        st.one_of(
            st.binary(max_size=40),
            st.builds(lambda at: valid[:at], st.integers(0, len(valid))),
            st.just(b'{"input": ' + b"[" * depth + b"]" * depth + b"}"),
            st.just(b'{"input": "a", "input": 1, "model": "tiny"}'),
            st.just(b'{"input": 1' + b"0" * 5000 + b"}"),
            st.just(valid.decode().encode("utf-16")),
        )
    )
    method = draw(st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "DELETE", "PATCH"]))
    return Request(method, path, content, {"content-type": "application/json"})


@st.composite
def controls(draw: st.DrawFn) -> Request:
    """A request that controls the server, with names, queries and a body of any kind."""
    method, path = draw(st.sampled_from(CONTROLS))
    names = st.one_of(st.sampled_from(NAMES), st.text(max_size=8))
    path = path.replace("{}", quote(draw(names).encode("utf-8", "replace"), safe=""))
    pairs = draw(st.lists(st.tuples(st.sampled_from(QUERIES), names), max_size=3))
    if pairs:
        path += "?" + urlencode([(name, value.encode("utf-8", "replace")) for name, value in pairs])
    body: Any = {}
    fields = st.sampled_from(["id", "good", "reason", "labels", "x"])
    for name in draw(st.lists(fields, max_size=3)):
        labels = [{"input": draw(names), "label": draw(names)}]
        body[name] = draw(st.one_of(names, VALUES, st.booleans(), st.just(labels)))
    content = json.dumps(body).encode() if method == "POST" else b""
    return Request(method, path, content, {"content-type": "application/json"})


def documented_requests(document: dict[str, Any]) -> SearchStrategy[Request]:
    """Requests that follow the OpenAPI document, and some that break it."""
    schema = schemathesis.openapi.from_dict(document)
    cases = [
        operation.ok().as_strategy(generation_mode=mode)
        for operation in schema.get_all_operations()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    ]
    return st.one_of(*cases).map(_request_of)


def _request_of(case: Any) -> Request:
    arguments = case.as_transport_kwargs(base_url="http://test")
    request = httpx.Request(
        arguments["method"],
        arguments["url"],
        params=arguments.get("params"),
        headers={k: str(v) for k, v in (arguments.get("headers") or {}).items()},
    )
    content = b""
    if "json" in arguments:
        content = json.dumps(arguments["json"]).encode()
    elif isinstance(arguments.get("data"), bytes):
        content = arguments["data"]
    return Request(
        request.method,
        request.url.raw_path.decode(),
        content,
        {"content-type": "application/json", **dict(arguments.get("headers") or {})},
    )


def check_response(request: Request, response: httpx.Response) -> None:
    """Assert what holds for every response."""
    text = response.text
    assert "Traceback (most recent call last)" not in text
    status = response.status_code
    if status < 400:
        if response.headers.get("content-type", "").startswith("application/json"):
            json.loads(text)
        return
    if request.method == "HEAD":
        return
    document = json.loads(text)
    if request.path.startswith("/v1/messages"):
        # Anthropic's shape.
        assert set(document) == {"type", "error", "request_id"}, document
        assert set(document["error"]) == {"type", "message"}, document
        assert document["type"] == "error"
        assert status < 500 or status == 503, (status, document)
        return
    assert set(document) == {"error"} or request.path.startswith("/readyz"), document
    if request.path.startswith("/readyz"):
        return
    error = document["error"]
    assert set(error) == {"message", "type", "param", "code", "fix"}, error
    assert error["code"] in CODES, error
    assert status < 500 or (status == 503 and error["code"] in UNAVAILABLE), (status, error)
    assert status >= 500 or error["fix"], error


def _codes(root: type[NarrowgateError]) -> set[str]:
    return {root.code}.union(*(_codes(child) for child in root.__subclasses__()))


CODES = _codes(NarrowgateError) - {NarrowgateError.code} | {"method_not_allowed"}
"""Every code of the error tree, `internal_error` excepted: it means a bug."""


def checks(document: dict[str, Any], send: Send) -> Checks:
    """Return all kinds of request, each with the property that a response must have."""

    def holds(request: Request) -> None:
        check_response(request, send(request))

    kinds = (changed_bodies(), broken_bodies(), controls(), documented_requests(document))
    return [(kind, holds) for kind in kinds]


def _reply(call: FrontierCall) -> str:
    """Answer a chat with text, a classification with a label, an extraction with no entity."""
    form = call.body.get("response_format", {}).get("json_schema", {}).get("schema", {})
    properties = form.get("properties", {})
    if "label" in properties:
        return json.dumps({"label": properties["label"]["enum"][0]})
    return '{"entities": []}' if "entities" in properties else "A long answer."


@contextmanager
def scripted() -> Iterator[tuple[dict[str, Any], Send]]:
    """Yield the OpenAPI document and a sender of the application with a scripted engine."""
    from serving.contracts.evidence_settings import EvidenceSettings
    from serving.gateway.http import build_http
    from serving.tasks.catalog import load_specs

    from ..unit.authenticated import opened
    from ..unit.cache_kit import cached
    from ..unit.evidence_kit import EvidenceServer

    with (
        postgres_server("fuzz") as postgres,
        tempfile.TemporaryDirectory() as folder,
        asyncio.Runner() as loop,
    ):
        # PostgreSQL refuses more texts than SQLite does.
        database = opened(fresh_postgres(postgres, f"f{uuid4().hex}"), Path(folder))
        kept = EvidenceSettings(keep_texts=1, min_groups=1, min_span_h=0.0, group_window_s=0.0)
        evidence = EvidenceServer(dict(load_specs(None)), database, settings=kept, reply=_reply)
        loop.run(evidence.ready())
        server = evidence.server
        cache = cached(server, database, evidence.evidence)
        made = loop.run(cache.__aenter__())

        def send(request: Request) -> httpx.Response:
            claims = [claim.id for claim in evidence.snapshot.all()]
            path = request.path.replace("CLAIM", claims[0] if claims else "c")
            if "ENTRY" in path:
                listed = loop.run(made.entries())
                path = path.replace("ENTRY", listed[0]["id"] if listed else "e")
            sent = server.client.request(
                request.method, path, content=request.content, headers=request.headers
            )
            return loop.run(sent)

        yield build_http(server.context).openapi(), send
        loop.run(evidence.auditor.settled())
        assert loop.run(evidence.appender.flush()), "the database refused rows"
        assert evidence.appender.lost == 0, "rows were lost"
        loop.run(cache.__aexit__(None, None, None))
        loop.run(server.client.aclose())
        database.close()


@contextmanager
def live(url: str) -> Iterator[tuple[dict[str, Any], Send]]:
    """Yield the OpenAPI document and a sender of a running stack."""
    with httpx.Client(base_url=url, timeout=150) as client:
        document = client.get("/openapi.json").json()

        def send(request: Request) -> httpx.Response:
            return client.request(
                request.method, request.path, content=request.content, headers=request.headers
            )

        yield document, send


def main(argv: list[str] | None = None) -> None:
    """Run for --seconds."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--url", help="of a running stack (the scripted application)")
    args = arguments.parse_args(argv)
    with live(args.url) if args.url else scripted() as (document, send):
        run_rounds("http", checks(document, send), args.seconds, args.seed)


if __name__ == "__main__":
    main()
