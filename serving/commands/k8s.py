"""`narrowgate k8s`: what a Kubernetes cluster needs, and what would fail on one."""

import argparse
from importlib import import_module
from typing import Any

HELP = "render manifests for Kubernetes and find what would fail on a cluster"

_ACTIONS: dict[str, str] = {
    "fetch": "serving.commands.k8s_fetch",
    "lint": "serving.commands.k8s_lint",
    "render": "serving.commands.k8s_render",
}
"""Module of each action, with HELP, configure and run. Importing it must load nothing heavy."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name in _ACTIONS:
        module = _module(name)
        module.configure(actions.add_parser(name, help=module.HELP))


def run(args: argparse.Namespace) -> int:
    """Run the action and return the exit status."""
    status: int = _module(args.action).run(args)
    return status


def _module(name: str) -> Any:
    return import_module(_ACTIONS[name])
