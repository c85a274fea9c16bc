"""The environment of a Ray pod, and the times that follow from the longest request."""

import sys
from dataclasses import dataclass
from pathlib import Path

from serving.contracts.settings import GatewaySettings, GpuAccelerator, Settings
from serving.lifecycle.environment import EVERYWHERE, write_launcher
from serving.lifecycle.haproxy import Listeners

CONFIG_FOLDER = "/etc/narrowgate"
"""Where the settings and the files that they name are mounted."""
LISTENERS = "listeners.json"
LAUNCHER = "/opt/narrowgate/bin/haproxy"
HEALTH_PORT = 8001
_ERROR_FOLDER = "/tmp/narrowgate-haproxy"  # noqa: S108  # the pod's own emptyDir
_DEREGISTRATION_S = 30
_MARGIN_S = 5


@dataclass(frozen=True, slots=True)
class DrainTimes:
    """Seconds, each longer than what it contains. request_s: gateway.request_timeout_s.

    gateway_s: Serve's limit for a gateway replica: until proxies know that it leaves, the longest
    request, and a margin. node_s: Ray's drain of a node. grace_s: Kubernetes' grace of a pod.
    proxy_s: a reloaded HAProxy's last requests. server_s: HAProxy's limit for one answer.
    deletion_s: an old cluster beside the new one.
    """

    gateway_s: int
    node_s: int
    grace_s: int
    proxy_s: int
    server_s: int
    deletion_s: int

    @classmethod
    def of(cls, gateway: GatewaySettings) -> "DrainTimes":
        """Return the times for the longest request of a gateway."""
        request_s = round(gateway.request_timeout_s)
        gateway_s = _DEREGISTRATION_S + request_s + _MARGIN_S
        return cls(
            gateway_s=gateway_s,
            node_s=gateway_s + 15,
            grace_s=gateway_s + 15 + 30,
            proxy_s=request_s + 30,
            server_s=request_s + 10,
            deletion_s=_DEREGISTRATION_S + request_s + 30,
        )


def pod_environment(settings: Settings) -> dict[str, str]:
    """Return the variables of every Ray container, head and workers alike."""
    times = DrainTimes.of(settings.gateway)
    return {
        **EVERYWHERE,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(times.node_s),
        "RAY_SERVE_HAPROXY_BINARY_PATH": LAUNCHER,
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(times.proxy_s),
        "RAY_SERVE_HAPROXY_MAXCONN": str(pod_listeners(settings).max_connections_in_all),
        "RAY_SERVE_HAPROXY_NBTHREAD": "2",
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": str(times.server_s),
        # Otherwise the workers' output is in files that `kubectl logs` does not show.
        "RAY_LOG_TO_STDERR": "1",
        "RAY_SERVE_LOG_TO_STDERR": "1",
        "HOME": "/home/narrowgate",
        **_sampler(settings),
    }


def _sampler(settings: Settings) -> dict[str, str]:
    # FlashInfer compiles its sampler with nvcc, which the image lacks. Only on GPUs: an attestation
    # of a gate on processors was made without it, and an engine with it is refused.
    on_gpu = any(isinstance(model.accelerator, GpuAccelerator) for model in settings.models)
    return {"VLLM_USE_FLASHINFER_SAMPLER": "0"} if on_gpu else {}


def pod_listeners(settings: Settings) -> Listeners:
    """Return HAProxy's listeners in a pod."""
    gateway = settings.gateway
    return Listeners(
        host=settings.host,
        health_port=gateway.health_port or HEALTH_PORT,
        max_connections=gateway.max_connections,
        max_connections_per_address=gateway.max_connections_per_address,
        header_timeout_s=gateway.header_timeout_s,
        idle_timeout_s=gateway.idle_timeout_s,
    )


if __name__ == "__main__":
    # Run once, while the image is built.
    target = Path(sys.argv[1])
    target.parent.mkdir(parents=True, exist_ok=True)
    write_launcher(target, Path(_ERROR_FOLDER), Path(CONFIG_FOLDER, LISTENERS))
