"""`narrowgate config`: check settings and print them in full."""

import argparse
import json
import os

from serving.commands.ledger import check_ledger
from serving.commands.options import add_settings_options, settings_from

HELP = "check the settings and print them with every default"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the settings, secrets masked; settings that `serve` would refuse are errors.

    Checks that need the database, the models' files or the network are only made by `serve`.
    """
    import yaml

    from serving.routing.heads import load_model
    from serving.settings_linter import lint
    from serving.tasks.catalog import load_specs

    settings = settings_from(args)
    lint(settings)
    check_ledger(settings, os.environ)
    load_specs(settings.tasks_dir)
    if settings.routing.model is not None:
        load_model(settings.routing.model)
    content = settings.model_dump(mode="json")
    print(json.dumps(content) if args.json else yaml.safe_dump(content, sort_keys=False), end="")
    return 0
