"""The files of the first start, and a stack that serves only the tasks that passed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.artifacts.bundled_choice import baseline_attestation, read_choice
from serving.artifacts.checkpoint import bundled_artifact
from serving.artifacts.trust import TrustPolicy, read_attestation
from serving.commands.first_start import development_key
from serving.contracts.attestation import GatePredicate

from .conftest import MODEL, ROOT, STATE, Stack, free_port
from .shown import README, blocks, check, shown

pytestmark = [pytest.mark.stack, pytest.mark.timeout(2700)]

INT8 = bundled_artifact(STATE, "int8-w8a8")
PUBLIC = development_key(STATE).with_name("development.pub")
BITS_16 = baseline_attestation(INT8)
PASSED = "topic"


def served() -> GatePredicate:
    """Return what is attested of the model that serves: which one depends on the measured speed."""
    choice = read_choice(INT8)
    assert choice is not None
    folder = INT8 if choice.is_quantized else BITS_16
    return read_attestation(folder / "attestation.json", TrustPolicy((PUBLIC,))).predicate


def narrowgate(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "serving.cli", *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip


def test_the_first_start_gated_every_task_and_told_the_truth(attested_stack: Stack) -> None:
    found = read_attestation(INT8 / "attestation.json", TrustPolicy((PUBLIC,))).predicate
    verdicts = {name: task.verdict.value for name, task in found.tasks.items()}
    # Whether the few hundred inputs of sentiment are enough for a verdict depends on the processor,
    # and so does whether ner is stopped for wrong answers that are confident, or for too few right.
    for name in ("sentiment", "ner"):
        assert verdicts.pop(name) in ("fail", "inconclusive")
    assert verdicts == {"topic": "pass", "translation": "fail"}
    verdicts |= {name: found.tasks[name].verdict.value for name in ("sentiment", "ner")}
    # The first start stops testing a task that is far below its floor.
    sizes = {name: task.suite.n for name, task in found.tasks.items()}
    assert sizes["topic"] == 312
    assert sizes["ner"] <= 208 // 2
    assert sizes["translation"] <= 156 * 12 // 4
    topic = found.tasks["topic"]
    assert topic.certificate is not None
    assert topic.certificate.threshold is not None
    assert topic.certificate.bound <= 0.15
    assert topic.label_offsets is not None
    assert found.artifact.precision == "int8"
    assert found.artifact.memory_bytes is not None
    assert found.engine.version == "0.29.0"
    assert len(found.tasks["translation"].slices) >= 10
    own = read_attestation(BITS_16 / "attestation.json", TrustPolicy((PUBLIC,))).predicate
    assert own.artifact.precision == "16-bit"
    assert own.baseline == found.baseline
    assert own.date == found.date
    assert {
        name: task.candidate.estimate for name, task in own.tasks.items() if task.candidate
    } == {name: task.baseline for name, task in found.tasks.items()}
    assert own.tasks["topic"].verdict.value == "pass"
    assert own.tasks["topic"].label_offsets not in (None, topic.label_offsets)
    choice = read_choice(INT8)
    assert choice is not None
    assert choice.is_quantized == (topic.speed is not None and topic.speed.finding == "faster")
    page = (INT8 / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 8
    assert "fail" in (INT8 / "report.md").read_text(encoding="utf-8")
    done = narrowgate("verify", INT8, "--trust", PUBLIC, "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["tasks"] == verdicts


def test_only_what_passed_is_served(attested_stack: Stack) -> None:
    deadline = time.monotonic() + 60
    while "refused: " not in (log := attested_stack.log.read_text(encoding="utf-8")):
        # Said once /readyz answers, which the fixture may see first.
        assert time.monotonic() < deadline, log
        time.sleep(0.2)
    assert f"tasks served: {PASSED}\n" in log
    assert f"refused: model {MODEL!r} does not serve task 'ner'" in log
    with httpx.Client(base_url=attested_stack.url, timeout=60) as client:
        answer = client.post("/v1/tasks/topic", json={"input": "The striker scored twice."})
        assert answer.status_code == 200
        body = answer.json()
        assert 0.0 < body["calibrated_confidence"] < 1.0
        digest = answer.headers["x-narrowgate-attestation"]
        models = client.get("/v1/models").json()["data"]
        assert models[0]["attestation"] == digest
        state = models[0]["tasks"]["topic"]
        assert body["below_threshold"] == (body["calibrated_confidence"] < state["threshold"])
        for task in ("sentiment", "ner", "translation"):
            refused = client.post(f"/v1/tasks/{task}", json={"input": "Ann lives in Oslo."})
            assert refused.status_code == 409
            assert refused.json()["error"]["code"] == "task_not_attested"
        # Without a key no request reaches a provider: a chat that is not a task is refused.
        poem = {"model": "auto", "messages": [{"role": "user", "content": "Write a poem."}]}
        nowhere = client.post("/v1/chat/completions", json=poem)
        assert nowhere.status_code == 503
        assert nowhere.json()["error"]["code"] == "frontier_not_configured"
        assert "key" in nowhere.json()["error"]["fix"]
        ready = client.get("/readyz").json()
        assert ready["attestation"] == "enforced"
        assert ready["models"][MODEL]["tasks"]["ner"]["verdict"] in ("fail", "inconclusive")


def test_serving_confidences_are_those_that_were_certified(attested_stack: Stack) -> None:
    """Ask for the whole certified half: errors above the threshold stay within the bound."""
    from evals.suite import built_in_suites, calibration_half
    from serving.tasks.catalog import load_specs

    (suite,) = (s for s in built_in_suites(load_specs(None)) if s.name == PASSED)
    tested = [e for e in suite.examples if not calibration_half(e.group)]
    response = httpx.post(
        f"{attested_stack.url}/v1/tasks/topic",
        json={"inputs": [example.request.text for example in tested]},
        timeout=120,
    )
    answers = [item["answer"] for item in response.json()["results"]]
    accepted = [
        (answer, example)
        for answer, example in zip(answers, tested, strict=True)
        if not answer["below_threshold"]
    ]
    wrong = sum(answer["value"] != example.expected for answer, example in accepted)
    found = served()
    certificate = found.tasks[PASSED].certificate
    assert certificate is not None
    print(f"served {len(accepted)} of {len(tested)}, wrong {wrong}; attested {certificate}")
    # Batches differ between engine and gate, and 16-bit sums with them.
    assert abs(len(accepted) - certificate.accepted) <= 6
    assert wrong <= certificate.errors + 2


@pytest.mark.parametrize(("curl", "answer"), shown(README))
def test_a_curl_of_the_readme_gets_what_is_shown(
    attested_stack: Stack, curl: str, answer: str
) -> None:
    check(curl, answer, attested_stack.url)


def test_the_python_example_of_the_readme_runs(attested_stack: Stack) -> None:
    (code,) = blocks(README, "python")
    code = code.replace("http://127.0.0.1:8000", attested_stack.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip()


def serve_copy(folder: Path, tmp_path: Path, **rules: Any) -> "subprocess.CompletedProcess[str]":
    """Start a stack on a model of its own and stop it once it says that it is ready."""
    model = {
        "id": "copy", "source": str(folder), "accelerator": {"kind": "cpu"},
        "engine_args": {"enforce_eager": True}, "replica_hour_usd": 0,
    }  # fmt: skip
    settings = {
        "state": str(tmp_path / "state"),
        "models": [model],
        "auth": {"mode": "off"},
        "attestation": {"trusted_keys": [str(PUBLIC)], **rules},
    }
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps(settings), encoding="utf-8")
    return narrowgate("serve", "--config", file, "--port", free_port())


@pytest.fixture
def copy(attested_stack: Stack, tmp_path: Path) -> Path:
    # Hard links: the same bytes, and nothing to copy.
    return Path(shutil.copytree(INT8, tmp_path / "copy", copy_function=os.link))


def rewrite(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def test_a_changed_model_is_refused_by_its_replica(copy: Path, tmp_path: Path) -> None:
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    rewrite(copy / "model.safetensors", bytes(weights))
    done = serve_copy(copy, tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not the model that was attested" in done.stderr
    assert "model.safetensors" in done.stderr


@pytest.mark.parametrize("fault", ["unsigned", "another key", "too old"])
def test_a_bad_envelope_is_refused_before_files_are_read(
    fault: str, copy: Path, tmp_path: Path
) -> None:
    rules: dict[str, Any] = {}
    if fault == "unsigned":
        (copy / "attestation.json").unlink()
    elif fault == "another key":
        narrowgate("keygen", "--out", tmp_path / "other")
        rules = {"trusted_keys": [str(tmp_path / "other.pub")]}
    else:
        rules = {"max_age_days": 0.0001}
    done = serve_copy(copy, tmp_path, **rules)
    assert done.returncode == 2
    reason = {
        "unsigned": "no attestation",
        "another key": "no valid signature of a trusted key",
        "too old": "days old",
    }[fault]
    assert reason in done.stderr


def test_a_gate_that_is_ended_signs_nothing(attested_stack: Stack, tmp_path: Path) -> None:
    import psutil

    with subprocess.Popen(
        [sys.executable, "-m", "serving.cli", "gate", "--baseline", INT8, "--candidate", INT8,
         "--suite", "builtin", "--task", "topic", "--limit", "80",
         "--key", development_key(STATE), "--out", tmp_path / "out", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as gate:  # fmt: skip
        assert gate.stderr is not None
        for line in gate.stderr:
            if "topic: candidate" in line:
                break
        engines = psutil.Process(gate.pid).children(recursive=True)
        assert engines
        gate.send_signal(signal.SIGTERM)
        assert gate.wait(timeout=30) == 130
    _, alive = psutil.wait_procs(engines, timeout=20)
    assert alive == []
    assert not (tmp_path / "out").exists()
