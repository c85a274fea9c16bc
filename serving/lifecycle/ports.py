"""Finds free ports on this machine."""

import socket
from contextlib import ExitStack, suppress

from serving.contracts.errors import InvalidSettings

# Ray's own ranges, divided: each stack on a machine has a block of its own.
FIRST_HTTP_PORT = 30000
FIRST_GRPC_PORT = 40000
PORTS_A_BLOCK = 50
_BLOCKS = 20
_LAST_PORT = 65535


def refuse_taken_port(host: str, port: int, field: str = "port") -> None:
    """Raise InvalidSettings where something listens on the address already.

    field: the setting that names the port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidSettings(
                f"cannot listen on {host}:{port}: {error.strerror}",
                field=field,
                fix="stop what listens there, or choose another port: make serve PORT=8001",
            ) from error


def next_free_port(host: str, after: int) -> int:
    """Return the first port above `after` on which no process listens at the host."""
    for port in range(after + 1, _LAST_PORT + 1):
        with suppress(InvalidSettings):
            refuse_taken_port(host, port)
            return port
    return free_port()


def free_port() -> int:
    """Return a port of 127.0.0.1 on which no process listens now."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Return different ports of 127.0.0.1 on which no process listens now."""
    with ExitStack() as held:
        # All are held until the last is found: the system may name a closed one again.
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def free_block() -> int:
    """Return the offset of the first block of ports in which nothing listens yet.

    Raises InvalidSettings where every block is taken.
    """
    for block in range(0, _BLOCKS * PORTS_A_BLOCK, PORTS_A_BLOCK):
        with socket.socket() as http, socket.socket() as grpc, suppress(OSError):
            http.bind(("", FIRST_HTTP_PORT + block))
            grpc.bind(("", FIRST_GRPC_PORT + block))
            return block
    raise InvalidSettings(f"{_BLOCKS} stacks run on this machine already", fix="stop one of them")
