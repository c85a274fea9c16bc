"""Every trap is refused with its reason, and sound settings pass."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from serving.contracts.errors import InvalidSettings
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.ledger_settings import AuthSettings, LedgerSettings
from serving.contracts.settings import (
    BUNDLED_MODEL,
    AttestationSettings,
    GatewaySettings,
    ModelSettings,
    Settings,
)
from serving.contracts.settings_sources import load_settings
from serving.settings_linter import lint, lint_engines, problems

from .attested import make_key

REVISION = "0" * 40
GPU: dict[str, Any] = {
    "id": "llama-3-8b",
    "source": "meta-llama/Meta-Llama-3-8B-Instruct",
    "revision": REVISION,
    "accelerator": {"kind": "gpu", "type": "A10G"},
    "max_model_len": 8192,
    "replica_hour_usd": "1.01",
}


# Any file: whether it holds a key is found out when it is read.
TRUST = AttestationSettings(trusted_keys=(Path(__file__),))


def settings(**model: Any) -> Settings:
    return Settings(models=(ModelSettings.model_validate({**GPU, **model}),), attestation=TRUST)


def test_the_defaults_and_a_plain_gpu_model_are_sound() -> None:
    lint(Settings())
    lint(settings())
    lint(settings(replicas={"min": 1, "max": 4}))


def test_a_local_folder_needs_no_revision(tmp_path: Path) -> None:
    lint(settings(source=str(tmp_path), revision=None))


@pytest.mark.parametrize(
    ("model", "field", "reason"),
    [
        ({"revision": None}, "revision", "could change between two starts"),
        ({"source": "bundled:smollm2-135m-instruct"}, "revision", "has no revision"),
        ({"source": "./nowhere", "revision": None}, "source", "neither a folder nor a hub id"),
        ({"source": "/no/such/folder"}, "source", "neither a folder nor a hub id"),
        ({"replicas": {"max_ongoing_requests": 10**9}}, "replicas.max_ongoing_requests",
         "never push back"),
        ({"replicas": {"target_ongoing_requests": 32, "max_ongoing_requests": 32}},
         "replicas.target_ongoing_requests", "autoscaling would never act"),
        ({"replicas": {"max_surge_percent": 0}}, "replicas.max_surge_percent", "an outage"),
        ({"concurrent_batches": 9,
          "replicas": {"max_ongoing_requests": 8, "target_ongoing_requests": 2}},
         "concurrent_batches", "above max_ongoing_requests"),
        ({"engine_args": {"logprobs_mode": "processed_logits"}}, "engine_args.logprobs_mode",
         "raw log-probabilities"),
        ({"engine_args": {"enable_prefix_caching": False}}, "engine_args.enable_prefix_caching",
         "saves more time than any quantization"),
        ({"engine_args": {"trust_remote_code": True}}, "engine_args.trust_remote_code",
         "runs code from the checkpoint"),
        ({"engine_args": {"quantization": "fp8"}}, "engine_args.quantization",
         "found in the checkpoint"),
        ({"accelerator": {"kind": "cpu"}, "dtype": "float16"}, "dtype", "slow"),
        ({"accelerator": {"kind": "cpu", "kv_cache_gib": 500}}, "accelerator.kv_cache_gib",
         "this machine has"),
    ],
)  # fmt: skip
def test_a_trap_is_refused_with_its_reason(model: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(InvalidSettings, match=reason) as caught:
        lint(settings(**model))
    assert caught.value.field == f"models.0.{field}"
    assert caught.value.fix


def test_a_request_that_could_never_start_is_refused() -> None:
    gateway = GatewaySettings(max_inputs=256, max_concurrent_inputs=255)
    with pytest.raises(InvalidSettings, match="could never start"):
        lint(Settings(gateway=gateway))


def test_all_problems_are_found_in_one_pass() -> None:
    found = list(problems(settings(revision=None, replicas={"max_surge_percent": 0})))
    assert [problem.field for problem in found] == [
        "models.0.revision",
        "models.0.replicas.max_surge_percent",
    ]


def test_enforcement_needs_a_trusted_key(tmp_path: Path) -> None:
    model = ModelSettings.model_validate(GPU)
    (found,) = problems(Settings(models=(model,)))
    assert found.field == "attestation.trusted_keys"
    lint(Settings(models=(model,), attestation=AttestationSettings(development=True)))
    missing = AttestationSettings(trusted_keys=(tmp_path / "none.pub",))
    (found,) = problems(Settings(models=(model,), attestation=missing))
    assert found.field == "attestation.trusted_keys.0"
    lint_engines(Settings(models=(model,)))


def test_a_model_without_a_price_is_refused_for_serving_and_not_for_gates() -> None:
    unpriced = settings(replica_hour_usd=None)
    with pytest.raises(InvalidSettings, match="has no replica_hour_usd") as caught:
        lint(unpriced)
    assert caught.value.field == "models.0.replica_hour_usd"
    assert caught.value.fix
    assert "replica_hour_usd: 1.01" in caught.value.fix
    lint_engines(unpriced)
    lint(settings(replica_hour_usd=0))


@pytest.mark.parametrize("overlay", ["a10g-int8", "a10g-int4", "cpu-dev"])
def test_a_gate_takes_the_settings_of_a_cluster_whose_folders_it_lacks(overlay: str) -> None:
    file = Path(__file__).parents[2] / "k8s" / "overlays" / overlay / "settings.yaml"
    found = load_settings(file, {}, {})
    lint_engines(found)
    with pytest.raises(InvalidSettings, match="is neither a folder nor a hub id"):
        lint(found)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_without_keys_loopback_is_served(host: str) -> None:
    lint(Settings(host=host, auth=AuthSettings(mode="off")))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "gateway", "localhost.example"])  # noqa: S104
def test_without_keys_only_loopback_is_served(host: str) -> None:
    with pytest.raises(InvalidSettings, match="spend your money") as caught:
        lint(Settings(host=host, auth=AuthSettings(mode="off")))
    assert caught.value.field == "auth.mode"
    lint(Settings(host=host))


def test_several_gateways_need_postgresql() -> None:
    gateway = GatewaySettings(replicas=2)
    with pytest.raises(InvalidSettings, match="SQLite") as caught:
        lint(Settings(gateway=gateway))
    assert caught.value.field == "ledger.url"
    url = SecretStr("postgresql://u:p@h/d")
    lint(Settings(gateway=gateway, ledger=LedgerSettings(url=url)))


def test_keys_that_would_be_too_old_between_two_readings_are_refused() -> None:
    with pytest.raises(InvalidSettings, match="late") as caught:
        lint(Settings(auth=AuthSettings(refresh_s=5, max_stale_s=9)))
    assert caught.value.field == "auth.max_stale_s"
    lint(Settings(auth=AuthSettings(refresh_s=5, max_stale_s=10)))


def test_no_key_is_trusted_for_models_and_for_evidence(tmp_path: Path) -> None:
    key = tmp_path / "ours.pub"
    settings = Settings(
        attestation=AttestationSettings(trusted_keys=(key,)),
        evidence=EvidenceSettings(trusted_keys=(tmp_path / "other.pub", key)),
    )
    found = [problem for problem in problems(settings) if problem.field == "evidence.trusted_keys"]
    assert [str(key) in problem.message for problem in found] == [True]


def test_a_copy_of_a_key_is_the_same_key(tmp_path: Path) -> None:
    models, evidence = make_key(tmp_path / "a"), make_key(tmp_path / "b")
    copy = tmp_path / "copy.pub"
    copy.write_bytes(models.public.read_bytes())

    def found(**changes: Any) -> list[InvalidSettings]:
        settings = Settings(
            attestation=AttestationSettings(trusted_keys=(models.public,)),
            evidence=EvidenceSettings(**changes),
        )
        return [one for one in problems(settings) if one.field == "evidence.trusted_keys"]

    assert found(trusted_keys=(evidence.public,), signing_key=evidence.private) == []
    assert len(found(trusted_keys=(copy,))) == 1
    private = tmp_path / "elsewhere"
    private.write_bytes(models.private.read_bytes())
    assert len(found(signing_key=private)) == 1


def test_the_baseline_is_no_quantized_model() -> None:
    base = Settings().models[0].model_copy(update={"source": BUNDLED_MODEL})
    narrow = base.model_copy(update={"id": "narrow", "source": f"{BUNDLED_MODEL}@int8-w8a8"})
    settings = Settings(models=(base, narrow), evidence=EvidenceSettings(baseline="narrow"))
    found = [p for p in problems(settings) if p.field == "evidence.baseline"]
    assert ["is quantized" in problem.message for problem in found] == [True]
    settings = Settings(models=(narrow, base), evidence=EvidenceSettings(baseline=base.id))
    assert [p for p in problems(settings) if p.field == "evidence.baseline"] == []
