"""Rules on how one generation of a cluster takes over from another."""

import re
from collections.abc import Iterator

from serving.kubernetes.lint.cluster import ARTIFACT, BUILDER, Manifests, RayCluster, number
from serving.kubernetes.lint.finding import Place, Rule
from serving.kubernetes.lint.manifests import items, mappings, section, text

_INITIALIZING = "ray.io/initializing-timeout"
_DELETION_DEFAULT_S = 60
_MARGIN_S = 30
_INCREMENTAL = "NewClusterWithIncrementalUpgrade"
_REDIS_PARAM = "redis-password"
_NAMESPACE = "ray.io/external-storage-namespace"


def _artifact(manifests: Manifests) -> Iterator[Place]:
    for cluster in manifests.clusters:
        if cluster.is_ours:
            yield from _artifact_of(cluster)


def _artifact_of(cluster: RayCluster) -> Iterator[Place]:
    file = cluster.resource.file
    named = {}
    for application in cluster.applications:
        arguments = section(application, "args")
        if application.get("import_path") != BUILDER:
            continue
        if not text(arguments.get("artifact")):
            yield Place(file, arguments.line_of("artifact"),
                        "the application's args name no artifact")  # fmt: skip
        else:
            named[text(arguments["artifact"])] = arguments.line_of("artifact")
    for group in cluster.workers:
        found = text(group.annotations.get(ARTIFACT))
        line = group.annotations.line_of(ARTIFACT)
        if not found:
            yield Place(
                file,
                group.fields.line,
                f"the pod template of {group.title} has no annotation {ARTIFACT}",
            )
        elif not re.fullmatch(r"sha256-[0-9a-f]{64}", found):
            yield Place(file, line, f"{ARTIFACT} is {found!r}, not sha256- and 64 hex digits")
        elif named and found not in named:
            yield Place(file, line, f"{ARTIFACT} of {group.title} is {found!r}, the application's "
                        f"args name {next(iter(named))!r}")  # fmt: skip


def _deletion(manifests: Manifests) -> Iterator[Place]:
    request_s = manifests.request_timeout_s
    if request_s is None:
        return
    for cluster in manifests.clusters:
        spec = cluster.resource.spec
        delay_s = number(spec.get("rayClusterDeletionDelaySeconds"), _DELETION_DEFAULT_S)
        if cluster.is_service and delay_s < request_s + _MARGIN_S:
            yield Place(
                cluster.resource.file,
                spec.line_of("rayClusterDeletionDelaySeconds"),
                f"the old cluster is deleted after {delay_s:g} s, and a request may take "
                f"{request_s:g} s: at least {request_s + _MARGIN_S:g} s are needed",
            )


def _terminal(manifests: Manifests) -> Iterator[Place]:
    for cluster in manifests.clusters:
        file = cluster.resource.file
        annotations = section(cluster.resource.fields, "metadata", "annotations")
        if _INITIALIZING in annotations:
            yield Place(file, annotations.line_of(_INITIALIZING),
                        f"{_INITIALIZING} is {text(annotations[_INITIALIZING])!r}")  # fmt: skip
        if cluster.upgrade == "None":
            strategy = section(cluster.resource.spec, "upgradeStrategy")
            yield Place(file, strategy.line_of("type"), "upgradeStrategy.type is 'None'")
        service = section(cluster.head.fields, "headService", "metadata")
        if cluster.is_service and text(service.get("name")):
            yield Place(file, service.line_of("name"),
                        f"headService.metadata.name is {text(service['name'])!r}")  # fmt: skip


def _incremental(manifests: Manifests) -> Iterator[Place]:
    for cluster in manifests.clusters:
        if cluster.upgrade != _INCREMENTAL:
            continue
        for resource in manifests.of_kind("Ingress", "HTTPRoute"):
            for fields in mappings(resource.spec):
                if fields.get("name") == cluster.service_name:
                    yield Place(
                        resource.file,
                        fields.line_of("name"),
                        f"{resource.title} sends requests to {cluster.service_name!r}",
                    )
        if "serveService" in cluster.resource.spec:
            yield Place(cluster.resource.file, cluster.resource.spec.line_of("serveService"),
                        "serveService is ignored by an incremental upgrade")  # fmt: skip


