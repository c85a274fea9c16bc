"""A replica's own /metrics, on a port of its own.

Through the API's port a scrape reaches whichever gateway replica is next, and through it one engine
replica. In a cluster Prometheus scrapes each pod instead.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from serving.contracts.errors import InvalidSettings


@contextmanager
def metrics_served(port: int | None, registry: CollectorRegistry) -> Iterator[None]:
    """Answer GET /metrics on all addresses during the body; nothing where port is None.

    Raises InvalidSettings for a port that is taken.
    """
    if port is None:
        yield
        return
    try:
        server, thread = start_http_server(port, registry=registry)
    except OSError as error:
        raise InvalidSettings(
            f"metrics_port {port} is taken: {error.strerror}",
            field="metrics_port",
            fix="run one replica a pod (gateway.max_replicas_per_node: 1), or leave metrics_port "
            "out",
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
