"""`narrowgate k8s render`: settings that a cluster cannot run are refused by field."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml

from serving.contracts.errors import InvalidRequest, InvalidSettings
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
