"""`narrowgate serve`: run the stack on this machine until a signal."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.commands.options import add_settings_options, settings_from
from serving.commands.progress import step
from serving.contracts.errors import MaterializationFailed

if TYPE_CHECKING:
    from serving.contracts.settings import Settings
    from serving.contracts.task_spec import TaskSpec
    from serving.local.checkpoint import Checkpoint

HELP = "serve the configured models and tasks over HTTP until SIGINT or SIGTERM"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Checked settings with everything that the start needs on disk."""

    settings: "Settings"
    specs: "Mapping[str, TaskSpec]"

    def checkpoints(self) -> "dict[str, Checkpoint]":
        """Return each model's checkpoint by model id."""
        from serving.local.checkpoint import locate

        return {model.id: locate(model, self.settings.state) for model in self.settings.models}

    def build(self) -> object:
        """Return the Serve application; imports Ray, so its environment must be set by then."""
        from serving.app import build

        return build(self.settings, self.specs, self.checkpoints())


def prepare(settings: "Settings") -> Prepared:
    """Check the settings and tasks, and write the bundled model where it is wanted and missing."""
    from serving.local.linter import lint
    from serving.tasks.catalog import load_specs

    lint(settings)
    specs = load_specs(settings.tasks_dir)
    _materialize(settings)
    return Prepared(settings, specs)


def run(args: argparse.Namespace) -> int:
    """Check the settings, produce what is missing, start, wait for a signal, stop."""
    from serving.lifecycle import StopRequested, local_stack, signals_raise, wait_for_signal

    settings = settings_from(args)
    with signals_raise():
        try:
            prepared = prepare(settings)
            with local_stack(settings, prepared.build) as start:
                with step("starting Ray Serve and loading the models"):
                    url = start()
                _announce(url, sorted(prepared.specs), as_json=args.json)
                print(f"{wait_for_signal()}: draining", file=sys.stderr)
        except StopRequested as stop:
            print(f"{stop}: stopped before the start was complete", file=sys.stderr)
    return 0


def _materialize(settings: "Settings") -> None:
    from serving.contracts.settings import BUNDLED_MODEL
    from serving.local.checkpoint import is_materialized

    if all(model.source != BUNDLED_MODEL for model in settings.models):
        return
    if is_materialized(settings.state / "models"):
        return
    # In a process of its own: torch and the weights would stay in this one for good.
    with step("first start: dequantizing the bundled model to bf16"):
        done = subprocess.run(  # noqa: S603  # our own program
            [sys.executable, "-m", "serving.cli", "materialize", "--state", str(settings.state)],
            env={**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise MaterializationFailed(
            "the bundled model could not be written:\n" + done.stderr.strip()[-2000:],
            fix="narrowgate materialize shows the whole error",
        )


def _announce(url: str, tasks: list[str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"url": url, "tasks": tasks}), flush=True)
        return
    print(f"ready at {url}  (docs: {url}/docs)", flush=True)
    print(f"tasks: {', '.join(tasks)}", flush=True)
