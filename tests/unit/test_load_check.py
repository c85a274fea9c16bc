"""What replicas and gateways make of an attestation: grants, refusals, the development flag."""

import logging
from pathlib import Path

import pytest

from evals.signing import KeyPair
from serving.artifacts.checkpoint import Checkpoint
from serving.artifacts.load_check import Granted, LoadCheck
from serving.contracts.answer import Prediction
from serving.contracts.attestation import Verdict
from serving.contracts.errors import AttestationRefused, InvalidKey
from serving.contracts.settings import (
    AttestationSettings,
    CpuAccelerator,
    ModelSettings,
    Settings,
)
from serving.contracts.task_spec import TaskSpec

from .attested import attest, predicate, result, write_model


@pytest.fixture
def folder(tmp_path: Path, key: KeyPair, specs: dict[str, TaskSpec]) -> Path:
    folder = write_model(tmp_path / "model")
    tasks = {
        "topic": result(specs["topic"], label_offsets={"World": 0.5}),
        "sentiment": result(specs["sentiment"], Verdict.FAIL, reasons=("worse by at least 0.1",)),
        "ner": result(specs["ner"], spec_digest="sha256:another"),
    }
    attest(folder, key, predicate(folder, tasks))
    return folder


def check(folder: Path, key: KeyPair | None, **rules: object) -> LoadCheck:
    keys = (key.public,) if key is not None else ()
    attestation = AttestationSettings.model_validate({"trusted_keys": keys, **rules})
    model = ModelSettings(id="m", source=str(folder), accelerator=CpuAccelerator(kind="cpu"))
    settings = Settings(state=folder.parent / "state", models=(model,), attestation=attestation)
    return LoadCheck.of(settings, model, Checkpoint(str(folder), None))


def test_only_what_passed_under_the_present_spec_is_served(
    folder: Path, key: KeyPair, specs: dict[str, TaskSpec]
) -> None:
    granted = Granted.of(check(folder, key), specs)
    assert granted.enforced == granted.tasks["topic"].attestation
    reasons = {n: g.refusal.message for n, g in granted.tasks.items() if g.refusal is not None}
    assert sorted(reasons) == ["ner", "sentiment", "translation"]
    assert "its verdict is fail: worse by at least 0.1" in reasons["sentiment"]
    assert "another version of this task" in reasons["ner"]
    assert "no gate has tested it" in reasons["translation"]
    assert granted.tasks["topic"].label_offsets == {"World": 0.5}


def test_the_threshold_is_applied_to_the_calibrated_confidence(
    folder: Path, key: KeyPair, specs: dict[str, TaskSpec]
) -> None:
    grant = Granted.of(check(folder, key), specs).tasks["topic"]

    def answer(raw: float, *, valid: bool = True) -> tuple[float | None, bool | None]:
        prediction = Prediction(value="World", confidence=raw, valid=valid)
        return grant.calibrated(prediction), grant.below_threshold(prediction)

    assert answer(0.1) == (0.3, True)
    assert answer(0.4) == (pytest.approx(0.625), True)
    assert answer(0.7) == (0.95, False)
    assert answer(0.7, valid=False) == (0.95, True), "what could not be read is never served"


def test_a_replica_verifies_files_engine_and_signature(folder: Path, key: KeyPair) -> None:
    found = check(folder, key)
    assert found.verify("vllm", "0.29.0") == found.verify("vllm", "0.29.1")
    assert found.cache is not None
    assert found.cache.is_file()
    assert check(folder, key, strict=True).cache is None
    with pytest.raises(AttestationRefused, match="the gate ran on"):
        found.verify("vllm", "0.30.0")
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(AttestationRefused, match="not the model that was attested"):
        found.verify("vllm", "0.29.0")
    (folder / "attestation.json").unlink()
    with pytest.raises(AttestationRefused, match="there is no attestation"):
        found.verify("vllm", "0.29.0")
    with pytest.raises(AttestationRefused):
        found.attestation()


def test_without_a_key_nothing_is_loaded(folder: Path) -> None:
    with pytest.raises(InvalidKey):
        check(folder, None).verify("vllm", "0.29.0")


def test_development_serves_everything_and_says_so(
    folder: Path, key: KeyPair, specs: dict[str, TaskSpec], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "model.safetensors").write_bytes(b"other")
    found = check(folder, key, development=True)
    with caplog.at_level(logging.WARNING):
        assert found.verify("vllm", "0.29.0") is None
    assert "DEVELOPMENT: attestation_not_enforced model=m" in caplog.text
    granted = Granted.of(found, specs)
    assert granted.enforced is None
    assert all(grant.refusal is None for grant in granted.tasks.values())
    # What is attested is still used; the rest has nothing to say of its confidence.
    assert granted.tasks["topic"].result is not None
    prediction = Prediction(value="positive", confidence=0.9)
    assert granted.tasks["sentiment"].calibrated(prediction) is None
    assert granted.tasks["sentiment"].below_threshold(prediction) is None
    nothing = check(folder, None, development=True)
    assert nothing.verify("vllm", "0.29.0") is None
    assert all(g.refusal is None for g in Granted.of(nothing, specs).tasks.values())
