"""`narrowgate tasks`: list the tasks or show one."""

import argparse
import json
from typing import TYPE_CHECKING

from serving.commands.options import add_settings_options, settings_from

if TYPE_CHECKING:
    from serving.contracts.task_spec import TaskSpec

HELP = "list the tasks that are served, or show one in full"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    parser.add_argument("action", nargs="?", choices=["list", "show"], default="list")
    parser.add_argument("name", nargs="?", help="the task to show")
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="show: the messages that a local model gets for this text, before its chat template",
    )
    parser.add_argument("--source-language", metavar="CODE", help="of a translation's prompt")
    parser.add_argument("--target-language", metavar="CODE", help="of a translation's prompt")


def run(args: argparse.Namespace) -> int:
    """Print names, kinds and digests, or one task as YAML, or its prompt."""
    import yaml

    from serving.contracts.errors import UnknownTask
    from serving.tasks.catalog import find_task, load_specs

    specs = load_specs(settings_from(args).tasks_dir)
    if args.action == "list":
        rows = [
            {"name": name, "kind": spec.kind, "digest": spec.digest()}
            for name, spec in sorted(specs.items())
        ]
        if args.json:
            print(json.dumps(rows))
        else:
            for row in rows:
                print(f"{row['name']:<16} {row['kind']:<16} {row['digest']}")
        return 0
    if args.name is None:
        raise UnknownTask(
            "tasks show needs the name of a task",
            field="name",
            fix="name one of: " + ", ".join(sorted(specs)),
        )
    spec = find_task(specs, args.name)
    if args.prompt is not None:
        _print_prompt(spec, args)
        return 0
    content = spec.model_dump(mode="json")
    if args.json:
        print(json.dumps(content))
    else:
        print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), end="")
    return 0


def _print_prompt(spec: "TaskSpec", args: argparse.Namespace) -> None:
    from serving.contracts.answer import TaskRequest
    from serving.tasks.shown_prompt import shown_prompt

    request = TaskRequest(spec.name, args.prompt, args.source_language, args.target_language)
    turns = shown_prompt(spec, request)
    if args.json:
        print(json.dumps([{"role": turn.role, "content": turn.content} for turn in turns]))
    else:
        print("\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in turns))
