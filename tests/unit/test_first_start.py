"""The first start: its steps, the files that it keeps, and the message of a failing step."""

import sys
import threading
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest

from serving.artifacts.bundled_choice import (
    BundledChoice,
    baseline_attestation,
    choice_file,
    choose_bundled,
    read_choice,
    write_choice,
)
from serving.artifacts.checkpoint import bundled_artifact, locate
from serving.artifacts.load_check import LoadCheck
from serving.artifacts.manifest import file_manifest
from serving.artifacts.signing_key import generate_key
from serving.artifacts.trust import verify_files, vllm_version
from serving.commands.child import Children
from serving.commands.first_start import (
    INSTALL,
    WRITE,
    FirstStart,
    Origin,
    development_key,
    gating,
    quantizing,
    trusting_bundled,
)
from serving.commands.serve import CheckedSettings, task_outcomes
from serving.commands.timeline import Timeline, report_lines
from serving.contracts.attestation import Pair, Speed, Verdict
from serving.contracts.errors import AttestationRefused, EngineFailure, QuantizationFailed
from serving.contracts.model_status import Progress
from serving.contracts.settings import ModelSettings, Settings
from serving.contracts.task_spec import TaskSpec

from ..built_in_tasks import BUILT_IN_TASKS
from .attested import attest, predicate, result, write_model
from .patience import GUARD_S

FAIL = Verdict.FAIL


