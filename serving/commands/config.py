"""`narrowgate config`: check settings and print them in full."""

import argparse
import json
import os
from typing import TYPE_CHECKING

from serving.commands.ledger import check_ledger
from serving.commands.options import add_listen_options, add_settings_options, settings_from

if TYPE_CHECKING:
    from serving.contracts.settings import Settings

HELP = "check the settings and print them with every default"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    add_listen_options(parser)


def run(args: argparse.Namespace) -> int:
    """Print the settings, secrets masked; settings that `serve` would refuse are errors.

    Checks that need the database, the models' files or the network are only made by `serve`.
    """
    import yaml

    from serving.context.ranking import load_models
    from serving.contracts.errors import InvalidSettings
    from serving.routing.heads import load_model
    from serving.settings_linter import lint
    from serving.tasks.catalog import load_specs
    from serving.tiers.clusters import read_clustering

    settings = settings_from(args)
    lint(settings)
    check_ledger(settings, os.environ)
    load_specs(settings.tasks_dir)
    if settings.routing.model is not None:
        load_model(settings.routing.model)
    load_models(settings.context.model)
    if settings.tiers.clusters_file is not None:
        read_clustering(settings.tiers.clusters_file)
    _check_keys(settings)
    if settings.state.exists() and not settings.state.is_dir():
        raise InvalidSettings(
            f"state {str(settings.state)!r} is not a folder",
            field="state",
            fix="name a folder that this user may write; it is made if absent",
        )
    content = settings.model_dump(mode="json")
    print(json.dumps(content) if args.json else yaml.safe_dump(content, sort_keys=False), end="")
    return 0


def _check_keys(settings: "Settings") -> None:
    """Read the key files that the settings name. Raises InvalidKey."""
    from serving.artifacts.signing_key import load_signer, read_key
    from serving.evidence.heads.cipher import load_cipher

    if settings.cache.enabled and settings.cache.encryption_key_file is not None:
        load_cipher(settings.cache.encryption_key_file, "cache.encryption_key_file")
    evidence = settings.evidence
    if evidence.enabled and evidence.vector_key_file is not None:
        load_cipher(evidence.vector_key_file)
    if evidence.enabled and evidence.signing_key is not None:
        field = "evidence.signing_key"
        pem = read_key(evidence.signing_key, field)
        load_signer(pem, f"the key {str(evidence.signing_key)!r}", field)
