"""The first start with a bundled model: write it, quantize it, test it, sign the result.

Each step is a subcommand in its own process. Files that exist and are still valid are reused.
"""

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.commands.child import Children, Observe
from serving.commands.timeline import ReportProgress, Timeline
from serving.contracts.errors import (
    AttestationRefused,
    EngineFailure,
    InvalidKey,
    MaterializationFailed,
    QuantizationFailed,
)

if TYPE_CHECKING:
    from serving.artifacts.trust import Attestation
    from serving.contracts.settings import ModelSettings, Settings
    from serving.contracts.task_spec import TaskSpec

# The result is signed with any verdict, because serving reads the verdicts there.
_GATE_EXITS = (0, 1, 3)
_SHOWN = 2000
# Of the default 256: a third of the time. The gate decides whether the result is good enough; with
# 32 it cannot tell whether `topic` has lost more than its margin.
_SAMPLES = 96
_INSTALL = (
    "from quantize.environment import quantize_python\n"
    "quantize_python(gpu=False, given=None, announce=print)"
)

WRITE = "writing the bundled model in 16 bits"
INSTALL = "installing the quantization libraries"
# Measured on two cores.
_WRITE_S, _INSTALL_S, _QUANTIZE_S, _GATE_S = 25.0, 40.0, 90.0, 130.0


def quantizing(recipe: str) -> str:
    """Return the name of the step that quantizes with a recipe."""
    return f"quantizing the model ({recipe})"


def gating(recipe: str) -> str:
    """Return the name of the step that gates what a recipe made."""
    return f"testing the {recipe} model against the 16-bit model"


@dataclass(frozen=True, slots=True)
class Origin:
    """The sources of the settings, for subcommands. config: the file, None without one."""

    config: Path | None
    tasks_dir: Path | None


def development_key(state: Path) -> Path:
    """Return the private key that signs bundled models on this machine."""
    return state / "keys" / "development"


def trusting_bundled(settings: "Settings") -> "Settings":
    """Return settings that trust this machine's development key where a bundled model needs it."""
    from serving.artifacts.trust import public_key_path
    from serving.contracts.settings import bundled_recipe

    if not any(bundled_recipe(model.source) for model in settings.models):
        return settings
    public = public_key_path(development_key(settings.state)).resolve()
    trusted = (*settings.attestation.trusted_keys, public)
    attestation = settings.attestation.model_copy(update={"trusted_keys": trusted})
    return settings.model_copy(update={"attestation": attestation})


