"""Rules on images, environments, probes and resources of pods."""

import re
from collections.abc import Iterator

from serving.kubernetes.lint.cluster import GPU, Container, Group, Manifests, RayCluster, selects
from serving.kubernetes.lint.finding import Place, Rule
from serving.kubernetes.lint.manifests import Fields, Resource, items, section, text

# Settings of one node's own proxy.
_PER_NODE = frozenset(
    {"RAY_SERVE_HAPROXY_NBTHREAD", "RAY_SERVE_WORKER_PROXY_HTTP_PORT",
     "RAY_SERVE_HAPROXY_METRICS_PORT"}
)  # fmt: skip
_VERSION = re.compile(r":(\d+\.\d+\.\d+)(?:[-.]|$)")
_WITH_WGET = re.compile(r"(^|/)rayproject/ray(-ml|-llm)?[:@]")
# Ray's own image for LLMs is built on CUDA's development image.
_WITH_NVCC = re.compile(r"(^|/)rayproject/ray-llm[:@]")
_SAMPLER = "VLLM_USE_FLASHINFER_SAMPLER"
_DNS = 53
_API = {443, 6443}


def _equal(manifests: Manifests) -> Iterator[Place]:
    for cluster in manifests.clusters:
        file = cluster.resource.file
        head = cluster.head
        for group in cluster.workers:
            if group.ray.image != head.ray.image:
                yield Place(file, group.ray.fields.line_of("image"),
                            f"{group.title} runs image {group.ray.image!r}, the head "
                            f"{head.ray.image!r}")  # fmt: skip
            for name in sorted(_serve_variables(head) | _serve_variables(group)):
                one, other = head.ray.value(name), group.ray.value(name)
                if one != other:
                    yield Place(
                        file,
                        group.ray.fields.line_of("env"),
                        f"{name} is {other!r} in {group.title} and {one!r} in the head",
                    )
        yield from _version(cluster)


def _serve_variables(group: Group) -> set[str]:
    return {n for n in group.ray.environment if n.startswith("RAY_SERVE_")} - _PER_NODE


def _version(cluster: RayCluster) -> Iterator[Place]:
    declared = text(cluster.spec.get("rayVersion"))
    line = cluster.spec.line_of("rayVersion")
    if not declared:
        yield Place(cluster.resource.file, line, f"{cluster.resource.title} has no rayVersion")
        return
    for group in cluster.groups:
        tagged = _VERSION.search(group.ray.image)
        if "ray" in group.ray.image and tagged and tagged.group(1) != declared:
            yield Place(cluster.resource.file, group.ray.fields.line_of("image"),
                        f"rayVersion is {declared!r}, the image of {group.title} has "
                        f"{tagged.group(1)!r}")  # fmt: skip


def _service_links(manifests: Manifests) -> Iterator[Place]:
    for _, group in manifests.groups:
        if group.pod and group.pod.get("enableServiceLinks") is not False:
            yield Place(group.resource.file, group.pod.line_of("enableServiceLinks"),
                        f"enableServiceLinks of {group.title} is not false")  # fmt: skip


def _probes(manifests: Manifests) -> Iterator[Place]:
    for cluster, group in manifests.groups:
        ray = group.ray
        default = cluster.is_service and not group.is_head and "readinessProbe" not in ray.fields
        if ray.image and default and not _WITH_WGET.search(ray.image):
            yield Place(group.resource.file, ray.fields.line,
                        f"{group.title} has no readinessProbe of its own, and KubeRay's needs wget "
                        f"in the image {ray.image!r}")  # fmt: skip
        if "startupProbe" in ray.fields:
            yield Place(group.resource.file, ray.fields.line_of("startupProbe"),
                        f"{group.title} has a startupProbe")  # fmt: skip


def _images(manifests: Manifests) -> Iterator[Place]:
    for _, group in manifests.groups:
        for container in (*group.containers, *_init(group)):
            if not container.image:
                continue
            if "@sha256:" not in container.image:
                yield Place(
                    group.resource.file,
                    container.fields.line_of("image"),
                    f"the image {container.image!r} of {group.title} has no digest",
                )
            if "imagePullPolicy" not in container.fields:
                yield Place(group.resource.file, container.fields.line,
                            f"{text(container.fields.get('name'))!r} of {group.title} has no "
                            "imagePullPolicy")  # fmt: skip


def _init(group: Group) -> list[Container]:
    return [Container(each, group.config_maps) for each in items(group.pod, "initContainers")]


def _resources(manifests: Manifests) -> Iterator[Place]:
    for _, group in manifests.groups:
        for container in group.containers:
            name = f"{text(container.fields.get('name'))!r} of {group.title}"
            file, line = group.resource.file, container.fields.line_of("resources")
            for resource in (GPU, "memory"):
                asked = container.resource("requests", resource)
                limit = container.resource("limits", resource)
                wanted = resource == "memory" or container.has_gpu
                if wanted and (not limit or asked not in ("", limit)):
                    yield Place(file, line, f"{name} requests {asked or 'no'} {resource} and is "
                                f"limited to {limit or 'none'}")  # fmt: skip
            if container.has_gpu and container.resource("limits", "cpu"):
                yield Place(file, line, f"{name} has a CPU limit beside its GPU")
            if not container.resource("requests", "ephemeral-storage"):
                yield Place(file, line, f"{name} requests no ephemeral-storage")


