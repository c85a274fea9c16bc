"""Trailers, upgrades and malformed requests, in uvicorn as the gateway runs it."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from serving.gateway.http_protocol import change_http_protocol
from serving.lifecycle.ports import free_port

from .patience import GUARD_S

HEADERS = b"host: x\r\ntransfer-encoding: chunked\r\nx-given: 1\r\n"
BODY = b"5\r\nhello\r\n0\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    body = (await request.body()).decode()
    await JSONResponse({"headers": dict(request.headers), "body": body})(scope, receive, send)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    change_http_protocol()
    found = free_port()
    server = uvicorn.Server(
        uvicorn.Config(echo, port=found, http="httptools", log_level="error", lifespan="off")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield found
    server.should_exit = True
    thread.join(GUARD_S)


@pytest.mark.parametrize("apart", [False, True], ids=["one packet", "apart"])
def test_a_trailer_is_no_header(port: int, apart: bool) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=GUARD_S) as connection:
        for _ in range(2):  # the connection is kept, and its next request has its own headers
            trailers = b"authorization: Bearer key\r\nx-given: 2\r\n\r\n"
            parts = [b"POST / HTTP/1.1\r\n" + HEADERS + b"\r\n", BODY, trailers]
            for part in parts if apart else [b"".join(parts)]:
                connection.sendall(part)
                time.sleep(0.1 if apart else 0.0)
            received = b""
            while not received.endswith(b"}"):
                received += connection.recv(65536)
            found = json.loads(received.partition(b"\r\n\r\n")[2])
            assert found["body"] == "hello"
            assert found["headers"] == {"host": "x", "transfer-encoding": "chunked", "x-given": "1"}


@pytest.mark.parametrize(
    "request_line",
    [b"BREW / HTTP/1.1", b"get / HTTP/1.1", b"nonsense", b"GET / HTTP/9.9", b"\x16\x03"],
)
def test_a_request_that_cannot_be_read_is_answered_in_the_shape_of_all_errors(
    port: int, request_line: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=GUARD_S) as connection:
        connection.sendall(request_line + b"\r\nhost: x\r\n\r\n")
        received = b""
        while piece := connection.recv(65536):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head
    error = json.loads(body)["error"]
    assert error["code"] == "invalid_request"
    assert "method" in error["message"]
    assert "POST" in error["fix"]


@pytest.mark.parametrize("apart", [False, True], ids=["one packet", "apart"])
@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"other"])
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_the_body_of_a_request_for_an_upgrade_is_not_read_as_a_request(
    port: int, protocol: bytes, is_chunked: bool, apart: bool
) -> None:
    inner = b"GET /inner HTTP/1.1\r\nhost: x\r\n\r\n"
    length = b"transfer-encoding: chunked" if is_chunked else b"content-length: %d" % len(inner)
    head = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: %s\r\n%s\r\n\r\n"
    parts = [head % (protocol, length), inner]
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=GUARD_S) as connection:
        for part in parts if apart else [b"".join(parts)]:
            # The connection may be closed before the body.
            with suppress(ConnectionError):
                connection.sendall(part)
            time.sleep(0.1 if apart else 0.0)
        with suppress(ConnectionError):
            while piece := connection.recv(65536):
                received += piece
    # What was sent to a closed connection may take its answer with it.
    answers = re.findall(rb"HTTP/1\.1 (\d+) ", received)
    assert answers == [b"400"] or (apart and not answers)


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"other"])
def test_a_request_for_an_upgrade_is_answered_without_one(port: int, protocol: bytes) -> None:
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=GUARD_S) as connection:
        head = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: %s\r\n\r\n"
        connection.sendall(head % protocol)
        while piece := connection.recv(65536):
            received += piece
    assert received.startswith(b"HTTP/1.1 200 ")
    assert json.loads(received.partition(b"\r\n\r\n")[2])["headers"]["host"] == "x"
