"""`narrowgate serve`: run the stack on this machine until a signal."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.commands.first_start import FirstStart, Origin, trusting_bundled
from serving.commands.ledger import prepare_ledger
from serving.commands.options import add_listen_options, add_settings_options, settings_from
from serving.commands.progress import start_bar
from serving.commands.timeline import Timeline, report_lines
from serving.contracts.errors import InvalidSettings, NarrowgateError
from serving.contracts.model_status import ModelStatus, Progress

if TYPE_CHECKING:
    from serving.contracts.settings import ModelSettings, Settings
    from serving.contracts.task_spec import TaskSpec
    from serving.lifecycle.stack import LocalStack

HELP = "serve the configured models and tasks over HTTP until SIGINT or SIGTERM"

GATEWAY = "starting Ray Serve and the gateway"
LOAD = "loading the models"
_GATEWAY_S, _LOAD_S = 25.0, 45.0
_EXIT_FAILED = 1


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    add_listen_options(parser)
    parser.add_argument(
        "--auth",
        choices=("keys", "off"),
        help="require an API key of every request (keys), or listen on loopback without keys (off)",
    )


@dataclass(frozen=True, slots=True)
class CheckedSettings:
    """Settings and tasks that passed all checks. specs: by task name."""

    settings: "Settings"
    specs: "Mapping[str, TaskSpec]"
    origin: Origin


def check(settings: "Settings", origin: Origin) -> CheckedSettings:
    """Check settings, tasks, ledger, and the attestations of models that exist already.

    Blocking, seconds. Raises ConfigurationError, and AttestationRefused before anything starts.
    """
    from serving.preparation import checked_specs, model_grants

    specs = checked_specs(settings)
    if not settings.models and not _has_frontier(settings):
        raise InvalidSettings(
            "models is empty and no provider has a key, so nothing could answer",
            field="models",
            fix="add a model, or set the key of a provider",
        )
    prepare_ledger(settings, os.environ)
    checked = CheckedSettings(trusting_bundled(settings), specs, origin)
    first = FirstStart(checked.settings, specs, origin)
    for model in checked.settings.models:
        if not first.missing(model):
            first.choose(model)
            # A replica's refusal would only be in a log file.
            model_grants(checked.settings, model, specs)
    return checked


def prepare(settings: "Settings", origin: Origin) -> CheckedSettings:
    """Check the settings and make missing bundled models, without a stack.

    Blocking: minutes the first time. Raises as `check`, and MaterializationFailed,
    QuantizationFailed, EngineFailure.
    """
    checked = check(settings, origin)
    first = FirstStart(checked.settings, checked.specs, origin)
    missing = [model for model in checked.settings.models if first.missing(model)]
    steps: dict[str, float] = {}
    for model in missing:
        steps |= first.expected_s(model)
    with start_bar() as show:
        timeline = Timeline(steps, show)
        with timeline.ticking(), first.begun(timeline, steps):
            for model in missing:
                first.make(model, timeline)
    return checked


def run(args: argparse.Namespace) -> int:
    """Check the settings, start, make missing models, wait for a signal, stop."""
    from serving.lifecycle.ports import refuse_taken_port
    from serving.lifecycle.processes import wait_for_signal
    from serving.lifecycle.signals import StopRequested, signals_raise
    from serving.lifecycle.stack import local_stack

    settings = settings_from(args)
    refuse_taken_port(settings.host, settings.port)
    failed: Mapping[str, str] = {}
    with signals_raise():
        try:
            checked = check(settings, Origin(args.config, settings.tasks_dir))
            with local_stack(checked.settings) as stack:
                started = Start(checked, stack).run(lambda: _announce_gateway(stack, args))
                failed = started.failed
                _announce(stack, checked, started, as_json=args.json)
                print(f"{wait_for_signal()}: draining", file=sys.stderr)
        except StopRequested as stop:
            print(f"{stop}: stopped before the start was complete", file=sys.stderr)
    return _EXIT_FAILED if failed else 0


@dataclass(frozen=True, slots=True)
class StartResult:
    """The result of a start. failed: the reason by model id. report: seconds of each step."""

    failed: Mapping[str, str]
    report: Mapping[str, Any]


class Start:
    """One start of a stack: the gateway at once, each model when its files are there.

    Gateways read the state of every model from the stack's status file.
    """

    def __init__(self, checked: CheckedSettings, stack: "LocalStack") -> None:
        self._settings = checked.settings
        self._specs = checked.specs
        self._stack = stack
        self._first = FirstStart(checked.settings, checked.specs, checked.origin)
        self._missing = [m for m in checked.settings.models if self._first.missing(m)]
        self._statuses = {m.id: ModelStatus("preparing") for m in checked.settings.models}
        self._show: Callable[[Progress], None] = lambda progress: None
        self._steps: dict[str, float] = {}
        for model in self._missing:
            self._steps |= self._first.expected_s(model)
        self._timeline = Timeline(
            {GATEWAY: _GATEWAY_S, **self._steps, LOAD: _LOAD_S}, self._publish
        )

    def run(self, gateway_serves: Callable[[], None] = lambda: None) -> StartResult:
        """Start everything; return when every model serves or has failed.

        gateway_serves: called when frontier models can be called. Raises EngineFailure where the
        gateway or the engine of a model of the user's own does not start, and the error of a
        bundled model that could not be made if no other model can serve.
        """
        from serving.app import build_gateway

        failed: dict[str, str] = {}
        stack, timeline = self._stack, self._timeline
        self._publish(timeline.progress())
        with start_bar() as self._show, timeline.ticking(), ExitStack() as making:
            with timeline.step(GATEWAY):
                # Before any other work: Ray gives up when its own processes start too slowly.
                stack.start_ray()
                if self._missing:
                    making.enter_context(self._first.begun(timeline, self._steps))
                stack.deploy_gateway(build_gateway(self._settings, self._specs, stack.statuses))
                self._deploy([m for m in self._settings.models if m not in self._missing])
                stack.wait_gateway()
            if self._missing:
                gateway_serves()
            for model in self._missing:
                if (error := self._made(model)) is not None:
                    self._fail(model, error, failed)
            with timeline.step(LOAD):
                for model in self._settings.models:
                    if model.id not in failed:
                        stack.wait_engine(model.id)
                stack.wait_ready()
        report = timeline.report()
        if self._missing:
            file = self._settings.state / "first_start.json"
            file.write_text(json.dumps(report, indent=1), encoding="utf-8")
        return StartResult(failed, report)

    def _made(self, model: "ModelSettings") -> NarrowgateError | None:
        """Make a model's files and deploy its engine; return the error that prevents it."""
        from serving.preparation import model_grants

        try:
            self._first.make(model, self._timeline)
            model_grants(self._settings, model, self._specs)
        except NarrowgateError as error:
            return error
        self._deploy([model])
        return None

    def _fail(self, model: "ModelSettings", error: NarrowgateError, failed: dict[str, str]) -> None:
        failed[model.id] = error.message
        self._statuses[model.id] = ModelStatus("failed", reason=_first_line(error.message))
        self._publish(self._timeline.progress())
        if len(failed) == len(self._settings.models) and not _has_frontier(self._settings):
            raise error
        print(f"model {model.id!r} will not serve: {error.message}", file=sys.stderr)

    def _deploy(self, models: "list[ModelSettings]") -> None:
        if not models:
            return
        from serving.app import build_engine
        from serving.artifacts.checkpoint import locate
        from serving.lifecycle.stack import engine_application

        state = self._settings.state
        self._stack.deploy_engines(
            {m.id: build_engine(self._settings, m, locate(m, state)) for m in models}
        )
        for model in models:
            name = engine_application(model.id)
            self._statuses[model.id] = ModelStatus("deployed", application=name)
        self._publish(self._timeline.progress())

    def _publish(self, progress: Progress) -> None:
        """Write the models' states for the gateways, and show the progress."""
        from serving.local.status_file import write_statuses

        statuses = {
            model_id: status
            if status.state == "failed"
            else ModelStatus(status.state, progress, status.application)
            for model_id, status in self._statuses.items()
        }
        write_statuses(self._stack.statuses, statuses)
        self._show(progress)


