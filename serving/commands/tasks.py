"""`narrowgate tasks`: list the tasks or show one."""

import argparse
import json

from serving.commands.options import add_settings_options, settings_from

HELP = "list the tasks that are served, or show one in full"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    parser.add_argument("action", nargs="?", choices=["list", "show"], default="list")
    parser.add_argument("name", nargs="?", help="the task to show")


def run(args: argparse.Namespace) -> int:
    """Print names, kinds and digests, or one task as YAML."""
    import yaml

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
    content = find_task(specs, args.name).model_dump(mode="json")
    if args.json:
        print(json.dumps(content))
    else:
        print(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), end="")
    return 0