class Subcommands:
    """Replaces the subcommands: records the calls and writes the minimum of their files."""

    def __init__(self, state: Path, specs: dict[str, TaskSpec]) -> None:
        self.state = state
        self.specs = specs
        self.called: list[str] = []
        self.tested: list[str] = []
        self.gate_signs = True

    def run(self, arguments: Any, *_: Any, **__: Any) -> str:
        name = arguments[0]
        self.called.append(name)
        if name == "keygen":
            generate_key(Path(arguments[arguments.index("--out") + 1]))
        elif name == "quantize":
            write_model(Path(arguments[arguments.index("--out") + 1]))
        elif name == "gate" and self.gate_signs:
            self.tested = [b for a, b in pairwise(arguments) if a == "--task"]
            folder = Path(arguments[arguments.index("--candidate") + 1])
            self.sign(folder, {name: result(self.specs[name]) for name in self.tested})
            assert arguments[arguments.index("--attest-baseline") + 1] == str(
                baseline_attestation(folder)
            )
        return "the last words"

    def stop(self) -> None:
        """Nothing runs beside the test."""

    def sign(
        self,
        folder: Path,
        tasks: dict[str, Any],
        in_16_bits: dict[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        """Attest both models as of one run. in_16_bits: the 16-bit model's tasks, if others."""
        key = development_key(self.state)
        pair: Any = type("Pair", (), {"private": key})()
        found = predicate(folder, tasks, **changes)
        attest(folder, pair, found)
        bits_16 = write_16_bits(self.state)
        artifact = found.artifact.model_copy(
            update={"precision": "16-bit", "recipe": None, "files": file_manifest(bits_16).files}
        )
        own = found.model_copy(
            update={"artifact": artifact, "tasks": tasks if in_16_bits is None else in_16_bits}
        )
        envelope = attest(bits_16, pair, own)
        baseline_attestation(folder).mkdir(exist_ok=True)
        envelope.rename(baseline_attestation(folder) / envelope.name)


def write_16_bits(state: Path) -> Path:
    folder = state / "models" / "smollm2-135m-instruct"
    if not folder.exists():
        write_model(folder)
        (folder / "model.safetensors").write_bytes(bytes(512))
    return folder


def speed(ratio: float) -> Speed:
    return Speed(
        examples_per_s=Pair(baseline=10.0, candidate=10.0 * ratio), ratio=ratio,
        lower=ratio - 0.1, upper=ratio + 0.1, blocks=4, required=0.8,
    )  # fmt: skip


@pytest.fixture
def commands(
    tmp_path: Path, specs: dict[str, TaskSpec], monkeypatch: pytest.MonkeyPatch
) -> Subcommands:
    found = Subcommands(tmp_path, specs)
    monkeypatch.setattr("serving.commands.first_start.Children", lambda: found)
    monkeypatch.setattr("serving.artifacts.checkpoint.is_materialized", lambda models: True)
    return found


def make(
    commands: Subcommands,
    specs: Mapping[str, TaskSpec] | None = None,
    prefer: Literal["speed", "memory"] = "speed",
) -> Settings:
    (default,) = Settings().models
    model = default.model_copy(update={"prefer": prefer})
    settings = Settings(state=commands.state, models=(model,))
    first = FirstStart(settings, specs or commands.specs, Origin(None, None))
    (model,) = settings.models
    if first.missing(model):
        steps = first.expected_s(model)
        timeline = Timeline(steps, lambda progress: None)
        with first.begun(timeline, steps):
            first.make(model, timeline)
        assert not first.missing(model)
    first.choose(model)
    return settings


def test_everything_is_made_once_and_its_key_is_trusted(commands: Subcommands) -> None:
    settings = make(commands)
    assert sorted(commands.called) == ["-c", "gate", "keygen", "quantize"]
    public = development_key(commands.state).with_name("development.pub")
    assert trusting_bundled(settings).attestation.trusted_keys == (public.resolve(),)
    commands.called.clear()
    make(commands)
    assert commands.called == []


def test_a_task_or_an_engine_that_changed_is_gated_again(commands: Subcommands) -> None:
    make(commands)
    folder = bundled_artifact(commands.state, "int8-w8a8")
    changed = result(commands.specs["topic"], spec_digest="sha256:older")
    commands.sign(folder, {"topic": changed})
    commands.called.clear()
    make(commands)
    assert commands.called == ["gate"]
    engine = predicate(folder, {}).engine
    assert vllm_version().startswith(engine.major)
    commands.sign(folder, {}, engine=engine.model_copy(update={"version": "0.28.0"}))
    commands.called.clear()
    make(commands)
    assert commands.called == ["gate"]


def test_a_task_that_was_replaced_is_left_to_its_owner(commands: Subcommands) -> None:
    make(commands)
    assert commands.tested == list(BUILT_IN_TASKS)
    (bundled_artifact(commands.state, "int8-w8a8") / "attestation.json").unlink()
    own = commands.specs["topic"].model_copy(update={"instruction": "Another question?"})
    make(commands, {**commands.specs, "topic": own})
    assert commands.tested == [name for name in BUILT_IN_TASKS if name != "topic"]


def test_a_gate_without_a_signature_is_an_error_whatever_its_status(commands: Subcommands) -> None:
    commands.gate_signs = False
    with pytest.raises(EngineFailure, match="wrote no valid attestation:\nthe last words"):
        make(commands)


def test_a_start_says_which_served_tasks_gain_no_speed(commands: Subcommands) -> None:
    settings = make(commands, prefer="memory")
    tasks = {
        "topic": result(commands.specs["topic"], speed=speed(0.98)),
        "sentiment": result(commands.specs["sentiment"], speed=speed(1.3)),
        "ner": result(commands.specs["ner"], Verdict.FAIL, speed=speed(0.5)),
    }
    commands.sign(bundled_artifact(commands.state, "int8-w8a8"), tasks)
    checked = CheckedSettings(trusting_bundled(settings), commands.specs, Origin(None, None))
    found = task_outcomes(checked, {})
    assert found.served == ["sentiment", "topic"]
    assert sorted(found.refused) == ["ner", "translation"]
    assert list(found.not_faster) == ["topic"]
    assert (
        "0.98 (0.88 to 1.08) of the baseline's: not shown to be faster"
        in (found.not_faster["topic"])
    )
    (model,) = settings.models
    failed = task_outcomes(checked, {model.id: "no memory"})
    assert set(failed.refused.values()) == {"no memory"}
    assert failed.served == []


@pytest.mark.parametrize(
    ("ratio", "prefer", "serves"),
    [(1.3, "speed", "int8"), (1.05, "speed", "16-bit"), (0.9, "speed", "16-bit"),
     (0.9, "memory", "int8")],
)  # fmt: skip
def test_the_better_of_both_attested_models_serves(
    commands: Subcommands, ratio: float, prefer: Literal["speed", "memory"], serves: str
) -> None:
    """The 16-bit model serves unless the quantized one is faster, or memory is preferred."""
    make(commands)
    artifact = bundled_artifact(commands.state, "int8-w8a8")
    topic = commands.specs["topic"]
    commands.sign(
        artifact,
        {"topic": result(topic, speed=speed(ratio)), "ner": result(commands.specs["ner"], FAIL)},
        {"topic": result(topic), "ner": result(commands.specs["ner"], FAIL)},
    )
    settings = make(commands, prefer=prefer)
    (model,) = settings.models
    trusting = trusting_bundled(settings)
    checkpoint = locate(model, commands.state)
    check = LoadCheck.of(trusting, model, checkpoint)
    found = check.attestation()
    assert found is not None
    assert found.predicate.artifact.precision == serves
    # What is loaded is what that attestation covers.
    verify_files(checkpoint.folder(), found)
    outcomes = task_outcomes(CheckedSettings(trusting, commands.specs, Origin(None, None)), {})
    assert outcomes.served == ["topic"]
    assert (model.id in outcomes.in_16_bits) == (serves == "16-bit")


def test_a_model_that_did_not_pass_a_task_serves_it_under_no_choice(
    commands: Subcommands,
) -> None:
    """Whatever the unsigned choice says, the loaded model's own attestation decides."""
    make(commands)
    artifact = bundled_artifact(commands.state, "int8-w8a8")
    topic = commands.specs["topic"]
    commands.sign(artifact, {"topic": result(topic)}, {"topic": result(topic, FAIL)})
    settings = make(commands)
    checked = CheckedSettings(trusting_bundled(settings), commands.specs, Origin(None, None))
    assert task_outcomes(checked, {}).served == ["topic"]
    write_choice(artifact, BundledChoice(is_quantized=False, reason="forged"))
    assert task_outcomes(checked, {}).served == []
    # A 16-bit attestation in place of the quantized model's is of other files.
    (model,) = settings.models
    envelope = baseline_attestation(artifact) / "attestation.json"
    envelope.replace(artifact / "attestation.json")
    choice_file(artifact).unlink()
    check = LoadCheck.of(checked.settings, model, locate(model, commands.state))
    found = check.attestation()
    assert found is not None
    with pytest.raises(AttestationRefused, match="not the model that was attested"):
        verify_files(artifact, found)


def test_attestations_of_two_runs_are_made_again(commands: Subcommands) -> None:
    """A 16-bit attestation that is older than one accepted before would be refused at load."""
    make(commands)
    artifact = bundled_artifact(commands.state, "int8-w8a8")
    older = baseline_attestation(artifact) / "attestation.json"
    content = older.read_bytes()
    commands.sign(artifact, {"topic": result(commands.specs["topic"])})
    commands.called.clear()
    make(commands)
    assert commands.called == []
    older.write_bytes(content)
    make(commands)
    assert commands.called == ["gate"]


@pytest.mark.parametrize(
    ("quantized", "bits_16", "prefer", "is_quantized"),
    [
        ({"topic": 1.3, "ner": 1.2}, ["ner", "topic"], "speed", True),
        ({"topic": 1.3, "ner": 1.0}, ["ner", "topic"], "speed", False),
        ({"topic": None}, ["topic"], "speed", False),
        ({"topic": 1.3}, ["ner", "topic"], "speed", False),
        ({"topic": 0.9, "ner": 0.9}, ["topic"], "speed", True),
        ({}, ["topic"], "memory", False),
        ({}, [], "memory", False),
        ({"topic": 0.9}, ["ner", "topic"], "memory", True),
    ],
)
def test_the_choice_between_two_attested_models(
    tmp_path: Path,
    specs: dict[str, TaskSpec],
    quantized: dict[str, float | None],
    bits_16: list[str],
    prefer: Literal["speed", "memory"],
    is_quantized: bool,
) -> None:
    """More passed tasks come first, then speed on each of them."""
    failed = {name: result(specs[name], FAIL) for name in ("topic", "ner")}
    of_quantized = {
        name: result(specs[name], speed=None if ratio is None else speed(ratio))
        for name, ratio in quantized.items()
    }
    of_16_bits = {name: result(specs[name]) for name in bits_16}
    folder = write_model(tmp_path / "model")
    choice = choose_bundled(
        predicate(folder, failed | of_quantized), predicate(folder, failed | of_16_bits), prefer
    )
    assert choice.is_quantized == is_quantized
    assert choice.reason
    write_choice(folder, choice)
    assert read_choice(folder) == choice


def test_other_models_need_nothing(commands: Subcommands, tmp_path: Path) -> None:
    own = ModelSettings.model_validate(
        {"id": "own", "source": str(tmp_path), "accelerator": {"kind": "cpu"}}
    )
    settings = Settings(state=commands.state, models=(own,))
    assert trusting_bundled(settings) == settings
    assert not FirstStart(settings, commands.specs, Origin(None, None)).missing(own)


def test_the_steps_that_are_left_are_known_before(
    commands: Subcommands, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(state=commands.state)
    (model,) = settings.models
    first = FirstStart(settings, commands.specs, Origin(None, None))
    recipe = "int8-w8a8"
    assert list(first.expected_s(model)) == [INSTALL, quantizing(recipe), gating(recipe)]
    monkeypatch.setattr("serving.artifacts.checkpoint.is_materialized", lambda models: False)
    assert next(iter(first.expected_s(model))) == WRITE
    write_model(bundled_artifact(commands.state, recipe))
    assert list(first.expected_s(model)) == [WRITE, gating(recipe)]


def test_a_failing_step_shows_its_last_lines_without_events() -> None:
    code = (
        'import sys\nprint(\'{"event": "layer", "index": 1, "total": 2}\')\n'
        "print('what went wrong', file=sys.stderr)\nsys.exit(4)"
    )
    seen: list[dict[str, Any]] = []
    with pytest.raises(QuantizationFailed) as caught:
        Children().run(
            ["-c", code], QuantizationFailed, "it", seen.append, program=[sys.executable]
        )
    assert "it could not be made (status 4):\nwhat went wrong" in caught.value.message
    assert seen == [{"event": "layer", "index": 1, "total": 2}]


def test_children_are_ended_together_and_none_is_started_afterwards() -> None:
    children = Children()
    began, ended = threading.Event(), threading.Event()
    code = 'import time\nprint(\'{"event": "step"}\', flush=True)\ntime.sleep(60)'

    def run() -> None:
        with pytest.raises(QuantizationFailed, match=r"status -15"):
            children.run(
                ["-c", code], QuantizationFailed, "it", lambda event: began.set(),
                program=[sys.executable],
            )  # fmt: skip
        ended.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert began.wait(GUARD_S)
    children.stop()
    assert ended.wait(GUARD_S)
    thread.join()
    with pytest.raises(EngineFailure, match="stopped"):
        children.run(["-c", "1"], QuantizationFailed, "it", program=[sys.executable])


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_share_and_time_left_follow_the_pace_of_the_machine() -> None:
    clock, seen = Clock(), list[Progress]()
    timeline = Timeline({"one": 10.0, "two": 30.0}, seen.append, clock)
    assert timeline.progress() == Progress("one", 0.0, 40.0)
    with timeline.step("one"):
        clock.now_s = 5.0
        assert timeline.progress() == Progress("one", 0.125, 35.0)
        # Twice as slow as expected: the rest takes twice as long.
        clock.now_s = 20.0
    assert timeline.progress() == Progress("two", 0.25, 60.0)
    with timeline.step("two") as say:
        say(0.5, "block 3 of 6")
        assert seen[-1] == Progress("two: block 3 of 6", 0.625, pytest.approx(12.0))
        clock.now_s = 40.0
    assert timeline.progress() == Progress("done", 1.0, 0.0)
    report = timeline.report()
    assert report == {
        "total_s": 40.0,
        "steps": [
            {"step": "one", "began_s": 0.0, "took_s": 20.0},
            {"step": "two", "began_s": 20.0, "took_s": 20.0},
        ],
    }
    assert "   20.0 s  one (began at 0.0 s)" in "\n".join(report_lines(report))


def test_a_step_without_events_is_unfinished_until_its_end() -> None:
    clock = Clock()
    timeline = Timeline({"one": 10.0}, lambda progress: None, clock)
    with timeline.step("one"):
        clock.now_s = 100.0
        assert timeline.progress().share == pytest.approx(0.95)
