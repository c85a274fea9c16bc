"""A release in a cluster: settings by file and digest, one model by digest, nothing secret."""

import hashlib
import pickle
from pathlib import Path

import httpx
import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter

from serving.artifacts.manifest import file_manifest
from serving.artifacts.signing_key import KeyPair
from serving.cluster import Release, app, engine_nodes
from serving.contracts.errors import AttestationRefused, InvalidSettings
from serving.contracts.settings import GatewaySettings
from serving.contracts.settings_sources import load_settings
from serving.contracts.task_spec import TaskSpec
from serving.gateway.metrics import Metrics
from serving.ledger.database import ledger_url
from serving.lifecycle.pod import DrainTimes, pod_environment
from serving.lifecycle.ports import free_port
from serving.local.metrics_server import metrics_served
from serving.preparation import model_grants

from .attested import attest, predicate, result, write_model
from .patience import GUARD_S

ROOT = Path(__file__).parents[2]
SETTINGS = """
host: 0.0.0.0
state: {state}
models:
  - id: m
    source: {source}
    accelerator: {{kind: gpu, type: null}}
    replica_hour_usd: 1.2
attestation: {{trusted_keys: [{key}], max_age_days: 30}}
ledger: {{url_file: {url_file}}}
"""


@pytest.fixture
def model(tmp_path: Path, key: KeyPair, specs: dict[str, TaskSpec]) -> Path:
    folder = write_model(tmp_path / "model")
    attest(folder, key, predicate(folder, {"topic": result(specs["topic"])}))
    return folder


def release(tmp_path: Path, key: KeyPair, model: Path, **changes: str) -> dict[str, str]:
    url_file = tmp_path / "url"
    url_file.write_text("postgresql://user:hunter2@db/ledger\n")
    file = tmp_path / "settings.yaml"
    values = {"state": tmp_path, "source": model, "key": key.public, "url_file": url_file}
    file.write_text(SETTINGS.format(**{**values, **changes}))
    return {
        "settings": str(file),
        "settings_digest": f"sha256-{hashlib.sha256(file.read_bytes()).hexdigest()}",
        "artifact": f"sha256-{file_manifest(model).root}",
    }


def test_a_pod_loads_the_settings_of_its_release(tmp_path: Path, key: KeyPair, model: Path) -> None:
    found = Release.model_validate(release(tmp_path, key, model)).load()
    assert found.model.id == "m"
    url = ledger_url(found.settings.ledger)
    assert url is not None
    assert url.get_secret_value() == "postgresql://user:hunter2@db/ledger"


def test_objects_stored_in_the_cluster_hold_no_secret(
    tmp_path: Path, key: KeyPair, model: Path
) -> None:
    bound = Release.model_validate(release(tmp_path, key, model))
    assert b"hunter2" not in pickle.dumps(bound)


def test_other_settings_than_those_of_the_release_are_refused(
    tmp_path: Path, key: KeyPair, model: Path
) -> None:
    args = release(tmp_path, key, model)
    with Path(args["settings"]).open("a") as file:
        file.write("port: 9000\n")
    with pytest.raises(InvalidSettings, match="this release was rendered with"):
        app(args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"artifact": "sha256-12"}, "args.artifact"),
        ({"password": "x"}, "args.password"),
        ({"settings": "/nowhere/settings.yaml"}, "cannot be read"),
    ],
)
def test_arguments_at_fault_are_named(
    tmp_path: Path, key: KeyPair, model: Path, change: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidSettings, match=message):
        app({**release(tmp_path, key, model), **change})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("owner/name", "loads models from a folder"),
        ("/nowhere/sha256-0", "narrowgate k8s fetch"),
    ],
)
def test_a_model_that_is_not_on_the_pod_is_never_a_hub_id(
    tmp_path: Path, key: KeyPair, model: Path, source: str, message: str
) -> None:
    args = release(tmp_path, key, model, source=source)
    with pytest.raises(InvalidSettings) as caught:
        app(args)
    assert message in f"{caught.value.message} {caught.value.fix}"


def test_the_model_of_another_digest_is_refused(tmp_path: Path, key: KeyPair, model: Path) -> None:
    args = {**release(tmp_path, key, model), "artifact": f"sha256-{'0' * 64}"}
    with pytest.raises(AttestationRefused, match="this release serves sha256-0000"):
        app(args)


def test_the_weights_are_not_needed_to_grant(tmp_path: Path, key: KeyPair, model: Path) -> None:
    found = Release.model_validate(release(tmp_path, key, model))
    loaded = found.load()
    (model / "model.safetensors").unlink()
    grants = model_grants(loaded.settings, loaded.model, loaded.specs, found.model_digest)
    assert grants.artifact == found.model_digest
    assert grants.tasks["topic"].refusal is None
    assert grants.expires is not None


def test_metrics_name_the_release_and_the_days_that_its_attestation_has_left(
    tmp_path: Path, key: KeyPair, model: Path
) -> None:
    found = Release.model_validate(release(tmp_path, key, model))
    loaded = found.load()
    grants = model_grants(loaded.settings, loaded.model, loaded.specs)
    metrics = Metrics()
    metrics.model_connected("m", grants.artifact, grants.expires)
    text = metrics.exposition({}).decode()
    assert f'narrowgate_build_info{{artifact="{found.model_digest}"' in text
    (line,) = [li for li in text.splitlines() if li.startswith("narrowgate_attestation_expires")]
    assert 29.9 < float(line.split()[-1]) <= 30.0


def test_each_replica_answers_its_own_metrics_and_a_taken_port_is_named() -> None:
    registry, port = CollectorRegistry(), free_port()
    Counter("calls", "Calls.", registry=registry).inc()
    with metrics_served(None, registry):
        pass
    with metrics_served(port, registry):
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=GUARD_S)
        assert "calls_total 1.0" in answer.text
        with (
            pytest.raises(InvalidSettings, match=f"metrics_port {port} is taken"),
            metrics_served(port, registry),
        ):
            pass


def test_each_drain_time_contains_the_next() -> None:
    times = DrainTimes.of(GatewaySettings(request_timeout_s=120))
    assert times == DrainTimes(155, 170, 200, 150, 130, 180)


def test_an_engine_on_processors_runs_on_the_pods_that_have_weights() -> None:
    """Its request fits a gateway's pod as well, which has only the model's description."""
    overlay = ROOT / "k8s" / "overlays" / "cpu-dev"
    (model,) = load_settings(overlay / "settings.yaml", {}, {}).models
    service = yaml.safe_load((overlay / "rayservice.yaml").read_text(encoding="utf-8"))
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    chosen = [
        group["groupName"]
        for group in groups
        if engine_nodes(model).items() <= group["labels"].items()
    ]
    assert chosen == ["engine"]


@pytest.mark.parametrize(("overlay", "value"), [("cpu-dev", None), ("a10g-int8", "0")])
def test_the_samplers_switch_is_set_on_gpus_alone(overlay: str, value: str | None) -> None:
    """An engine on processors with it is refused: the gate there ran without."""
    settings = load_settings(ROOT / "k8s" / "overlays" / overlay / "settings.yaml", {}, {})
    assert pod_environment(settings).get("VLLM_USE_FLASHINFER_SAMPLER") == value
