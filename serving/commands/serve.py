"""`narrowgate serve`: run the stack on this machine until a signal."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.commands.first_start import Origin, prepare_bundled
from serving.commands.ledger import prepare_ledger
from serving.commands.options import add_settings_options, settings_from
from serving.commands.progress import step

if TYPE_CHECKING:
    from serving.artifacts.checkpoint import Checkpoint
    from serving.artifacts.load_check import Granted
    from serving.contracts.settings import Settings
    from serving.contracts.task_spec import TaskSpec

HELP = "serve the configured models and tasks over HTTP until SIGINT or SIGTERM"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    parser.add_argument(
        "--auth",
        choices=("keys", "off"),
        help="ask every request for an API key (keys), or listen on loopback for anybody (off)",
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """Checked settings with everything that the start needs on disk.

    specs: by task name. checkpoints, granted: by model id.
    """

    settings: "Settings"
    specs: "Mapping[str, TaskSpec]"
    checkpoints: "Mapping[str, Checkpoint]"
    granted: "Mapping[str, Granted]"

    def build(self) -> object:
        """Return the Serve application; imports Ray, so its environment must be set by then."""
        from serving.app import build

        return build(self.settings, self.specs, self.checkpoints)


def prepare(settings: "Settings", origin: Origin) -> Prepared:
    """Check the settings and tasks, and make what bundled models are missing.

    Blocking: ten minutes on two cores at the first start with a bundled model.
    Raises ConfigurationError, and AttestationRefused before anything is started.
    """
    from serving.artifacts.checkpoint import locate
    from serving.artifacts.load_check import granted_by_model
    from serving.settings_linter import lint
    from serving.tasks.catalog import load_specs

    lint(settings)
    # Here and not after ten minutes of a first start.
    prepare_ledger(settings, os.environ)
    specs = dict(load_specs(settings.tasks_dir))
    settings = prepare_bundled(settings, specs, origin)
    checkpoints = {model.id: locate(model, settings.state) for model in settings.models}
    # Every attestation is read here: a replica's refusal would be found in a log file.
    granted = granted_by_model(settings, specs, checkpoints)
    return Prepared(settings, specs, checkpoints, granted)


def run(args: argparse.Namespace) -> int:
    """Check the settings, produce what is missing, start, wait for a signal, stop."""
    from serving.lifecycle import (
        StopRequested,
        local_stack,
        refuse_taken_port,
        signals_raise,
        wait_for_signal,
    )

    settings = settings_from(args)
    # Before ten minutes of a first start, not after.
    refuse_taken_port(settings)
    with signals_raise():
        try:
            prepared = prepare(settings, Origin(args.config, settings.tasks_dir))
            with local_stack(prepared.settings, prepared.build) as start:
                with step("starting Ray Serve and loading the models"):
                    url = start()
                _announce(url, prepared, as_json=args.json)
                print(f"{wait_for_signal()}: draining", file=sys.stderr)
        except StopRequested as stop:
            print(f"{stop}: stopped before the start was complete", file=sys.stderr)
    return 0


def _announce(url: str, prepared: Prepared, *, as_json: bool) -> None:
    settings, granted = prepared.settings, prepared.granted
    grants = {name: granted[settings.model_for(name)].tasks[name] for name in prepared.specs}
    served = sorted(name for name, grant in grants.items() if grant.refusal is None)
    refused = {n: g.refusal.message for n, g in sorted(grants.items()) if g.refusal is not None}
    if as_json:
        document = {
            "url": url,
            "tasks": served,
            "refused": refused,
            "development": settings.attestation.development,
            "auth": settings.auth.mode,
        }
        print(json.dumps(document), flush=True)
        return
    print(f"ready at {url}  (docs: {url}/docs)")
    print(f"tasks served: {', '.join(served) or 'none'}")
    for reason in refused.values():
        print(f"refused: {reason}")
    if settings.attestation.development:
        print("DEVELOPMENT: attestations are not enforced; every task is served")
    if settings.auth.mode == "off":
        print("AUTH OFF: whoever reaches this address may ask; it is loopback alone")
    else:
        print("every request needs a key: narrowgate tenant create, narrowgate key create")
    sys.stdout.flush()
