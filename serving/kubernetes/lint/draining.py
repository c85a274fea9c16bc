"""Rules on how requests in progress end before a pod does."""

from collections.abc import Iterator

from serving.kubernetes.lint.cluster import DEFAULT_GRACE_S, Group, Manifests, RayCluster, number
from serving.kubernetes.lint.finding import Place, Rule
from serving.kubernetes.lint.manifests import mappings, section, text

DRAIN = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
DEREGISTRATION = "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"
_SHUTDOWN_MARGIN_S = 35
# KubeRay's incremental sample has it.
_STOP = "ray stop"


def _grace(manifests: Manifests) -> Iterator[Place]:
    for cluster, group in manifests.groups:
        if not group.pod:
            continue
        drain_s = _drain_s(group)
        line = group.pod.line_of("terminationGracePeriodSeconds")
        file = group.resource.file
        if group.grace_s <= drain_s:
            yield Place(file, line, f"{group.title} has a grace of {group.grace_s:g} s and drains "
                        f"for {drain_s:g} s ({DRAIN})")  # fmt: skip
        for shutdown_s, where in _shutdowns(cluster, manifests):
            if not group.is_head and drain_s < shutdown_s:
                yield Place(file, line, f"{group.title} drains for {drain_s:g} s ({DRAIN}), and "
                            f"{where} shuts down in up to {shutdown_s:g} s")  # fmt: skip
    yield from _shutdown_of_requests(manifests)


def _drain_s(group: Group) -> float:
    return number(group.ray.value(DRAIN), DEFAULT_GRACE_S)


def _shutdowns(cluster: RayCluster, manifests: Manifests) -> Iterator[tuple[float, str]]:
    for deployment in cluster.deployments:
        value = deployment.get("graceful_shutdown_timeout_s")
        if value is not None:
            yield number(value, 0.0), f"deployment {text(deployment.get('name'))!r}"
    for found in manifests.settings:
        value = section(found.fields, "gateway").get("drain_timeout_s")
        if value is not None:
            yield number(value, 0.0), "the gateway"


def _shutdown_of_requests(manifests: Manifests) -> Iterator[Place]:
    for found in manifests.settings:
        gateway = section(found.fields, "gateway")
        request_s = number(gateway.get("request_timeout_s"), 120.0)
        drain_s = number(gateway.get("drain_timeout_s"), 0.0)
        if "drain_timeout_s" in gateway and drain_s < request_s + _SHUTDOWN_MARGIN_S:
            yield Place(
                found.resource.file,
                gateway.line_of("drain_timeout_s"),
                f"gateway.drain_timeout_s is {drain_s:g} s; a request may take {request_s:g} s and "
                f"a load balancer needs {_SHUTDOWN_MARGIN_S} s more",
            )


def _stop(manifests: Manifests) -> Iterator[Place]:
    for _, group in manifests.groups:
        for container in group.containers:
            hook = section(container.fields, "lifecycle", "preStop")
            for fields in mappings(hook):
                written = fields.get("command")
                words = written if isinstance(written, list) else [written]
                if _STOP in " ".join(text(word) for word in words):
                    yield Place(group.resource.file, fields.line_of("command"),
                                f"the preStop hook of {group.title} runs `{_STOP}`")  # fmt: skip


def _deregistration(manifests: Manifests) -> Iterator[Place]:
    for _, group in manifests.groups:
        for container in group.containers:
            value = container.value(DEREGISTRATION)
            if value is not None and number(value, 1.0) == 0:
                variable = container.environment[DEREGISTRATION]
                yield Place(group.resource.file, variable.line_of("value"),
                            f"{DEREGISTRATION} of {group.title} is {value}")  # fmt: skip


RULES = (
    Rule(
        "K02", "Grace exceeds the drain time-out, which exceeds every shutdown time-out.",
        "Ray drains a node on SIGTERM; where the grace ends first, SIGKILL ends requests in "
        "progress. Both are 30 s by default.",
        "ray #64181, ray #64454",
        f"set terminationGracePeriodSeconds to {DRAIN} and 30 s, and that to the longest shutdown "
        "time-out and 15 s", "error", _grace,
    ),
    Rule(
        "K10", "No preStop hook stops Ray.",
        "`ray stop` ends the node before it drains.",
        "KubeRay's own sample of incremental upgrades", "remove the hook: Ray drains on SIGTERM",
        "error", _stop,
    ),
    Rule(
        "K22", "A replica that stops stays reachable until every proxy knows.",
        "With a draining period of 0 a proxy still sends requests to replicas that have stopped.",
        "ray 2.60.0 (default 30 s)", f"leave {DEREGISTRATION} out", "error", _deregistration,
    ),
)  # fmt: skip
