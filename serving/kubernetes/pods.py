"""Pod templates of a release: head, gateway and engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.contracts.settings import CpuAccelerator, ModelSettings, Settings
from serving.lifecycle.pod import CONFIG_FOLDER, DrainTimes, pod_environment

IMAGE = "narrowgate/serve"
"""Name that the component `images` replaces by a registry's name and digest."""
ARTIFACT = "narrowgate.dev/artifact"
ROLE = "narrowgate.dev/role"
SETTINGS_DIGEST = "narrowgate.dev/settings"
MODELS = "/models"
STORE = "/store"
LEDGER_URL = "/etc/narrowgate-ledger/url"
_SHARED_MEMORY_BYTES = 2**30
_USER = 1000

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PodParts:
    """What the pods of one release share.

    artifact: sha256-HEX. config: name of the ConfigMap; digest: of its settings. items: its keys
    and the paths at which they are mounted. keys: paths of trusted public keys. store: folder or
    URL of the model store.
    """

    settings: Settings
    artifact: str
    config: str
    digest: str
    items: Mapping[str, str]
    keys: tuple[str, ...]
    store: str

    @property
    def model(self) -> ModelSettings:
        """Return the model of the release."""
        return self.settings.models[0]


def head_template(parts: PodParts) -> Object:
    """Return the head's pod: the control plane, without work."""
    container = _ray_container(parts, "ray-head")
    container["ports"] = [
        {"containerPort": 6379, "name": "gcs"},
        {"containerPort": 8265, "name": "dashboard"},
        {"containerPort": 10001, "name": "client"},
        {"containerPort": 8080, "name": "metrics"},
        # KubeRay finds the Serve port by this name.
        {"containerPort": parts.settings.port, "name": "serve"},
    ]
    container["resources"] = _resources("2", "8Gi", "10Gi", cpu_limit="2")
    container["readinessProbe"] = _http_probe("/api/healthz", 52365)
    return _template(parts, "head", container, [])


def gateway_template(parts: PodParts) -> Object:
    """Return the gateway's pod: HTTP, no weights; secrets of the database and of providers."""
    container = _worker_container(parts)
    container["resources"] = _resources("1500m", "3Gi", "10Gi", cpu_limit="2")
    container["volumeMounts"].append(
        {"name": "ledger", "mountPath": LEDGER_URL.rpartition("/")[0], "readOnly": True}
    )
    # Names of the variables are those of the providers' keys; without the Secret no provider is
    # called.
    container["envFrom"] = [{"secretRef": {"name": "narrowgate-providers", "optional": True}}]
    template = _template(parts, "gateway", container, [_fetch(parts, descriptions=True)])
    template["spec"]["volumes"].append({"name": "ledger", "secret": {
        "secretName": "narrowgate-ledger", "defaultMode": 0o440,
    }})  # fmt: skip
    template["spec"]["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {ROLE: "gateway"}},
        }
    ]
    return template


def engine_template(parts: PodParts) -> Object:
    """Return the engine's pod: one replica of the model, with the weights."""
    container = _worker_container(parts)
    accelerator = parts.model.accelerator
    if isinstance(accelerator, CpuAccelerator):
        # 4 bytes a weight of the bundled model, the KV cache, vLLM's own memory.
        memory = f"{accelerator.kv_cache_gib + 4}Gi"
        container["resources"] = _resources(f"{accelerator.cores:g}", memory, "10Gi")
        return _template(parts, "engine", container, [_fetch(parts)])
    # A g5.2xlarge has 7,910m CPU and 29,317 Mi to give: this leaves 1.9 CPU and 4.6 Gi to daemons.
    # /dev/shm counts into the memory. No CPU limit: it throttles the engine between two steps.
    container["resources"] = _resources("6", "24Gi", "40Gi")
    for kind in ("requests", "limits"):
        container["resources"][kind]["nvidia.com/gpu"] = str(accelerator.count)
    template = _template(parts, "engine", container, [_fetch(parts)])
    template["metadata"]["annotations"]["karpenter.sh/do-not-disrupt"] = "true"
    if accelerator.type is not None:
        template["spec"]["nodeSelector"] = {
            "nvidia.com/gpu.product": f"NVIDIA-{accelerator.type}",
        }
    template["spec"]["tolerations"] = [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    ]
    return template