def _has_frontier(settings: "Settings") -> bool:
    """Return whether any frontier provider can be called."""
    from serving.frontier.keys import resolve_key

    return any(
        provider.keyless or resolve_key(name, provider, os.environ) is not None
        for name, provider in settings.frontier.providers.items()
    )


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), text)


def _announce_gateway(stack: "LocalStack", args: argparse.Namespace) -> None:
    if not args.json:
        print(f"gateway at {stack.url}: frontier models answer; local models are being prepared")
        print(f"progress: {stack.health_url}/readyz", flush=True)


@dataclass(frozen=True, slots=True)
class TaskOutcomes:
    """The tasks of a start. refused, not_faster: the reason by task; the latter are served.

    in_16_bits: why a bundled model serves in 16 bits and not quantized, by model id.
    """

    served: list[str]
    refused: dict[str, str]
    not_faster: dict[str, str]
    in_16_bits: dict[str, str]


def task_outcomes(checked: CheckedSettings, failed: Mapping[str, str]) -> TaskOutcomes:
    """Return what each task's model does with it. failed: the reason by model id. Blocking."""
    from serving.preparation import bundled_choice, model_grants

    settings, specs = checked.settings, checked.specs
    found = TaskOutcomes([], {}, {}, {})
    for model in settings.models:
        names = sorted(name for name in specs if settings.model_for(name) == model.id)
        if model.id in failed:
            found.refused.update(dict.fromkeys(names, failed[model.id]))
            continue
        choice = bundled_choice(settings, model)
        if choice is not None and not choice.is_quantized:
            found.in_16_bits[model.id] = choice.reason
        grants = model_grants(settings, model, specs).tasks
        for name in names:
            refusal, result = grants[name].refusal, grants[name].result
            if refusal is not None:
                found.refused[name] = refusal.message
                continue
            found.served.append(name)
            speed = None if result is None else result.speed
            if speed is not None and speed.finding != "faster":
                found.not_faster[name] = f"model {model.id!r}, task {name!r}: {speed}"
    return found


