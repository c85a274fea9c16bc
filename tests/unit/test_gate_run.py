"""One gate run that attests both models: scripted engines and the real statistics."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from evals import gate
from evals.gate import Request, run_gate
from evals.harness import General, HarnessResult
from evals.metrics import metric_of
from evals.output import write_baseline, write_results
from evals.suite import Example, Suite
from serving.artifacts.manifest import file_manifest
from serving.artifacts.signing_key import load_signer, read_key
from serving.artifacts.trust import TrustPolicy, read_attestation, verify_files
from serving.contracts.answer import TaskRequest
from serving.contracts.attestation import TaskResult, Verdict
from serving.contracts.engine import EngineWork, ScoreOutput, ScoreWork, TokenCounts
from serving.contracts.settings import ModelSettings, Settings
from serving.contracts.task_spec import ClassificationSpec, TaskSpec
from serving.local.offline_work import Batch, device_name, kernels, run_works
from serving.tasks.task import Task, bind

from .attested import FILES, make_key
from .character_tokenizer import CharacterTokenizer

LABELS = ["a", "b", "c"]
SPEC = ClassificationSpec(
    name="letters", kind="classification", instruction="Which?", labels=LABELS, floor=0.5,
    target_error=0.1, margins={"int8": 0.03},
)  # fmt: skip
QUANTIZED = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}


class Model:
    """A subject whose engine finds the label at the text's end, or always answers `a`.

    able: the models that find it.
    """

    able: ClassVar[tuple[str, ...]] = ("baseline",)

    def __init__(self, name: str, folder: Path, settings: ModelSettings) -> None:
        self.name, self.folder, self.settings = name, folder, settings
        self.version, self.memory_bytes = "0.29.0", {"baseline": 800, "candidate": 600}[name]
        self.arguments: dict[str, Any] = {"dtype": "auto"}
        self.environment: dict[str, str] = {}
        self.tokenizer = CharacterTokenizer()

    def task(self, spec: TaskSpec, label_offsets: dict[str, float] | None = None) -> Task:
        return bind(spec, self.tokenizer, self.settings.max_model_len, label_offsets)

    def run(self, works: Sequence[EngineWork]) -> Batch:
        return Batch([self._output(work) for work in works], 0.5)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        if function is run_works:
            return self.run(*args)
        return {device_name: "a CPU", kernels: {"linear": self.name}}[function]

    def _output(self, work: EngineWork) -> ScoreOutput:
        assert isinstance(work, ScoreWork)
        (point,) = work.points
        text = "".join(map(chr, work.prompt_token_ids)).rpartition("\x03\x02assistant")[0]
        label = text[-1] if self.name in self.able and text[-1] in LABELS else "a"
        values = tuple(0.0 if id_ == ord(label) else -3.0 for id_ in point.candidates)
        return ScoreOutput((values,), TokenCounts(1, 0, 1))

    def begin_load(self) -> None:
        """Nothing to load."""

    load = unload = begin_load

    def close(self, *, broken_off: bool = False) -> None:
        """Nothing runs."""


def harness(pair: Any, side: Any, suites: Sequence[Suite], general: General) -> HarnessResult:
    """Score as lm-eval does. It takes 10 s to list its tasks, and runs in test_f_gate.py."""
    metrics = {}
    for suite in suites:
        metric = metric_of(suite.spec)
        expected = [example.expected for example in suite.examples]
        rows = metric.rows(pair.answered(side, suite.name).predictions, expected)
        metrics[suite.name] = float(metric.value(rows.sum(axis=0)) or 0.0)
    return HarnessResult(metrics, {})


class Silent:
    def step(self, *_: Any, **__: Any) -> None:
        """Show nothing."""


@pytest.fixture
def request_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Request:
    monkeypatch.setattr(gate, "Subject", Model)
    monkeypatch.setattr(gate, "run_harness", harness)
    for name, config in (("baseline", {}), ("candidate", QUANTIZED)):
        (tmp_path / name).mkdir()
        for file, content in FILES.items():
            (tmp_path / name / file).write_bytes(content)
        (tmp_path / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "candidate" / "model.safetensors").write_bytes(bytes(128))
    examples = tuple(
        Example(f"e{i}", f"e{i}", TaskRequest("letters", f"text {i} {LABELS[i % 3]}"),
                LABELS[i % 3])
        for i in range(300)
    )  # fmt: skip
    settings = Settings().models[0].model_copy(update={"max_model_len": 8192})
    return Request(
        tmp_path / "baseline", tmp_path / "candidate", [Suite("letters", "test", SPEC, examples)],
        settings, {}, General((), None, 0.02), required_speed=0.0, stop_early=True,
        attest_baseline=True,
    )  # fmt: skip


def test_one_run_attests_each_model_with_its_own_verdict(request_: Request, tmp_path: Path) -> None:
    findings = run_gate(request_, Silent())
    own, other = findings.baseline, findings.predicate
    assert own is not None
    # The candidate was hopeless from the first look on; the baseline's test went to its end.
    assert own.tasks["letters"].suite.n == 300
    assert own.tasks["letters"].verdict is Verdict.PASS
    assert own.tasks["letters"].speed is None
    assert other.tasks["letters"].verdict is Verdict.FAIL
    assert own.date == other.date
    assert own.baseline == other.baseline == file_manifest(request_.baseline).root
    assert (own.artifact.precision, other.artifact.precision) == ("16-bit", "int8")
    assert own.artifact.weight_bytes.candidate == 256
    assert other.artifact.weight_bytes.candidate == 128
    assert (own.engine.kernels, other.engine.kernels) == (
        {"linear": "baseline"}, {"linear": "candidate"},
    )  # fmt: skip
    # A probe's answer is that of the model that it is a probe of.
    of_own, of_other = (found.probes["letters"].probes for found in (own, other))
    assert [probe.prompt for probe in of_own] == [probe.prompt for probe in of_other]

    key = make_key(tmp_path)
    signer = load_signer(read_key(key.private), "key")
    out = tmp_path / "attested"
    digest = write_baseline(findings, signer, out, "base")
    assert digest != write_results(findings, signer, request_.candidate, texts=False)
    attested = read_attestation(out / "attestation.json", TrustPolicy((key.public,)))
    assert attested.digest == digest
    verify_files(request_.baseline, attested)


def attested(
    request: Request, monkeypatch: pytest.MonkeyPatch, *able: str
) -> tuple[TaskResult, TaskResult]:
    """Return what a run attests of the baseline and of the candidate. able: find the labels."""
    monkeypatch.setattr(Model, "able", able)
    findings = run_gate(request, Silent())
    assert findings.baseline is not None
    return findings.baseline.tasks["letters"], findings.predicate.tasks["letters"]


def test_what_is_attested_of_the_baseline_does_not_depend_on_the_candidate(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside_a_good_one = attested(request_, monkeypatch, "baseline", "candidate")
    beside_a_stopped_one = attested(request_, monkeypatch, "baseline")
    assert beside_a_good_one[0] == beside_a_stopped_one[0]
    assert beside_a_good_one[0].verdict is Verdict.PASS
    assert beside_a_stopped_one[1].suite.n < beside_a_good_one[1].suite.n == 300

    beside_a_good_one = attested(request_, monkeypatch, "candidate")
    beside_a_stopped_one = attested(request_, monkeypatch)
    assert beside_a_good_one[0] == beside_a_stopped_one[0]
    assert beside_a_good_one[0].verdict is Verdict.FAIL
    # The baseline failed early; the candidate's loss is still against it on every example.
    assert beside_a_good_one[0].suite.n < 300
    assert beside_a_good_one[1].verdict is Verdict.PASS
    assert beside_a_good_one[1].suite.n == 300
    assert beside_a_good_one[1].flips.gained == 200


def test_a_stopped_candidate_is_compared_on_its_own_examples(request_: Request) -> None:
    findings = run_gate(request_, Silent())
    result = findings.predicate.tasks["letters"]
    assert result.suite.n < 300
    assert len(findings.tasks["letters"].outcomes) == result.suite.n
    assert result.reasons[0].startswith(f"stopped after {result.suite.n} examples: its own metric")
    assert result.baseline == 1.0


def test_a_run_that_is_not_asked_to_attests_no_baseline(request_: Request) -> None:
    findings = run_gate(replace(request_, attest_baseline=False), Silent())
    assert findings.baseline is None
    # A task on which the candidate can only fail is stopped as before.
    assert findings.predicate.tasks["letters"].suite.n < 300
