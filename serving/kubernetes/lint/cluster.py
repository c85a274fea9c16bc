"""Manifests as the rules see them: Ray clusters, their groups and containers, and our settings."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from serving.kubernetes.lint.manifests import (
    EMPTY,
    Fields,
    Resource,
    embedded,
    items,
    mappings,
    section,
    text,
)

ARTIFACT = "narrowgate.dev/artifact"
"""Annotation of pod templates: the digest of the model that the pods serve."""

BUILDER = "serving.cluster:app"
GPU = "nvidia.com/gpu"
DEFAULT_GRACE_S = 30
"""Kubernetes' default of terminationGracePeriodSeconds, and Ray 2.60's of its drain time-out."""

_SETTINGS = frozenset({"auth", "evidence", "frontier", "gateway", "ledger", "models", "routing"})


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a pod template. fields: as written. config_maps: their data by name."""

    fields: Fields
    config_maps: Mapping[str, Fields]

    @property
    def image(self) -> str:
        """Return the image, or an empty string."""
        return text(self.fields.get("image"))

    @property
    def environment(self) -> dict[str, Fields]:
        """Return the variables by name, those that `envFrom` takes from ConfigMaps too."""
        found = {}
        for source in items(self.fields, "envFrom"):
            name, prefix = text(section(source, "configMapRef").get("name")), source.get("prefix")
            for key, value in self.config_maps.get(name, EMPTY).items():
                variable = Fields(source.line)
                variable |= {"name": f"{text(prefix)}{key}", "value": value}
                found[variable["name"]] = variable
        # `env` is the stronger one.
        return found | {text(each.get("name")): each for each in items(self.fields, "env")}

    def value(self, name: str) -> str | None:
        """Return a variable's literal value; None where it has none."""
        found = self.environment.get(name)
        return None if found is None or "value" not in found else text(found["value"])

    def resource(self, kind: str, name: str) -> str:
        """Return a quantity. kind: `requests` or `limits`."""
        return text(section(self.fields, "resources", kind).get(name))

    @property
    def has_gpu(self) -> bool:
        """Return whether it asks for a GPU."""
        asked = {self.resource(kind, GPU) for kind in ("requests", "limits")}
        return bool(asked - {"", "0"})


@dataclass(frozen=True, slots=True)
class Group:
    """The head or one worker group of a cluster. resource: the object that declares it.

    config_maps: data of the ConfigMaps at hand, by name.
    """

    resource: Resource
    name: str
    is_head: bool
    fields: Fields
    config_maps: Mapping[str, Fields]

    @property
    def pod(self) -> Fields:
        """Return the pod's spec."""
        return section(self.fields, "template", "spec")

    @property
    def annotations(self) -> Fields:
        """Return the pod template's annotations."""
        return section(self.fields, "template", "metadata", "annotations")

    @property
    def labels(self) -> Fields:
        """Return the pod template's labels."""
        return section(self.fields, "template", "metadata", "labels")

    @property
    def containers(self) -> list[Container]:
        """Return the pod's containers; the first runs Ray."""
        return [Container(each, self.config_maps) for each in items(self.pod, "containers")]

    @property
    def ray(self) -> Container:
        """Return the container that runs Ray."""
        return next(iter(self.containers), Container(EMPTY, self.config_maps))

    @property
    def start_params(self) -> Fields:
        """Return rayStartParams."""
        return section(self.fields, "rayStartParams")

    @property
    def grace_s(self) -> float:
        """Return the pod's termination grace in seconds."""
        return number(self.pod.get("terminationGracePeriodSeconds"), DEFAULT_GRACE_S)

    @property
    def title(self) -> str:
        """Return how messages name the group."""
        return "the head" if self.is_head else f"worker group {self.name!r}"


