"""An attestation in replicas and gateways: grants, refusals, the development flag."""

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from serving.artifacts.checkpoint import Checkpoint
from serving.artifacts.load_check import LoadCheck, ModelGrants, RunningEngine
from serving.artifacts.signing_key import KeyPair
from serving.contracts.answer import Prediction
from serving.contracts.attestation import Verdict
from serving.contracts.errors import AttestationRefused, InvalidKey, InvalidSettings
from serving.contracts.settings import (
    AttestationSettings,
    CpuAccelerator,
    ModelSettings,
    Settings,
)
from serving.contracts.task_spec import TaskSpec

from .attested import ARGUMENTS, attest, predicate, result, write_model

RUNNING = RunningEngine("vllm", "0.29.0", {**ARGUMENTS, "max_num_seqs": 64}, {"HOME": "/root"})


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
    granted = ModelGrants.of(check(folder, key), specs)
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
    grant = ModelGrants.of(check(folder, key), specs).tasks["topic"]

    def answer(raw: float, *, valid: bool = True) -> tuple[float | None, bool | None]:
        prediction = Prediction(value="World", confidence=raw, valid=valid)
        return grant.calibrated(prediction), grant.below_threshold(prediction)

    assert answer(0.1) == (0.3, True)
    assert answer(0.4) == (pytest.approx(0.625), True)
    assert answer(0.7) == (0.95, False)
    assert answer(0.7, valid=False) == (0.95, True), "what could not be read is never served"


def test_a_replica_verifies_files_engine_and_signature(folder: Path, key: KeyPair) -> None:
    found = check(folder, key)
    assert found.verify(RUNNING) == found.verify(replace(RUNNING, version="0.29.1"))
    assert found.cache is not None
    assert found.cache.is_file()
    assert check(folder, key, strict=True).cache is None
    attested = found.verify(RUNNING)
    assert attested is not None
    assert found.accept(attested, {}, []) == attested.attestation.digest
    with pytest.raises(AttestationRefused, match="the gate ran on"):
        found.verify(replace(RUNNING, version="0.30.0"))
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(AttestationRefused, match="not the model that was attested"):
        found.verify(RUNNING)
    (folder / "attestation.json").unlink()
    with pytest.raises(AttestationRefused, match="no attestation"):
        found.verify(RUNNING)
    with pytest.raises(AttestationRefused):
        found.attestation()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kv_cache_dtype": "fp8"}, "'kv_cache_dtype' is 'fp8' here, and was not set"),
        ({"enforce_eager": False}, "'enforce_eager' is False here, and was True"),
        ({"enforce_eager": 1}, "'enforce_eager' is 1 here, and was True"),
        ({"dtype": "float16"}, "'dtype' is 'float16' here, and was 'auto'"),
    ],
)
def test_an_argument_that_may_change_an_answer_is_the_gates(
    folder: Path, key: KeyPair, arguments: dict[str, str], message: str
) -> None:
    other = replace(RUNNING, arguments={**RUNNING.arguments, **arguments})
    with pytest.raises(AttestationRefused, match=message) as caught:
        check(folder, key).verify(other)
    assert caught.value.fix
    assert check(folder, key, development=True).verify(other) is None
    missing = replace(RUNNING, arguments={"seed": 0, "dtype": "auto"})
    with pytest.raises(AttestationRefused, match="'enforce_eager' is not set here, and was True"):
        check(folder, key).verify(missing)


def test_what_cannot_change_an_answer_is_free(folder: Path, key: KeyPair) -> None:
    free = {"max_num_seqs": 7, "tensor_parallel_size": 4, "gpu_memory_utilization": 0.5}
    logging_only = {"VLLM_LOGGING_LEVEL": "DEBUG", "VLLM_CPU_KVCACHE_SPACE": "4"}
    running = replace(RUNNING, arguments={**RUNNING.arguments, **free}, environment=logging_only)
    assert check(folder, key).verify(running)


@pytest.mark.parametrize(
    "name",
    [
        "VLLM_TEST_FORCE_LOAD_FORMAT", "VLLM_MODEL_REDIRECT_PATH", "VLLM_MARLIN_INPUT_DTYPE",
        "VLLM_PLUGINS", "VLLM_A_LATER_VERSIONS", "RAYLLM_VLLM_ENGINE_CLS",
        "ONEDNN_DEFAULT_FPMATH_MODE", "NVIDIA_TF32_OVERRIDE", "ATEN_CPU_CAPABILITY",
    ],
)  # fmt: skip
def test_a_variable_that_may_change_an_answer_is_the_gates(
    folder: Path, key: KeyPair, name: str
) -> None:
    with pytest.raises(AttestationRefused, match=f"environment variable '{name}' is 'x' here"):
        check(folder, key).verify(replace(RUNNING, environment={name: "x"}))