def _annotated(cluster: RayCluster) -> bool:
    """Return whether fault tolerance is set as before gcsFaultToleranceOptions existed."""
    annotations = section(cluster.resource.fields, "metadata", "annotations")
    on = text(annotations.get("ray.io/ft-enabled")) == "true"
    return on and "RAY_REDIS_ADDRESS" in cluster.head.ray.environment


def _fault_tolerance(manifests: Manifests) -> Iterator[Place]:
    for cluster in manifests.clusters:
        file = cluster.resource.file
        options = section(cluster.spec, "gcsFaultToleranceOptions")
        if not text(options.get("redisAddress")) and not _annotated(cluster):
            yield Place(
                file,
                cluster.spec.line_of("gcsFaultToleranceOptions"),
                f"{cluster.resource.title} has no gcsFaultToleranceOptions.redisAddress",
            )
        if text(options.get("externalStorageNamespace")):
            yield Place(file, options.line_of("externalStorageNamespace"),
                        "externalStorageNamespace is fixed")  # fmt: skip
        annotations = section(cluster.resource.fields, "metadata", "annotations")
        if text(annotations.get(_NAMESPACE)):
            yield Place(file, annotations.line_of(_NAMESPACE), f"{_NAMESPACE} is fixed")
        yield from _redis_literals(cluster)


def _redis_literals(cluster: RayCluster) -> Iterator[Place]:
    file, options = cluster.resource.file, section(cluster.spec, "gcsFaultToleranceOptions")
    for field in ("redisPassword", "redisUsername"):
        if text(section(options, field).get("value")):
            yield Place(file, options.line_of(field), f"{field} is a literal value")
    params = cluster.head.start_params
    password = text(params.get(_REDIS_PARAM))
    if password and not password.startswith("$"):
        yield Place(file, params.line_of(_REDIS_PARAM),
                    "rayStartParams.redis-password is a literal value")  # fmt: skip
    for container in cluster.head.containers:
        for variable in items(container.fields, "env"):
            if variable.get("name") == "REDIS_PASSWORD" and text(variable.get("value")):
                yield Place(file, variable.line, "REDIS_PASSWORD is a literal value")


RULES = (
    Rule(
        "K01", "The args and every worker's pod template have the same model digest.",
        "A change of serveConfigV2 alone is applied in place: the model would be replaced without "
        "a second cluster, and an admission policy on the annotation would not see it.",
        "KubeRay 1.7.0, ray-operator/controllers/ray/utils/util.go (the hash of a cluster)",
        "render the manifests with `narrowgate k8s render`", "error", _artifact,
    ),
    Rule(
        "K03", "The old cluster outlives its longest request.",
        "The head and the controller of the old cluster end together with its workers: requests in "
        "progress are then lost, whatever the drain time-outs are.",
        "KubeRay 1.7.0, rayClusterDeletionDelaySeconds (default 60)",
        "set rayClusterDeletionDelaySeconds to the request time-out and 30 s", "error", _deletion,
    ),
    Rule(
        "K17", "No setting makes an update terminal, silent or refused.",
        "After initializing-timeout only deleting and creating helps; upgradeStrategy None ignores "
        "changes without an error; a named head service is refused.",
        "KubeRay 1.7.0; kuberay #2433", "remove it; alert on a long UpgradeInProgress instead",
        "error", _terminal,
    ),
    Rule(
        "K18", "With incremental upgrades clients use the Gateway, not the serve Service.",
        "The Service had no endpoints for 20 minutes during an incremental upgrade.",
        "kuberay #5148 (open, 1.6.2)", "route through the Gateway, or use type NewCluster",
        "error", _incremental,
    ),
    Rule(
        "K19", "The head's state is in a Redis, with a password by reference and a namespace each.",
        "Without it a lost head ends all workers and models. With a fixed namespace two "
        "generations read each other's state. A literal password is in every copy of the manifest.",
        "KubeRay 1.7.0, gcsFaultToleranceOptions",
        "set redisAddress and redisPassword.valueFrom, and leave externalStorageNamespace out",
        "warning", _fault_tolerance,
    ),
)  # fmt: skip