@dataclass(frozen=True)
class RayCluster:
    """A RayService or a RayCluster. config_maps: data of the ConfigMaps at hand, by name."""

    resource: Resource
    config_maps: Mapping[str, Fields]

    @property
    def is_service(self) -> bool:
        """Return whether it is a RayService."""
        return self.resource.kind == "RayService"

    @property
    def spec(self) -> Fields:
        """Return the cluster's own spec."""
        spec = self.resource.spec
        return section(spec, "rayClusterConfig") if self.is_service else spec

    @cached_property
    def groups(self) -> list[Group]:
        """Return the head and the worker groups."""
        head = section(self.spec, "headGroupSpec")
        workers = items(self.spec, "workerGroupSpecs")
        return [
            Group(self.resource, "head", True, head, self.config_maps),
            *(
                Group(self.resource, text(each.get("groupName")), False, each, self.config_maps)
                for each in workers
            ),
        ]

    @property
    def head(self) -> Group:
        """Return the head."""
        return self.groups[0]

    @property
    def workers(self) -> list[Group]:
        """Return the worker groups."""
        return self.groups[1:]

    @property
    def serve_line(self) -> int:
        """Return the line of serveConfigV2."""
        return self.resource.spec.line_of("serveConfigV2")

    @property
    def serve_text(self) -> str:
        """Return serveConfigV2 as it is written."""
        return text(self.resource.spec.get("serveConfigV2"))

    @cached_property
    def serve(self) -> Fields:
        """Return serveConfigV2; empty where it is absent or not YAML."""
        # The string begins on the line after its key, as block scalars do.
        found = embedded(self.serve_text, self.serve_line + 1)
        return found if isinstance(found, Fields) else EMPTY

    @property
    def serve_problem(self) -> str | None:
        """Return why serveConfigV2 cannot be read; None where it can, or is absent."""
        written = self.resource.spec.get("serveConfigV2")
        if written is None or written == "":
            return None
        if not isinstance(written, str):
            return "is not a string"
        readable = isinstance(embedded(written, self.serve_line + 1), Fields)
        return None if readable else "is not a YAML mapping, or has a key twice"

    @property
    def applications(self) -> list[Fields]:
        """Return the Serve applications."""
        return items(self.serve, "applications")

    @property
    def deployments(self) -> list[Fields]:
        """Return the deployments that the Serve config names."""
        return [each for found in self.applications for each in items(found, "deployments")]

    @property
    def is_ours(self) -> bool:
        """Return whether it serves narrowgate."""
        built = any(found.get("import_path") == BUILDER for found in self.applications)
        return built or any(ARTIFACT in group.annotations for group in self.groups)

    @property
    def runs_vllm(self) -> bool:
        """Return whether its Serve config names vLLM's applications or ours."""
        return self.is_ours or "vllm" in self.serve_text or "ray.serve.llm" in self.serve_text

    @property
    def autoscales(self) -> bool:
        """Return whether Ray's autoscaler runs in the head."""
        return self.spec.get("enableInTreeAutoscaling") is True

    @property
    def upgrade(self) -> str:
        """Return the type of its upgrade strategy, or an empty string."""
        return text(section(self.resource.spec, "upgradeStrategy").get("type"))

    @property
    def service_name(self) -> str:
        """Return the name of the Service that KubeRay makes for requests."""
        return f"{self.resource.name}-serve-svc"


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """Settings of narrowgate inside a ConfigMap. line: of the entry."""

    resource: Resource
    line: int
    fields: Fields


@dataclass(frozen=True)
class Manifests:
    """All objects of a run."""

    resources: Sequence[Resource]

    @cached_property
    def clusters(self) -> list[RayCluster]:
        """Return the RayServices and RayClusters."""
        maps = {
            each.name: section(each.fields, "data")
            for each in self.of_kind("ConfigMap")
            if each.name
        }
        return [RayCluster(each, maps) for each in self.of_kind("RayService", "RayCluster")]

    @property
    def groups(self) -> Iterator[tuple[RayCluster, Group]]:
        """Yield every group with its cluster."""
        for cluster in self.clusters:
            for group in cluster.groups:
                yield cluster, group

    def of_kind(self, *kinds: str) -> list[Resource]:
        """Return the objects of these kinds."""
        return [resource for resource in self.resources if resource.kind in kinds]

    @cached_property
    def settings(self) -> list[SettingsFile]:
        """Return the settings files of narrowgate that ConfigMaps hold."""
        if not any(cluster.is_ours for cluster in self.clusters):
            return []
        found = []
        for resource in self.of_kind("ConfigMap"):
            data = section(resource.fields, "data")
            for key, value in data.items():
                line = data.line_of(key)
                document = embedded(text(value), line + 1)
                if isinstance(document, Fields) and len(_SETTINGS & set(document)) >= 2:
                    found.append(SettingsFile(resource, line, document))
        return found

    @property
    def request_timeout_s(self) -> float | None:
        """Return how long a request may take; None where nothing says it."""
        for found in self.settings:
            value = section(found.fields, "gateway").get("request_timeout_s")
            return number(value, 120.0)
        for cluster in self.clusters:
            value = section(cluster.serve, "http_options").get("request_timeout_s")
            if value is not None:
                return number(value, 0.0)
        return None


def number(value: Any, default: float) -> float:
    """Return a number that may be written as text; the default for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return default


def selects(selector: Fields, labels: Fields) -> bool:
    """Return whether a label selector's matchLabels fit. An empty selector fits everything."""
    wanted = section(selector, "matchLabels")
    return all(text(labels.get(key)) == text(value) for key, value in wanted.items())


def literals(fields: Any) -> Iterator[tuple[Fields, str, str]]:
    """Yield every text value inside with its mapping and key."""
    for mapping in mappings(fields):
        for key, value in mapping.items():
            if isinstance(value, str) and value:
                yield mapping, key, value
