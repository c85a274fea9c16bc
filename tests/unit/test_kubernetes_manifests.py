"""k8s/: every overlay builds, and what the API server, KubeRay and Ray would say of it."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from pydantic import BaseModel, ValidationError

from serving.artifacts.checkpoint import Checkpoint
from serving.contracts.replica_process import REPLICA_ENVIRONMENT
from serving.contracts.settings_sources import load_settings
from serving.kubernetes.lint.manifests import read_manifests
from serving.kubernetes.lint.rules import lint
from serving.kubernetes.render import render
from serving.lifecycle.pod import DrainTimes
from serving.local.deployment import llm_config_arguments

from .manifest_kit import (
    K8S,
    OVERLAYS,
    ROOT,
    VERSION,
    Object,
    RayService,
    build,
    containers,
    of_kind,
    overlay,
    pod_templates,
    ray_service,
)

SCHEMA = ROOT.parent / "shared" / "crd" / "rayservice-v1-kuberay-1.7.0.schema.json"
JOBS = tuple(build(K8S / "jobs"))
ANNOTATION = "narrowgate.dev/artifact"
# Objects of operators: their own tests check them, or a strict model here.
OPERATORS = {"RayService", "PodMonitor", "PrometheusRule"}


def variant(tmp_path: Path, name: str, *components: str) -> list[Object]:
    """Build an overlay with further components."""
    shutil.copytree(K8S, tmp_path / "k8s")
    folder = tmp_path / "k8s" / "overlays" / name
    file = folder / "kustomization.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["components"] += [f"../../components/{each}" for each in components]
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return build(folder)


@pytest.mark.parametrize("name", OVERLAYS)
def test_core_objects_fit_the_strict_schemas(name: str) -> None:
    checked = 0
    for found in (*overlay(name), *JOBS):
        if found["kind"] not in OPERATORS:
            kubernetes_validate.validate(found, VERSION, strict=True)
            checked += 1
    assert checked > 15
    for owner, template in pod_templates(overlay(name)).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": owner}, **template}
        pod["metadata"] = {"name": owner, **template["metadata"]}
        kubernetes_validate.validate(pod, VERSION, strict=True)


def test_the_strict_schemas_refuse_a_misspelt_field() -> None:
    found = of_kind(build(K8S / "jobs"), "Job")[0]
    found["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(kubernetes_validate.ValidationError, match="imagePullPolice"):
        kubernetes_validate.validate(found, VERSION, strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_ray_service_has_only_fields_that_the_operator_knows(name: str) -> None:
    RayService.model_validate(ray_service(name))
    spoilt = json.loads(json.dumps(ray_service(name)))
    spoilt["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(ValidationError, match="maxReplica"):
        RayService.model_validate(spoilt)


@pytest.mark.skipif(not SCHEMA.is_file(), reason="KubeRay's schema is not beside the checkout")
def test_the_strict_model_is_a_part_of_kuberays_own_schema() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    for path, model in _models(RayService):
        here: Any = schema
        for step in path:
            here = here["properties"][step]
            here = here.get("items", here)
        if "properties" in here:
            assert set(model.model_fields) <= set(here["properties"]), path


def _models(
    model: type[BaseModel], path: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], type[BaseModel]]]:
    found = [(path, model)]
    for name, field in model.model_fields.items():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += _models(kind, (*path, name))
    return found


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_linter_finds_nothing(name: str) -> None:
    text = yaml.safe_dump_all(overlay(name))
    assert lint(read_manifests(name, text.encode()), []) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_committed_files_are_what_the_settings_render(name: str) -> None:
    folder = K8S / "overlays" / name
    committed = yaml.safe_load((folder / "rayservice.yaml").read_text(encoding="utf-8"))
    artifact = committed["metadata"]["annotations"][ANNOTATION]
    fetch = pod_templates([committed])["engine"]["spec"]["initContainers"][0]["command"]
    store = fetch[fetch.index("fetch") + 1]
    for file, text in render(folder / "settings.yaml", artifact, store).files().items():
        assert (folder / file).read_text(encoding="utf-8") == text, f"render {file} again"


def test_another_model_is_a_new_generation_and_the_same_model_none(tmp_path: Path) -> None:
    folder = K8S / "overlays" / "cpu-dev"

    def hashed(artifact: str) -> str:
        service = render(folder / "settings.yaml", artifact, "/store").service
        # What the operator compares.
        return json.dumps(service["spec"]["rayClusterConfig"], sort_keys=True)

    first, second = "sha256-" + "1" * 64, "sha256-" + "2" * 64
    assert hashed(first) == hashed(first)
    assert hashed(first) != hashed(second)


@pytest.mark.parametrize("name", OVERLAYS)
def test_ray_accepts_the_serve_config(name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    spec = ray_service(name)["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    found = ServeDeploySchema.model_validate(config)
    (application,) = found.applications
    assert application.import_path == "serving.cluster:app"
    settings = load_settings(K8S / "overlays" / name / "settings.yaml", {}, {})
    # A secret in these would be logged, shown, and kept by Ray.
    assert set(application.args) == {"settings", "settings_digest", "artifact"}
    (deployment,) = application.deployments
    # These replace the options of the code.
    replica = deployment.ray_actor_options.runtime_env["env_vars"]
    assert replica == REPLICA_ENVIRONMENT
    labels = {group["labels"]["narrowgate.dev/role"]: group
              for group in spec["rayClusterConfig"]["workerGroupSpecs"]}  # fmt: skip
    wanted = deployment.ray_actor_options.label_selector["narrowgate.dev/role"]
    assert float(labels[wanted]["resources"]["CPU"]) >= settings.gateway.num_cpus


@pytest.mark.parametrize("name", OVERLAYS)
def test_ray_accepts_the_engines_config_and_the_group_offers_what_it_asks(name: str) -> None:
    from ray.serve.llm import LLMConfig

    settings = load_settings(K8S / "overlays" / name / "settings.yaml", {}, {})
    (model,) = settings.models
    arguments = llm_config_arguments(
        model, Checkpoint(model.source, None), settings.gateway.drain_timeout_s
    )
    config = LLMConfig(**arguments)
    spec = ray_service(name)["spec"]["rayClusterConfig"]
    (engine,) = [each for each in spec["workerGroupSpecs"] if each["groupName"] == "engine"]
    if config.accelerator_type is not None:
        # Unknown to the autoscaler for a group at zero, unless it is written there.
        assert f"accelerator_type:{config.accelerator_type}" in engine["resources"]
    assert engine["replicas"] >= model.replicas.min


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_container_is_restricted_bounded_and_pinned(name: str) -> None:
    for owner, template in pod_templates([*overlay(name), *JOBS]).items():
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False, owner
        assert pod["enableServiceLinks"] is False, owner
        assert pod["securityContext"]["runAsNonRoot"] is True, owner
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, owner
        for each in containers(template):
            where = (owner, each["name"])
            context = each["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, where
            assert context["capabilities"] == {"drop": ["ALL"]}, where
            assert context["readOnlyRootFilesystem"] is True, where
            requests, limits = each["resources"]["requests"], each["resources"]["limits"]
            assert requests["memory"] == limits["memory"], where
            assert requests["ephemeral-storage"] == limits["ephemeral-storage"], where
            assert "cpu" in requests, where
            assert requests.get("nvidia.com/gpu") == limits.get("nvidia.com/gpu"), where
            assert each["imagePullPolicy"] == "IfNotPresent", where
            assert "@sha256:" in each["image"], where


@pytest.mark.parametrize("name", OVERLAYS)
def test_what_is_mounted_exists_and_what_is_named_is_there(name: str) -> None:
    objects = overlay(name)
    names = {(each["kind"], each["metadata"]["name"]) for each in objects}
    (config,) = [each for each in of_kind(objects, "ConfigMap") if "settings.yaml" in each["data"]]
    for owner, template in pod_templates(objects).items():
        pod = template["spec"]
        assert ("ServiceAccount", pod["serviceAccountName"]) in names, owner
        # A StatefulSet's claims come with each of its pods.
        claimed = {"data"} if owner == "narrowgate-redis" else set()
        volumes = {volume["name"] for volume in pod["volumes"]} | claimed
        for each in containers(template):
            assert {mount["name"] for mount in each["volumeMounts"]} <= volumes, owner
        for volume in pod["volumes"]:
            if volume["name"] == "config":
                assert volume["configMap"]["name"] == config["metadata"]["name"]
                assert {item["key"] for item in volume["configMap"]["items"]} == set(config["data"])


def references(value: Any) -> set[tuple[str, str]]:
    """Return kind and name of each Secret, ConfigMap and claim that an object refers to."""
    if isinstance(value, list):
        return {found for each in value for found in references(each)}
    if not isinstance(value, dict):
        return set()
    found = {pair for each in value.values() for pair in references(each)}
    for kind, field, key in (
        ("Secret", "secret", "secretName"),
        ("Secret", "secretKeyRef", "name"),
        ("Secret", "secretRef", "name"),
        ("ConfigMap", "configMap", "name"),
        ("ConfigMap", "configMapKeyRef", "name"),
        ("ConfigMap", "configMapRef", "name"),
        ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
    ):
        named = value.get(field)
        if isinstance(named, dict) and key in named:
            found.add((kind, named[key]))
    return found


@pytest.mark.parametrize("name", [*OVERLAYS, "jobs"])
def test_the_page_makes_every_object_that_pods_need_and_manifests_lack(name: str) -> None:
    objects = JOBS if name == "jobs" else overlay(name)
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    kinds = {"secret generic": "Secret", "configmap": "ConfigMap"}
    made = {
        (kinds[kind], named)
        for kind, named in re.findall(r"create (secret generic|configmap) (\S+)", page)
    }
    for path in re.findall(r"apply -f (k8s/\S+)", page):
        documents = yaml.safe_load_all((ROOT / path).read_text(encoding="utf-8"))
        made |= {(each["kind"], each["metadata"]["name"]) for each in documents}
    made |= {(found["kind"], found["metadata"]["name"]) for found in objects}
    needed = references(list(objects))
    assert needed
    assert needed <= made


@pytest.mark.parametrize("name", OVERLAYS)
def test_secrets_of_providers_and_database_reach_gateways_alone(name: str) -> None:
    for owner, template in pod_templates(overlay(name)).items():
        named = {
            volume["secret"]["secretName"]
            for volume in template["spec"]["volumes"]
            if "secret" in volume
        }
        for each in containers(template):
            named |= {source["secretRef"]["name"] for source in each.get("envFrom", [])}
        assert named & {"narrowgate-providers", "narrowgate-ledger"} == (
            {"narrowgate-providers", "narrowgate-ledger"} if owner == "gateway" else set()
        ), owner


@pytest.mark.parametrize("name", OVERLAYS)
def test_draining_fits_into_the_grace_and_the_old_cluster_outlives_the_longest_request(
    name: str,
) -> None:
    settings = load_settings(K8S / "overlays" / name / "settings.yaml", {}, {})
    times = DrainTimes.of(settings.gateway)
    request = settings.gateway.request_timeout_s
    assert (times.gateway_s, times.node_s, times.grace_s) == (155, 170, 200)
    assert request + 30 + 5 <= settings.gateway.drain_timeout_s <= times.gateway_s
    spec = ray_service(name)["spec"]
    assert spec["rayClusterDeletionDelaySeconds"] >= request + 30
    seen = []
    for owner in ("head", "gateway", "engine"):
        template = pod_templates(overlay(name))[owner]
        assert template["spec"]["terminationGracePeriodSeconds"] >= times.grace_s
        (ray,) = template["spec"]["containers"]
        # `ray stop` would kill before the drain.
        assert "lifecycle" not in ray or "ray stop" not in json.dumps(ray["lifecycle"])
        seen.append({each["name"]: each["value"] for each in ray["env"]})
    # HAProxy's switch is read by controller, proxies and replicas.
    assert seen[0] == seen[1] == seen[2]
    assert seen[0]["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == str(times.node_s)


def test_budgets_count_pods_and_leave_one_to_evict() -> None:
    for name in OVERLAYS:
        groups = ray_service(name)["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        replicas = {group["groupName"]: group["minReplicas"] for group in groups}
        for budget in of_kind(overlay(name), "PodDisruptionBudget"):
            least = budget["spec"]["minAvailable"]
            assert isinstance(least, int)
            role = budget["spec"]["selector"]["matchLabels"].get("narrowgate.dev/role")
            assert replicas.get(role, 2) > least, (name, role)


def test_the_gate_job_waits_for_ci_runs_once_and_cannot_reach_the_ledger() -> None:
    (job,) = [each for each in JOBS if each["metadata"]["name"].endswith("quantize-and-gate")]
    assert job["spec"]["suspend"] is True
    assert job["spec"]["backoffLimit"] == 0
    template = job["spec"]["template"]
    assert "narrowgate-ledger" not in json.dumps(template)
    (container,) = template["spec"]["containers"]
    names = {each["name"] for each in container["env"]}
    script = (ROOT / "ci" / "gate.sh").read_text(encoding="utf-8")
    for variable in ("MODEL", "RECIPE", "KEY", "PUBLIC_KEY", "UPLOAD", "QUANTIZE_PYTHON"):
        assert variable in names
        assert f"${{{variable}" in script or f"${variable}" in script


COMPONENTS = (
    ("autoscaling",), ("autoscaling", "incremental-upgrade"), ("redis-external",),
    ("image-volume",), ("monitoring",),
)  # fmt: skip


@pytest.mark.parametrize("components", COMPONENTS, ids="+".join)
def test_each_component_fits_the_overlays(tmp_path: Path, components: tuple[str, ...]) -> None:
    objects = variant(tmp_path, "a10g-int8", *components)
    (service,) = of_kind(objects, "RayService")
    found = RayService.model_validate(service)
    assert (found.spec.rayClusterConfig.autoscalerOptions is not None) == (
        "autoscaling" in components
    )
    for each in objects:
        if each["kind"] not in OPERATORS:
            kubernetes_validate.validate(each, VERSION, strict=True)
    if "incremental-upgrade" in components:
        options = found.spec.upgradeStrategy.clusterUpgradeOptions
        assert options is not None
        assert options.stepSizePercent <= options.maxSurgePercent
        assert found.spec.rayClusterConfig.enableInTreeAutoscaling
    if "redis-external" in components:
        assert not of_kind(objects, "StatefulSet")
