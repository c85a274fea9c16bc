"""`narrowgate materialize`: write the bundled model as an ordinary checkpoint."""

import argparse
import json
import os

from serving.commands.options import add_settings_options, settings_from
from serving.commands.progress import step

HELP = "write the bundled model (SmolLM2-135M-Instruct) as a bf16 Hugging Face checkpoint"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint under the state folder, unless it is there, and print its folder."""
    # Before transformers is imported, because its own progress bars would mix with ours.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from serving.artifacts.checkpoint import materialize_bundled

    settings = settings_from(args)
    with step("dequantizing the bundled model to bf16"):
        folder = materialize_bundled(settings.state / "models")
    print(json.dumps({"folder": str(folder)}) if args.json else folder)
    return 0