def _announce(
    stack: "LocalStack", checked: CheckedSettings, started: StartResult, *, as_json: bool
) -> None:
    settings, tasks = checked.settings, task_outcomes(checked, started.failed)
    if as_json:
        document = {
            "url": stack.url,
            "health_url": stack.health_url,
            "tasks": sorted(tasks.served),
            "refused": dict(sorted(tasks.refused.items())),
            "not_faster": dict(sorted(tasks.not_faster.items())),
            "in_16_bits": tasks.in_16_bits,
            "development": settings.attestation.development,
            "auth": settings.auth.mode,
            "start": started.report,
        }
        print(json.dumps(document), flush=True)
        return
    print(f"ready at {stack.url}  (docs: {stack.url}/docs, health: {stack.health_url}/readyz)")
    print(f"tasks served: {', '.join(sorted(tasks.served)) or 'none'}")
    for _, reason in sorted(tasks.refused.items()):
        print(f"refused: {reason}")
    for model_id, reason in tasks.in_16_bits.items():
        print(f"model {model_id!r} serves in 16 bits, not quantized: {reason}")
    for _, finding in sorted(tasks.not_faster.items()):
        print(f"no gain in speed: {finding}")
    if settings.attestation.development:
        print("DEVELOPMENT: attestations are not enforced; every task is served")
    if settings.auth.mode == "off":
        print("AUTH OFF: every user of this machine may use the API; it listens on loopback only")
    else:
        print("every request needs a key: narrowgate tenant create, narrowgate key create")
    print("\n".join(report_lines(started.report)))
    sys.stdout.flush()