class FirstStart:
    """Makes missing bundled models.

    specs: every task by name. timeline: measures the steps, which `expected_s` lists.
    """

    def __init__(
        self, settings: "Settings", specs: "Mapping[str, TaskSpec]", origin: Origin
    ) -> None:
        self._settings = settings
        self._specs = specs
        self._origin = origin
        self._children = Children()
        self._begun: dict[str, Future[None]] = {}

    def missing(self, model: "ModelSettings") -> bool:
        """Return whether files of a model have to be made. False for models of the user's own."""
        from serving.artifacts.checkpoint import bundled_artifact, is_materialized
        from serving.contracts.settings import BUNDLED_MODEL, bundled_recipe

        state, recipe = self._settings.state, bundled_recipe(model.source)
        if recipe is None:
            return model.source == BUNDLED_MODEL and not is_materialized(state / "models")
        return self._attested(bundled_artifact(state, recipe), model) is None

    def choose(self, model: "ModelSettings") -> None:
        """Store which model serves under a bundled model's id: the quantized or the 16-bit one.

        For a model that is not missing. Blocking, milliseconds.
        """
        from serving.artifacts.bundled_choice import BundledChoice, choose_bundled, write_choice
        from serving.artifacts.checkpoint import bundled_artifact
        from serving.contracts.settings import bundled_recipe

        recipe = bundled_recipe(model.source)
        if recipe is None:
            return
        artifact = bundled_artifact(self._settings.state, recipe)
        found = self._attested(artifact, model)
        if found is None:
            return
        quantized, bits_16 = found
        if bits_16 is None:
            choice = BundledChoice(is_quantized=True, reason="models.attestation names its own")
        else:
            choice = choose_bundled(quantized.predicate, bits_16.predicate, model.prefer)
        write_choice(artifact, choice)

    def expected_s(self, model: "ModelSettings") -> dict[str, float]:
        """Return the steps that a missing model needs, with the seconds that each may take."""
        from serving.artifacts.checkpoint import bundled_artifact, is_materialized
        from serving.contracts.settings import bundled_recipe

        state, recipe = self._settings.state, bundled_recipe(model.source)
        needed = {} if is_materialized(state / "models") else {WRITE: _WRITE_S}
        if recipe is not None:
            if not _is_quantized(bundled_artifact(state, recipe)):
                needed |= {INSTALL: _INSTALL_S, quantizing(recipe): _QUANTIZE_S}
            needed[gating(recipe)] = _GATE_S
        return needed

    @contextmanager
    def begun(self, timeline: Timeline, steps: "Mapping[str, float]") -> Iterator[None]:
        """Run the steps without a prerequisite during the body; end all steps at its end."""
        early = {WRITE: self._write, INSTALL: self._install}
        with ThreadPoolExecutor(max_workers=len(early), thread_name_prefix="first-start") as pool:
            for name, work in early.items():
                if name in steps:
                    self._begun[name] = pool.submit(self._measured, timeline, name, work)
            try:
                yield
            finally:
                self._children.stop()

    def make(self, model: "ModelSettings", timeline: Timeline) -> None:
        """Make a missing model's files. Blocking: minutes.

        Raises MaterializationFailed, QuantizationFailed, EngineFailure.
        """
        from serving.artifacts.checkpoint import bundled_artifact
        from serving.contracts.settings import bundled_recipe

        if WRITE in self._begun:
            self._begun[WRITE].result()
        recipe = bundled_recipe(model.source)
        if recipe is None:
            return
        folder = bundled_artifact(self._settings.state, recipe)
        if not _is_quantized(folder):
            if INSTALL in self._begun:
                self._begun[INSTALL].result()
            with timeline.step(quantizing(recipe)) as report:
                self._quantize(folder, recipe, report)
        if self._attested(folder, model) is None:
            self._make_key()
            with timeline.step(gating(recipe)) as report:
                self._gate(folder, model, report)
        self.choose(model)

    def _measured(self, timeline: Timeline, name: str, work: Any) -> None:
        with timeline.step(name):
            work()

    def _write(self) -> None:
        # In its own process, because this one would never free torch and the weights.
        arguments = ["materialize", "--state", str(self._settings.state)]
        self._children.run(arguments, MaterializationFailed, "the bundled model")

    def _install(self) -> None:
        self._children.run(
            ["-c", _INSTALL],
            QuantizationFailed,
            "the environment of the quantization libraries",
            program=[sys.executable],
        )

    def _make_key(self) -> None:
        from serving.artifacts.trust import public_key_path

        key = development_key(self._settings.state)
        if not public_key_path(key).is_file():
            key.unlink(missing_ok=True)
            self._children.run(["keygen", "--out", str(key)], EngineFailure, "the development key")

    def _quantize(self, folder: Path, recipe: str, report: ReportProgress) -> None:
        from serving.contracts.settings import BUNDLED_MODEL

        command = ["quantize", BUNDLED_MODEL, "--recipe", recipe, "--out", str(folder)]
        command += ["--samples", str(_SAMPLES)]
        self._children.run(
            [*command, "--state", str(self._settings.state), "--json"],
            QuantizationFailed,
            "the quantized model",
            _observer(report),
        )

    def _gate(self, folder: Path, model: "ModelSettings", report: ReportProgress) -> None:
        from serving.artifacts.bundled_choice import baseline_attestation
        from serving.artifacts.checkpoint import materialize_bundled

        state = self._settings.state
        command = ["gate", "--baseline", str(materialize_bundled(state / "models"))]
        command += ["--candidate", str(folder), "--suite", "builtin"]
        command += ["--key", str(development_key(state)), "--model", model.id]
        command += ["--attest-baseline", str(baseline_attestation(folder))]
        command += ["--stop-early", "--json"]
        for name in _unchanged(self._specs):
            command += ["--task", name]
        for flag, value in (("--config", self._origin.config),
                            ("--tasks-dir", self._origin.tasks_dir)):  # fmt: skip
            if value is not None:
                command += [flag, str(value)]
        output = self._children.run(
            command, EngineFailure, "the gate's attestation", _observer(report), _GATE_EXITS
        )
        if self._attested(folder, model) is None:
            # A crash has the exit status of a failed test.
            raise EngineFailure(
                f"the gate wrote no valid attestation:\n{output[-_SHOWN:]}",
                fix=f"narrowgate {' '.join(command)} shows the whole error",
            )

    def _attested(
        self, artifact: Path, model: "ModelSettings"
    ) -> "tuple[Attestation, Attestation | None] | None":
        """Return what is attested of the quantized and of the 16-bit model, by one gate run.

        None unless both attestations are there and hold. The 16-bit model's is None where the
        settings name the quantized model's attestation.
        """
        from serving.artifacts.bundled_choice import baseline_attestation

        quantized = self._still_holding(artifact)
        if quantized is None or model.attestation is not None:
            return None if quantized is None else (quantized, None)
        bits_16 = self._still_holding(baseline_attestation(artifact))
        # An older one than another that was accepted for this id would be refused at load.
        if bits_16 is None or bits_16.predicate.date != quantized.predicate.date:
            return None
        return quantized, bits_16

    def _still_holding(self, folder: Path) -> "Attestation | None":
        """Return an attestation that is of this engine version and of the tasks as they are."""
        from serving.artifacts.trust import (
            TrustPolicy,
            attestation_path,
            public_key_path,
            read_attestation,
            refuse_other_engine,
            vllm_version,
        )

        public = public_key_path(development_key(self._settings.state))
        try:
            found = read_attestation(attestation_path(folder, None), TrustPolicy((public,)))
            refuse_other_engine(found, "vllm", vllm_version())
        except (AttestationRefused, InvalidKey):
            return None
        holds = all(
            name in self._specs and self._specs[name].digest() == result.spec_digest
            for name, result in found.predicate.tasks.items()
        )
        return found if holds else None


def _is_quantized(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _unchanged(specs: "Mapping[str, TaskSpec]") -> list[str]:
    """Return the built-in tasks that no file replaces; the built-in suites fit no others."""
    from serving.tasks.catalog import load_specs

    shipped = load_specs(None)
    return sorted(
        name
        for name, spec in shipped.items()
        if name in specs and specs[name].digest() == spec.digest()
    )


def _observer(report: ReportProgress) -> Observe:
    """Return the function that turns events of a subcommand into its step's progress."""
    share: float | None = None

    def observe(event: dict[str, Any]) -> None:
        nonlocal share
        if isinstance(reported := event.get("share"), int | float):
            share = max(share or 0.0, reported)
        report(share, event.get("step"))

    return observe