def _network(manifests: Manifests) -> Iterator[Place]:
    policies = manifests.of_kind("NetworkPolicy")
    for cluster, group in manifests.groups:
        chosen = [each for each in policies if _governs(each, group)]
        if chosen and not _opens(chosen, {_DNS}):
            yield Place(
                chosen[0].file,
                chosen[0].spec.line,
                f"no egress rule lets {group.title} ask a DNS server (port {_DNS})",
            )
        if chosen and group.is_head and cluster.autoscales and not _opens(chosen, _API):
            yield Place(chosen[0].file, chosen[0].spec.line,
                        "no egress rule lets the head reach the API server, which Ray's "
                        "autoscaler needs")  # fmt: skip
        yield from _token(cluster, group)


def _token(cluster: RayCluster, group: Group) -> Iterator[Place]:
    if not group.pod:
        return
    line = group.pod.line_of("automountServiceAccountToken")
    mounted = group.pod.get("automountServiceAccountToken")
    if group.is_head and cluster.autoscales:
        if mounted is False:
            yield Place(
                group.resource.file,
                line,
                "the head mounts no ServiceAccount token, which Ray's autoscaler needs",
            )
    elif mounted is not False:
        yield Place(group.resource.file, line, f"{group.title} mounts a ServiceAccount token")


def _governs(policy: Resource, group: Group) -> bool:
    types = policy.spec.get("policyTypes")
    limits = "egress" in policy.spec or (isinstance(types, list) and "Egress" in types)
    return limits and selects(section(policy.spec, "podSelector"), group.labels)


def _opens(policies: list[Resource], ports: set[int]) -> bool:
    return any(_allows(rule, ports) for each in policies for rule in items(each.spec, "egress"))


def _allows(rule: Fields, ports: set[int]) -> bool:
    named = items(rule, "ports")
    if not named:
        return True
    return any(
        "port" not in each or int(p) <= port <= int(each.get("endPort", p))
        for each in named
        for p in [each.get("port", 0)]
        for port in ports
        if isinstance(p, int) or text(p).isdigit()
    )


def _runtime(manifests: Manifests) -> Iterator[Place]:
    for cluster, group in manifests.groups:
        ray = group.ray
        file, line = group.resource.file, ray.fields.line_of("env")
        compiles = cluster.runs_vllm and not _WITH_NVCC.search(ray.image)
        if ray.has_gpu and compiles and ray.value(_SAMPLER) != "0":
            yield Place(file, line, f"{_SAMPLER} of {group.title} is not 0")
        library_path = ray.value("LD_LIBRARY_PATH")
        if ray.has_gpu and library_path:
            yield Place(file, ray.environment["LD_LIBRARY_PATH"].line_of("value"),
                        f"LD_LIBRARY_PATH of {group.title} is {library_path!r}")  # fmt: skip
        if section(ray.fields, "securityContext").get("readOnlyRootFilesystem") is True:
            mounted = {text(each.get("mountPath")) for each in items(ray.fields, "volumeMounts")}
            home = ray.value("HOME")
            for needed in ("/tmp", *((home,) if home else ())):  # noqa: S108
                if not any(needed == path or needed.startswith(f"{path}/") for path in mounted):
                    yield Place(
                        file,
                        ray.fields.line_of("volumeMounts"),
                        f"{group.title} has a read-only root and no volume at {needed}",
                    )


RULES = (
    Rule(
        "K04", "Head and workers run one image, one Ray version and one environment of Serve.",
        "Serve reads its switches at import in the controller, proxies and replicas alike; "
        "KubeRay's probes and authentication depend on rayVersion.",
        "ray 2.60.0; KubeRay 1.7.0", "set image, rayVersion and RAY_SERVE_* once for all groups",
        "error", _equal,
    ),
    Rule(
        "K05", "Service links are off.",
        "A Service adds variables such as NARROWGATE_PORT=tcp://... or VLLM_PORT=tcp://... to "
        "every pod of its namespace: narrowgate refuses them, and vLLM fails on them.",
        "vllm #34199, vllm #18209", "set enableServiceLinks: false in every pod template", "error",
        _service_links,
    ),
    Rule(
        "K09", "Readiness is asked by HTTP, and no startup probe waits for a model.",
        "KubeRay's default probe runs wget in the container. Models load inside Serve actors, "
        "which a startup probe does not see.",
        "kuberay #2063, #3837, #4480", "set readinessProbe.httpGet to :8000/-/healthz", "error",
        _probes,
    ),
    Rule(
        "K15", "Images are named by digest, with a pull policy.",
        "A moved tag makes two generations of one manifest differ.",
        "Kubernetes, container images", "name IMAGE@sha256:HEX and imagePullPolicy: IfNotPresent",
        "warning", _images,
    ),
    Rule(
        "K16", "Requests and limits of memory and GPUs are equal; an engine has no CPU limit.",
        "A pod over its memory request is evicted first; a CPU limit throttles the engine between "
        "two steps; without ephemeral-storage a full disk evicts the pod.",
        "Kubernetes, resource management",
        "set requests equal to limits, leave the CPU limit out, request ephemeral-storage",
        "warning", _resources,
    ),
    Rule(
        "K20", "Network policies let pods resolve names; only Ray's autoscaler has a token.",
        "Without DNS, or without the API server where the autoscaler runs, the cluster never "
        "starts. A mounted token is an identity for whoever gets into the pod.",
        "Kubernetes, network policies; KubeRay 1.7.0",
        "open port 53; automountServiceAccountToken: false except for an autoscaling head",
        "warning", _network,
    ),
    Rule(
        "K21", "A GPU pod finds its driver, compiles nothing it cannot, and may write its caches.",
        "Without nvcc FlashInfer's sampler ends the start; CUDA compatibility libraries before the "
        "driver's give error 803; unwritable HOME or /tmp end the engine.",
        "vllm #49497, vllm #33447, llm-d #1430",
        f"set {_SAMPLER}=0, leave LD_LIBRARY_PATH out, mount emptyDirs at /tmp and HOME", "error",
        _runtime,
    ),
)  # fmt: skip
