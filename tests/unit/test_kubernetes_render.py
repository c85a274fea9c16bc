"""`narrowgate k8s render`: settings that a cluster cannot run are refused by field."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml

from serving.cli import main
from serving.contracts.errors import InvalidArgument, InvalidRequest, InvalidSettings
from serving.contracts.ledger_settings import LedgerSettings
from serving.kubernetes.digest import artifact_of
from serving.kubernetes.render import render
from serving.ledger.database import ledger_url

OVERLAY = Path(__file__).parents[2] / "k8s" / "overlays" / "cpu-dev"
ARTIFACT = f"sha256-{'ab' * 32}"


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    return Path(copytree(OVERLAY, tmp_path / "overlay")) / "settings.yaml"


def edited(file: Path, change: Callable[[Any], object]) -> Path:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("host", lambda s: s.update(host="127.0.0.1")),
        ("state", lambda s: s.update(state="state")),
        ("state", lambda s: s.update(state="/")),
        ("state", lambda s: s.update(state="/models")),
        ("state", lambda s: s.update(state="/tmp/narrowgate")),  # noqa: S108  # in the pod
        ("state", lambda s: s.update(state="/etc")),
        ("port", lambda s: s.update(port=8080)),
        ("port", lambda s: s.update(port=6379)),
        ("metrics_port", lambda s: s.update(port=8000, metrics_port=8000)),
        ("metrics_port", lambda s: s.update(metrics_port=8265)),
        (
            "cache.encryption_key_file",
            lambda s: s.update(cache={"encryption_key_file": "/etc/narrowgate/cache.key"}),
        ),
        (
            "evidence.signing_key",
            lambda s: s.update(evidence={"signing_key": "/etc/narrowgate/evidence.key"}),
        ),
        ("models", lambda s: s["models"].append({**s["models"][0], "id": "second"})),
        ("models", lambda s: s.update(models=[])),
        ("models.0.source", lambda s: s["models"][0].update(source="owner/name")),
        ("ledger.url_file", lambda s: s.update(ledger={"url": "postgresql://u:hunter2@h/d"})),
        ("auth.mode", lambda s: s.update(auth={"mode": "off"})),
        ("attestation.development", lambda s: s["attestation"].update(development=True)),
        ("attestation.trusted_keys", lambda s: s["attestation"].update(trusted_keys=[])),
        ("gateway.num_cpus", lambda s: s["gateway"].update(num_cpus=0)),
        ("gateway.max_replicas_per_node", lambda s: s["gateway"].pop("max_replicas_per_node")),
        ("gateway.drain_timeout_s", lambda s: s["gateway"].update(drain_timeout_s=154)),
        ("--settings", lambda s: s["attestation"].update(trusted_keys=["/etc/narrowgate/no.pub"])),
    ],
)
def test_what_a_cluster_cannot_run_is_named(
    settings: Path, field: str, change: Callable[[Any], object]
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        render(edited(settings, change), ARTIFACT, "/store")
    assert caught.value.field == field
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    "store",
    ["", "store", "ftp://host/x", "s3://bucket", "/store\nx", "https://", "https://[", "//",
     "https://user:hunter2@host/x", "https://user@host/x", "http://host/x"],
)  # fmt: skip
def test_a_store_that_pods_cannot_read_is_refused(settings: Path, store: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        render(settings, ARTIFACT, store)
    assert caught.value.field == "--store"
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize("store", ["/store", "/mnt/models", "https://host:8443/models"])
def test_a_store_that_pods_can_read_is_taken(settings: Path, store: str) -> None:
    assert store in json.dumps(render(settings, ARTIFACT, store).service)


@pytest.mark.parametrize(("cpus", "group"), [(1, "1"), (2.5, "3"), (0.0, None)])
def test_a_gateway_pod_has_the_cpus_that_its_replica_asks_for(
    settings: Path, cpus: float, group: str | None
) -> None:
    changed = edited(settings, lambda s: s["gateway"].update(num_cpus=cpus))
    if group is None:
        with pytest.raises(InvalidSettings):
            render(changed, ARTIFACT, "/store")
        return
    groups = render(changed, ARTIFACT, "/store").service["spec"]["rayClusterConfig"]
    found = {one["groupName"]: one["resources"] for one in groups["workerGroupSpecs"]}
    assert found["gateway"] == {"CPU": group}


def test_a_comparison_without_files_is_refused(
    settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["k8s", "render", "--settings", str(settings), "--artifact", ARTIFACT, "--check"]
    assert main(given) == 2
    assert "--out" in capsys.readouterr().err


def test_the_artifact_is_the_one_that_is_named(settings: Path) -> None:
    found = render(settings, ARTIFACT, "/store")
    groups = found.service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    named = [group["template"]["metadata"]["annotations"]["narrowgate.dev/artifact"]
             for group in groups]  # fmt: skip
    (application,) = yaml.safe_load(found.service["spec"]["serveConfigV2"])["applications"]
    assert named == [ARTIFACT, ARTIFACT]
    assert application["args"]["artifact"] == ARTIFACT
    assert f"source: /models/{ARTIFACT}\n" in found.config["data"]["settings.yaml"]


def test_a_changed_setting_or_key_is_another_configmap(settings: Path) -> None:
    def name() -> str:
        return str(render(settings, ARTIFACT, "/store").config["metadata"]["name"])

    first = name()
    assert name() == first
    key = settings.with_name("gate.pub")
    key.write_text(key.read_text() + "\n")
    assert name() != first


@pytest.mark.parametrize("text", ["sha256-12", "nowhere", f"sha256:{'0' * 64}"])
def test_what_is_no_model_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        artifact_of(text)


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), (" \n", "is empty")])
def test_a_url_file_without_a_url_is_named(
    tmp_path: Path, content: str | None, message: str
) -> None:
    file = tmp_path / "url"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidSettings, match=message) as caught:
        ledger_url(LedgerSettings(url_file=file))
    assert caught.value.field == "ledger.url_file"
