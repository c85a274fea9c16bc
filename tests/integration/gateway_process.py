"""One gateway replica as a process without Ray: python -m tests.integration.gateway_process.

The application and its parts are those of `narrowgate serve`; only Ray Serve is missing, which a
gateway without local models uses for HTTP and restarts alone.
"""

import argparse
import os
from pathlib import Path

import uvicorn

from serving.app import Gateway
from serving.commands.ledger import prepare_ledger
from serving.contracts.settings_sources import load_settings
from serving.settings_linter import lint
from serving.tasks.catalog import load_specs


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--auth", choices=("keys", "off"), default="off")
    args = parser.parse_args()
    settings = load_settings(args.config, {"auth": {"mode": args.auth}})
    lint(settings)
    prepare_ledger(settings, os.environ)
    specs = dict(load_specs(settings.tasks_dir))
    # Without local models nothing writes the file of their states, and nothing reads it.
    replica = Gateway(settings, specs, settings.state / "models.json")
    application = replica.__serve_build_asgi_app__()
    uvicorn.run(application, host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
