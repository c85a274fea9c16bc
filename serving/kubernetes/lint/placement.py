"""Rules on what runs where, and on scaling."""

from collections.abc import Iterator, Mapping
from typing import Any

from serving.kubernetes.lint.cluster import Group, Manifests, number, selects
from serving.kubernetes.lint.finding import Place, Rule
from serving.kubernetes.lint.manifests import Fields, mappings, section, text

_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
_UNLIMITED = 1e6
_ACCELERATOR = "accelerator_type"


def _head(manifests: Manifests) -> Iterator[Place]:
    for cluster in manifests.clusters:
        head = cluster.head
        if cluster.workers and head.fields and not _is_zero(head, "CPU", "num-cpus"):
            yield Place(head.resource.file, head.fields.line,
                        "the head offers CPUs to Serve (num-cpus is not 0)")  # fmt: skip
        if cluster.workers and head.ray.has_gpu and not _is_zero(head, "GPU", "num-gpus"):
            yield Place(head.resource.file, head.fields.line, "the head offers a GPU to Serve")
        for deployment in cluster.deployments:
            options = section(deployment, "ray_actor_options")
            if deployment.get("name") == "Gateway" and number(options.get("num_cpus"), 1.0) == 0:
                yield Place(cluster.resource.file, options.line_of("num_cpus"),
                            "the gateway asks for no CPU and may land on the head")  # fmt: skip


def _is_zero(group: Group, resource: str, param: str) -> bool:
    written = section(group.fields, "resources").get(resource, group.start_params.get(param))
    return written is not None and number(written, 1.0) == 0


def _accelerator(manifests: Manifests) -> Iterator[Place]:
    for cluster in manifests.clusters:
        asks = any(_ACCELERATOR in key for each in mappings(cluster.serve) for key in each)
        if not cluster.autoscales or not asks:
            continue
        for group in cluster.workers:
            offered = {**section(group.fields, "resources")}
            named = text(group.start_params.get("resources"))
            if group.ray.has_gpu and _ACCELERATOR not in named + " ".join(offered):
                yield Place(
                    group.resource.file,
                    group.fields.line_of("resources"),
                    f"the Serve config asks for an accelerator_type, and {group.title} does not "
                    "list one in its resources",
                )


def _twice(manifests: Manifests) -> Iterator[Place]:
    for _, group in manifests.groups:
        if section(group.fields, "resources"):
            for param in _PARAMS:
                if param in group.start_params:
                    yield Place(
                        group.resource.file,
                        group.start_params.line_of(param),
                        f"{group.title} has resources and rayStartParams.{param}",
                    )


def _scaled(manifests: Manifests) -> Iterator[Place]:
    for resource in manifests.of_kind("HorizontalPodAutoscaler"):
        target = section(resource.spec, "scaleTargetRef")
        if target.get("kind") in ("RayCluster", "RayService"):
            yield Place(resource.file, target.line, f"{resource.title} scales a {target['kind']}")
    for resource in manifests.of_kind("PodDisruptionBudget"):
        if not any(_covers(resource.spec, group) for _, group in manifests.groups):
            continue
        if "maxUnavailable" in resource.spec:
            yield Place(resource.file, resource.spec.line_of("maxUnavailable"),
                        f"{resource.title} has maxUnavailable")  # fmt: skip
        least = resource.spec.get("minAvailable")
        if isinstance(least, str) and "%" in least:
            yield Place(resource.file, resource.spec.line_of("minAvailable"),
                        f"{resource.title} has minAvailable {least!r}")  # fmt: skip


def _covers(spec: Fields, group: Group) -> bool:
    selector = section(spec, "selector")
    wanted = section(selector, "matchLabels")
    if any(key.startswith("ray.io/") for key in wanted):
        return True
    return bool(wanted) and selects(selector, group.labels)


def _defaults(manifests: Manifests) -> Iterator[Place]:
    for cluster in manifests.clusters:
        file = cluster.resource.file
        for config in mappings(cluster.serve):
            if "model_loading_config" in config:
                yield from _llm_defaults(file, config)
            router = text(config.get("request_router_class"))
            if "Prefix" in router:
                yield Place(file, config.line_of("request_router_class"),
                            f"request_router_class is {router!r}")  # fmt: skip
            if "max_surge_percent" in config and number(config["max_surge_percent"], 1.0) == 0:
                yield Place(file, config.line_of("max_surge_percent"), "max_surge_percent is 0")


def _llm_defaults(file: str, config: Fields) -> Iterator[Place]:
    deployment = section(config, "deployment_config")
    line = config.line_of("deployment_config")
    if not _is_bound(deployment, "max_ongoing_requests"):
        yield Place(file, line, "an LLM deployment has no max_ongoing_requests")
    scaling = section(deployment, "autoscaling_config")
    scales = text(deployment.get("num_replicas")) in ("", "auto")
    if scales and not _is_bound(scaling, "target_ongoing_requests"):
        yield Place(file, line, "an LLM deployment has no autoscaling_config."
                    "target_ongoing_requests")  # fmt: skip


def _is_bound(fields: Mapping[str, Any], key: str) -> bool:
    return number(fields.get(key), _UNLIMITED) < _UNLIMITED


RULES = (
    Rule(
        "K06", "The head runs no work.",
        "Replicas on the head end with it, and take the memory of the control plane.",
        "KubeRay 1.7.0; ray 2.60.0 places actors with num_cpus 0 on a head without CPUs too",
        'give the head rayStartParams.num-cpus "0", and the gateway at least 1 CPU', "warning",
        _head,
    ),
    Rule(
        "K07", "A GPU group that scales from zero lists its accelerator type.",
        "The autoscaler knows a group only from its declared resources: a request for "
        "accelerator_type starts no node.",
        "kuberay #863 (open)", 'add "accelerator_type:A10G": 1 to the group\'s resources', "error",
        _accelerator,
    ),
    Rule(
        "K08", "A group states its resources once.",
        "The operator refuses a group with resources and with the same in rayStartParams.",
        "KubeRay 1.7.0", "keep one of them", "error", _twice,
    ),
    Rule(
        "K11", "Nothing uses a scale subresource, which a RayCluster does not have.",
        "A HorizontalPodAutoscaler finds no target; a disruption budget with a percentage or with "
        "maxUnavailable cannot count the expected pods and blocks every eviction.",
        "kuberay #2662", "use Ray's autoscaler, and minAvailable with a whole number", "error",
        _scaled,
    ),
    Rule(
        "K14", "Limits of ray.serve.llm are set, and a replica may start before another stops.",
        "By default a replica takes a billion requests at once, so that it neither scales nor "
        "refuses; without a surge an update of one replica is an outage; a router by prefix sends "
        "all requests with one system prompt to one replica.",
        "ray 2.60.0, ray.serve.llm", "set max_ongoing_requests and target_ongoing_requests",
        "warning", _defaults,
    ),
)  # fmt: skip