@pytest.mark.parametrize("development", [False, True])
def test_an_argument_that_is_not_listed_is_never_loaded(
    folder: Path, key: KeyPair, *, development: bool
) -> None:
    dummy = replace(RUNNING, arguments={**RUNNING.arguments, "load_format": "dummy"})
    with pytest.raises(InvalidSettings, match="random ones included") as caught:
        check(folder, key, development=development).verify(dummy)
    assert caught.value.field == "models.engine_args.load_format"


def load(check: LoadCheck) -> None:
    attested = check.verify(RUNNING)
    assert attested is not None
    assert check.accept(attested, {}, []) == attested.attestation.digest


def exchange(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"other")
    other.replace(path)


def exchange_and_restore(path: Path) -> None:
    aside = path.parent.parent / "aside"
    path.rename(aside)
    path.write_bytes(b"other")
    aside.replace(path)


def write_in_place(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(b"other")
    path.write_bytes(content)


def exchange_folder(path: Path) -> None:
    folder = path.parent
    folder.rename(folder.with_name("aside"))
    write_model(folder)


@pytest.mark.parametrize(
    "change", [exchange, exchange_and_restore, write_in_place, exchange_folder, Path.unlink]
)
def test_a_folder_that_changes_between_verification_and_load_is_refused(
    folder: Path, key: KeyPair, change: Callable[[Path], None]
) -> None:
    verified = check(folder, key).verify(RUNNING)
    assert verified is not None
    change(folder / "model.safetensors")
    with pytest.raises(AttestationRefused, match="changed while the model was loaded"):
        check(folder, key).accept(verified, {}, [])
    assert check(folder, key, development=True).accept(verified, {}, []) is None


def test_an_older_attestation_does_not_replace_a_newer_one(
    folder: Path, key: KeyPair, specs: dict[str, TaskSpec]
) -> None:
    newer = (folder / "attestation.json").read_bytes()
    load(check(folder, key))
    yesterday = datetime.now(UTC) - timedelta(days=1)
    attest(folder, key, predicate(folder, {}, date=yesterday))
    with pytest.raises(AttestationRefused, match="was accepted before") as caught:
        check(folder, key).verify(RUNNING)
    assert caught.value.field == "attestation.allow_older"
    with pytest.raises(AttestationRefused, match="was accepted before"):
        ModelGrants.of(check(folder, key), specs)
    load(check(folder, key, allow_older=True))
    # The return is remembered; the newer one is accepted as well.
    load(check(folder, key))
    (folder / "attestation.json").write_bytes(newer)
    load(check(folder, key))


def test_a_memory_that_others_can_write_is_refused(folder: Path, key: KeyPair) -> None:
    load(check(folder, key))
    file = check(folder, key).accepted.file
    file.chmod(0o666)
    with pytest.raises(AttestationRefused, match="has mode 0666"):
        check(folder, key).verify(RUNNING)
    file.chmod(0o600)
    file.write_text("{", encoding="utf-8")
    with pytest.raises(AttestationRefused, match="cannot be read"):
        check(folder, key).verify(RUNNING)


def test_without_a_key_no_model_is_loaded(folder: Path) -> None:
    with pytest.raises(InvalidKey):
        check(folder, None).verify(RUNNING)


def test_development_serves_every_task_and_marks_it(
    folder: Path, key: KeyPair, specs: dict[str, TaskSpec], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "model.safetensors").write_bytes(b"other")
    found = check(folder, key, development=True)
    with caplog.at_level(logging.WARNING):
        assert found.verify(RUNNING) is None
    assert "DEVELOPMENT: attestation_not_enforced model=m" in caplog.text
    granted = ModelGrants.of(found, specs)
    assert granted.enforced is None
    assert all(grant.refusal is None for grant in granted.tasks.values())
    # Attested thresholds are still used; other tasks have no bound.
    assert granted.tasks["topic"].result is not None
    prediction = Prediction(value="positive", confidence=0.9)
    assert granted.tasks["sentiment"].calibrated(prediction) is None
    assert granted.tasks["sentiment"].below_threshold(prediction) is None
    nothing = check(folder, None, development=True)
    assert nothing.verify(RUNNING) is None
    assert all(g.refusal is None for g in ModelGrants.of(nothing, specs).tasks.values())
