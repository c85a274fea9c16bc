"""The first start with a bundled model: write it, quantize it, gate it, sign what was found.

Each step is a subcommand in a process of its own, as a user or a CI job would run it; what is there
and still holds is kept.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.commands.progress import step
from serving.contracts.errors import (
    AttestationRefused,
    EngineFailure,
    InvalidKey,
    MaterializationFailed,
    QuantizationFailed,
)

if TYPE_CHECKING:
    from serving.contracts.settings import Settings
    from serving.contracts.task_spec import TaskSpec

# Whatever the verdicts, what was found is signed: serving reads it there.
_GATE_EXITS = (0, 1, 3)
_STOP_S = 10.0
_SHOWN = 2000


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the settings came from, to be handed on. config: the file, None without one."""

    config: Path | None
    tasks_dir: Path | None


def development_key(state: Path) -> Path:
    """Return the private key that signs bundled models on this machine."""
    return state / "keys" / "development"


def prepare_bundled(
    settings: "Settings", specs: "dict[str, TaskSpec]", origin: Origin
) -> "Settings":
    """Make what the settings' bundled models need and return the settings that trust it.

    Blocking: ten minutes on two cores the first time, seconds afterwards.
    Raises MaterializationFailed, QuantizationFailed, EngineFailure.
    """
    from serving.artifacts.trust import public_key_path
    from serving.contracts.settings import BUNDLED_MODEL, bundled_recipe

    recipes = {
        model.id: recipe
        for model in settings.models
        if (recipe := bundled_recipe(model.source)) is not None
    }
    if recipes or any(model.source == BUNDLED_MODEL for model in settings.models):
        _materialize(settings.state)
    if not recipes:
        return settings
    key = development_key(settings.state)
    public = public_key_path(key)
    if not public.is_file():
        key.unlink(missing_ok=True)
        _run(["keygen", "--out", str(key)], EngineFailure, "the development key")
    for model_id, recipe in recipes.items():
        _quantize(settings.state, recipe)
        _gate(settings.state, model_id, recipe, specs, origin)
    trusted = (*settings.attestation.trusted_keys, public.resolve())
    attestation = settings.attestation.model_copy(update={"trusted_keys": trusted})
    return settings.model_copy(update={"attestation": attestation})


def _materialize(state: Path) -> None:
    from serving.artifacts.checkpoint import is_materialized

    if is_materialized(state / "models"):
        return
    # In a process of its own: torch and the weights would stay in this one for good.
    with step("first start: writing the bundled model in 16 bits"):
        _run(
            ["materialize", "--state", str(state)],
            MaterializationFailed,
            "the bundled model",
        )


def _quantize(state: Path, recipe: str) -> None:
    from serving.artifacts.checkpoint import bundled_artifact
    from serving.contracts.settings import BUNDLED_MODEL

    folder = bundled_artifact(state, recipe)
    if (folder / "config.json").is_file():
        return
    command = ["quantize", BUNDLED_MODEL, "--recipe", recipe, "--out", str(folder)]
    with step(f"first start: quantizing it with {recipe}") as say:
        _run(
            [*command, "--state", str(state), "--json"],
            QuantizationFailed,
            "the quantized model",
            lambda event: say(_quantizing(recipe, event)),
        )


def _gate(
    state: Path, model_id: str, recipe: str, specs: "dict[str, TaskSpec]", origin: Origin
) -> None:
    from serving.artifacts.checkpoint import bundled_artifact
    from serving.artifacts.trust import public_key_path

    folder, key = bundled_artifact(state, recipe), development_key(state)
    public = public_key_path(key)
    if _still_holds(folder, public, specs):
        return
    command = ["gate", "--baseline", str(_baseline(state)), "--candidate", str(folder)]
    command += ["--suite", "builtin", "--key", str(key), "--model", model_id]
    command += ["--stop-early", "--json"]
    for name in _unchanged(specs):
        command += ["--task", name]
    for flag, value in (("--config", origin.config), ("--tasks-dir", origin.tasks_dir)):
        if value is not None:
            command += [flag, str(value)]
    with step("first start: testing it against the 16-bit model") as say:
        output = _run(
            command,
            EngineFailure,
            "the gate's attestation",
            lambda event: say(_gating(event)),
            _GATE_EXITS,
        )
    if not _still_holds(folder, public, specs):
        # A crash has the exit status of a failed test.
        raise EngineFailure(
            f"the gate signed nothing that holds:\n{output[-_SHOWN:]}",
            fix=f"narrowgate {' '.join(command)} shows the whole error",
        )


def _unchanged(specs: "dict[str, TaskSpec]") -> list[str]:
    """Return the tasks that are as they come: the built-in suites were written for those."""
    from serving.tasks.catalog import load_specs

    shipped = load_specs(None)
    return sorted(
        name
        for name, spec in shipped.items()
        if name in specs and specs[name].digest() == spec.digest()
    )


def _baseline(state: Path) -> Path:
    from serving.artifacts.checkpoint import materialize_bundled

    return materialize_bundled(state / "models")


def _still_holds(folder: Path, public: Path, specs: "dict[str, TaskSpec]") -> bool:
    """Return whether the attestation speaks of this engine and of the tasks as they are now."""
    from serving.artifacts.trust import (
        TrustPolicy,
        attestation_path,
        read_attestation,
        refuse_other_engine,
    )
    from serving.artifacts.versions import vllm_version

    try:
        found = read_attestation(attestation_path(folder, None), TrustPolicy((public,)))
        refuse_other_engine(found, "vllm", vllm_version())
    except (AttestationRefused, InvalidKey):
        return False
    return all(
        name in specs and specs[name].digest() == result.spec_digest
        for name, result in found.predicate.tasks.items()
    )


def _run(
    arguments: Sequence[str],
    failure: type[MaterializationFailed | QuantizationFailed | EngineFailure],
    what: str,
    observe: Callable[[dict[str, Any]], None] | None = None,
    expected: Sequence[int] = (0,),
    program: Sequence[str] = (sys.executable, "-m", "serving.cli"),
) -> str:
    """Run a subcommand to its end and return what it printed; end it when we are interrupted.

    observe: told each event that the subcommand writes, one JSON object a line.
    """
    process = subprocess.Popen(  # noqa: S603  # our own program
        [*program, *arguments],
        env={**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines: list[str] = []
    assert process.stdout is not None
    try:
        for line in process.stdout:
            event = _event(line)
            if event is None:
                lines.append(line)
            elif observe is not None:
                observe(event)
        status = process.wait()
    except BaseException:
        process.terminate()
        try:
            process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    finally:
        process.stdout.close()
    if status not in expected:
        raise failure(
            f"{what} could not be made (status {status}):\n{''.join(lines).strip()[-_SHOWN:]}",
            fix=f"narrowgate {' '.join(arguments)} shows the whole error",
        )
    return "".join(lines).strip()


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def _quantizing(recipe: str, event: dict[str, Any]) -> str:
    base = f"first start: quantizing it with {recipe}"
    if event["event"] == "layer":
        return f"{base}: block {event['index']} of {event['total']}"
    return f"{base}: {event['message']}" if "message" in event else base


def _gating(event: dict[str, Any]) -> str:
    share = 100 * int(event["done"]) // max(int(event["total"]), 1)
    return f"first start: testing it against the 16-bit model: {event['step']}, {share} %"