def ray_resources(parts: PodParts) -> Object:
    """Return the Ray resources of an engine pod.

    CPU 0 where a GPU is the limit: an engine asks for none, and nothing else may land there. The
    accelerator's type is listed because the autoscaler knows a group at zero only from here.
    """
    accelerator = parts.model.accelerator
    if isinstance(accelerator, CpuAccelerator):
        return {"CPU": f"{accelerator.cores:g}"}
    found = {"CPU": "0", "GPU": str(accelerator.count)}
    if accelerator.type is not None:
        found[f"accelerator_type:{accelerator.type}"] = str(accelerator.count)
    return found


def start_parameters() -> dict[str, str]:
    """Return what `ray start` gets beyond the group's resources. Values are texts."""
    return {"object-store-memory": str(_SHARED_MEMORY_BYTES)}


def _template(parts: PodParts, role: str, container: Object, init: list[Object]) -> Object:
    times = DrainTimes.of(parts.settings.gateway)
    spec: Object = {
        # Their variables, such as NARROWGATE_SERVE_SVC_PORT, are refused as unknown settings.
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "serviceAccountName": f"narrowgate-{'head' if role == 'head' else 'worker'}",
        "terminationGracePeriodSeconds": times.grace_s,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": parts.config, "items": [
                {"key": key, "path": path} for key, path in sorted(parts.items.items())
            ]}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "home", "emptyDir": {}},
            {"name": "state", "emptyDir": {}},
        ],
    }  # fmt: skip
    if init:
        spec["initContainers"] = init
        spec["volumes"].append({"name": "models", "emptyDir": {}})
        if parts.store == STORE:
            spec["volumes"].append({"name": "store", "persistentVolumeClaim": {
                "claimName": "narrowgate-models", "readOnly": True,
            }})  # fmt: skip
    annotations = {SETTINGS_DIGEST: parts.digest}
    if role != "head":
        annotations[ARTIFACT] = parts.artifact
    labels = {"app.kubernetes.io/name": "narrowgate", ROLE: role}
    return {"metadata": {"annotations": annotations, "labels": labels}, "spec": spec}


def _ray_container(parts: PodParts, name: str) -> Object:
    variables = sorted(pod_environment(parts.settings).items())
    mounts = [
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # the pod's own emptyDir
        {"name": "home", "mountPath": "/home/narrowgate"},
        {"name": "state", "mountPath": str(parts.settings.state)},
    ]
    return {
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": key, "value": value} for key, value in variables],
        "securityContext": _confined(),
        "volumeMounts": mounts,
    }


def _worker_container(parts: PodParts) -> Object:
    container = _ray_container(parts, "ray-worker")
    container["volumeMounts"].append({"name": "models", "mountPath": MODELS, "readOnly": True})
    container["ports"] = [
        {"containerPort": parts.settings.port, "name": "serve"},
        {"containerPort": 8080, "name": "metrics"},
    ]
    if parts.settings.metrics_port is not None:
        container["ports"].append(
            {"containerPort": parts.settings.metrics_port, "name": "own-metrics"}
        )
    # KubeRay's own probe runs wget, which the image lacks. 5 s x 2: ten seconds until a draining
    # pod gets no new connections.
    container["readinessProbe"] = _http_probe("/-/healthz", parts.settings.port)
    return container


def _fetch(parts: PodParts, *, descriptions: bool = False) -> Object:
    command = ["narrowgate", "k8s", "fetch", parts.store, "--artifact", parts.artifact,
               "--out", MODELS]  # fmt: skip
    for key in parts.keys:
        command += ["--trust", key]
    if descriptions:
        command.append("--descriptions")
    mounts = [
        {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True},
        {"name": "models", "mountPath": MODELS},
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # the pod's own emptyDir
    ]
    if parts.store == STORE:
        mounts.append({"name": "store", "mountPath": STORE, "readOnly": True})
    return {
        "name": "fetch-model",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
        "resources": _resources("1", "1Gi", "1Gi", cpu_limit="2"),
        "securityContext": _confined(),
        "volumeMounts": mounts,
    }


def _confined() -> Object:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def _resources(cpu: str, memory: str, disk: str, *, cpu_limit: str | None = None) -> Object:
    requests = {"cpu": cpu, "memory": memory, "ephemeral-storage": disk}
    limits = {"memory": memory, "ephemeral-storage": disk}
    return {
        "requests": requests,
        "limits": limits if cpu_limit is None else {"cpu": cpu_limit, **limits},
    }


def _http_probe(path: str, port: int) -> Object:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": 5,
        "timeoutSeconds": 3,
        "failureThreshold": 2,
    }
