"""The first start: which steps are taken, what is kept, and what a failing step says."""

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from evals.signing import generate_key
from serving.artifacts.checkpoint import bundled_artifact
from serving.artifacts.versions import vllm_version
from serving.commands import first_start
from serving.commands.first_start import Origin, development_key, prepare_bundled
from serving.contracts.errors import EngineFailure, QuantizationFailed
from serving.contracts.settings import ModelSettings, Settings
from serving.contracts.task_spec import TaskSpec

from .attested import attest, predicate, result, write_model


class Steps:
    """Takes the place of the subcommands: notes what was called and does the least of it."""

    def __init__(self, state: Path, specs: dict[str, TaskSpec]) -> None:
        self.state = state
        self.specs = specs
        self.called: list[str] = []
        self.tested: list[str] = []
        self.gate_signs = True

    def __call__(self, arguments: Any, *_: Any) -> str:
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
        return "the last words"

    def sign(self, folder: Path, tasks: dict[str, Any], **changes: Any) -> None:
        key = development_key(self.state)
        pair = type("Pair", (), {"private": key})()
        attest(folder, pair, predicate(folder, tasks, **changes))


@pytest.fixture
def steps(tmp_path: Path, specs: dict[str, TaskSpec], monkeypatch: pytest.MonkeyPatch) -> Steps:
    found = Steps(tmp_path, specs)
    monkeypatch.setattr(first_start, "_run", found)
    monkeypatch.setattr("serving.artifacts.checkpoint.is_materialized", lambda models: True)
    return found


def prepare(steps: Steps) -> Settings:
    return prepare_bundled(Settings(state=steps.state), steps.specs, Origin(None, None))


def test_everything_is_made_once_and_its_key_is_trusted(steps: Steps) -> None:
    settings = prepare(steps)
    assert steps.called == ["keygen", "quantize", "gate"]
    public = development_key(steps.state).with_name("development.pub")
    assert settings.attestation.trusted_keys == (public.resolve(),)
    steps.called.clear()
    assert prepare(steps) == settings
    assert steps.called == []


def test_a_task_or_an_engine_that_changed_is_gated_again(steps: Steps) -> None:
    prepare(steps)
    folder = bundled_artifact(steps.state, "int8-w8a8")
    changed = result(steps.specs["topic"], spec_digest="sha256:older")
    steps.sign(folder, {"topic": changed})
    steps.called.clear()
    prepare(steps)
    assert steps.called == ["gate"]
    engine = predicate(folder, {}).engine
    assert vllm_version().startswith(engine.major)
    steps.sign(folder, {}, engine=engine.model_copy(update={"version": "0.28.0"}))
    steps.called.clear()
    prepare(steps)
    assert steps.called == ["gate"]


def test_a_task_that_was_replaced_is_left_to_its_owner(steps: Steps) -> None:
    prepare(steps)
    assert steps.tested == ["ner", "sentiment", "topic", "translation"]
    (bundled_artifact(steps.state, "int8-w8a8") / "attestation.json").unlink()
    own = steps.specs["topic"].model_copy(update={"instruction": "Another question?"})
    prepare_bundled(Settings(state=steps.state), {**steps.specs, "topic": own}, Origin(None, None))
    assert steps.tested == ["ner", "sentiment", "translation"]


def test_a_gate_that_signs_nothing_is_an_error_whatever_its_status(steps: Steps) -> None:
    steps.gate_signs = False
    with pytest.raises(EngineFailure, match="signed nothing that holds:\nthe last words"):
        prepare(steps)


def test_other_models_need_nothing(steps: Steps, tmp_path: Path) -> None:
    own = ModelSettings.model_validate(
        {"id": "own", "source": str(tmp_path), "accelerator": {"kind": "cpu"}}
    )
    settings = Settings(state=steps.state, models=(own,))
    assert prepare_bundled(settings, steps.specs, Origin(None, None)) == settings
    assert steps.called == []


def test_a_failing_step_shows_its_last_words_and_events_are_no_words() -> None:
    code = (
        'import sys\nprint(\'{"event": "layer", "index": 1, "total": 2}\')\n'
        "print('what went wrong', file=sys.stderr)\nsys.exit(4)"
    )
    seen: list[dict[str, Any]] = []
    with pytest.raises(QuantizationFailed) as caught:
        first_start._run(
            ["-c", code], QuantizationFailed, "it", seen.append, program=[sys.executable]
        )
    assert "it could not be made (status 4):\nwhat went wrong" in caught.value.message
    assert seen == [{"event": "layer", "index": 1, "total": 2}]
