"""`python -m benchmarks stack`: measure the stack and bare vLLM in turn, report the ratios."""

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import machine as described
from benchmarks.processes import reports_only
from benchmarks.stack_report import CLIENTS, SCORED_TASKS, TASKS, cells
from serving.commands.options import add_settings_options, settings_from
from serving.commands.progress import step
from serving.host.terminal import terminal_progress

if TYPE_CHECKING:
    from benchmarks.stack_report import Cell, Rounds
    from serving.contracts.engine import EngineWork
    from serving.contracts.settings import Settings
    from serving.local.offline import OfflineEngine
    from serving.tasks.task import Task

HELP = "compare the stack with bare vLLM and an empty handler, interleaved in one run"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of every measurement (3)")
    parser.add_argument("--quick", action="store_true", help="half the requests")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS, metavar="TASK")
    parser.add_argument("--clients", nargs="+", type=int, choices=CLIENTS, default=CLIENTS)
    parser.add_argument("--out", type=Path, help="report (STATE/bench.json)")


def run(args: argparse.Namespace) -> int:
    """Measure and report. Exit status 0; figures are reported, not judged."""
    from benchmarks import stack_report as report

    settings = measured_settings(args)
    rounds = measured(settings, args)
    if rounds is None:
        return 1
    rows = [report.row(item) for item in rounds]
    machine = described()
    workload = {"model": settings.models[0].id, "rounds": args.rounds, "prompts": "built-in tasks",
                "inputs": "20 to 35 words, all different"}  # fmt: skip
    document = report.as_json(rows, machine, workload)
    out = args.out or settings.state / "bench.json"
    out.write_text(json.dumps(document, indent=1), encoding="utf-8")
    if args.json:
        print(json.dumps(document))
    else:
        report.print_table(rows, machine, workload)
        print(f"written to {out}", file=sys.stderr)
    return 0


def measured_settings(args: argparse.Namespace) -> "Settings":
    """Return the settings that are measured: speed is measured on every task."""
    from benchmarks.temporary_ledger import without_keys

    settings = without_keys(settings_from(args))
    rules = settings.attestation.model_copy(update={"development": True})
    return settings.model_copy(update={"attestation": rules})


def measured(settings: "Settings", args: argparse.Namespace) -> "list[Rounds] | None":
    """Start the stack and bare vLLM, and measure both; None where a signal ended it."""
    from benchmarks.temporary_ledger import temporary_ledger
    from serving.artifacts.checkpoint import locate
    from serving.commands.first_start import Origin
    from serving.commands.serve import Start, prepare
    from serving.lifecycle.signals import StopRequested, signals_raise
    from serving.lifecycle.stack import local_stack

    prepared = prepare(settings, Origin(args.config, settings.tasks_dir))
    with signals_raise():
        try:
            with (
                reports_only(),
                temporary_ledger(prepared) as checked,
                local_stack(checked.settings) as stack,
            ):
                Start(checked, stack).run()
                checkpoint = locate(settings.models[0], settings.state)
                with step("starting bare vLLM"):
                    bare = _start_bare(settings, checkpoint)
                try:
                    tasks = _tasks(settings, prepared.specs, checkpoint)
                    plan = cells(args.tasks, args.clients, quick=args.quick)
                    return _measure(stack.url, bare, tasks, plan, args.rounds)
                finally:
                    bare.stop()
        except StopRequested:
            return None


def _start_bare(settings: "Settings", checkpoint: Any) -> "OfflineEngine":
    from serving.local.deployment import offline_arguments
    from serving.local.offline import OfflineEngine

    return OfflineEngine.start(*offline_arguments(settings.models[0], checkpoint))


def _tasks(settings: "Settings", specs: Any, checkpoint: Any) -> dict[str, "Task"]:
    from serving.tasks.prompt import CheckpointTokenizer
    from serving.tasks.task import bind

    tokenizer = CheckpointTokenizer.load(checkpoint.source, checkpoint.revision)
    window = settings.models[0].max_model_len
    return {name: bind(specs[name], tokenizer, window) for name in TASKS}


def _measure(
    url: str, bare: "OfflineEngine", tasks: dict[str, "Task"], plan: list["Cell"], rounds: int
) -> list["Rounds"]:
    from benchmarks.stack_report import Rounds

    measured = [Rounds(cell) for cell in plan]
    with terminal_progress() as progress:
        total = progress.add_task("measuring", total=len(plan) * (rounds + 1))
        # Round 0 warms caches and is not counted.
        for number in range(rounds + 1):
            for item in measured:
                _one_round(url, bare, tasks, item, number)
                progress.advance(total)
    return measured


def _one_round(
    url: str, bare: "OfflineEngine", tasks: dict[str, "Task"], item: "Rounds", number: int
) -> None:
    from benchmarks.bare import BareRun, timed
    from benchmarks.load import run_load
    from benchmarks.texts import texts

    cell = item.cell
    # Each engine sees a text once, so prefix caches help both only with the task's prompt.
    inputs = texts(cell.requests, seed=1000 * number + cell.clients)
    bodies = [_body(cell.task, text) for text in inputs]
    works = [_work(tasks[cell.task], cell.task, text) for text in inputs]

    stack = asyncio.run(run_load(f"{url}/v1/tasks/{cell.task}", bodies, cell.clients))
    bare_s = bare.call(timed, BareRun(works, cell.clients))
    empty = asyncio.run(run_load(f"{url}/healthz", [None] * cell.requests, cell.clients))
    constrained_s = None
    if cell.task in SCORED_TASKS:
        spec: Any = tasks[cell.task].spec
        choices = tuple(label.verbalizer for label in spec.labels)
        others = texts(cell.requests, seed=1000 * number + cell.clients + 500)
        works = [_work(tasks[cell.task], cell.task, text) for text in others]
        constrained_s = bare.call(timed, BareRun(works, cell.clients, choices))
    if number == 0:
        return
    item.stack.append(stack)
    item.bare_s.append(bare_s)
    item.empty.append(empty)
    if constrained_s is not None:
        item.constrained_s.append(constrained_s)


def _body(task: str, text: str) -> dict[str, Any]:
    if task == "translation":
        return {"input": text, "source_language": "en", "target_language": "de"}
    return {"input": text}


def _work(task: "Task", name: str, text: str) -> "EngineWork":
    from serving.contracts.answer import TaskRequest

    return task.plan(TaskRequest(name, text, source_language="en", target_language="de"))
