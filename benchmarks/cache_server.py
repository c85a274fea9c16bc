"""`python -m benchmarks.cache_server PORT`: a gateway without Ray, with the settings on stdin."""

import os
import sys


def main(port: int) -> None:
    """Listen on loopback until a signal comes."""
    from serving.contracts.replica_process import leave_out_large_libraries

    # As in a replica, before anything imports them.
    leave_out_large_libraries()
    import uvicorn

    from serving.app import Gateway
    from serving.commands.ledger import prepare_ledger
    from serving.contracts.settings import Settings
    from serving.tasks.catalog import load_specs

    settings = Settings.model_validate_json(sys.stdin.read())
    prepare_ledger(settings, os.environ)
    # Without local models nothing writes the file of their states, and nothing reads it.
    gateway = Gateway(settings, dict(load_specs(None)), settings.state / "models.json")
    uvicorn.run(
        gateway.__serve_build_asgi_app__(), host="127.0.0.1", port=port, log_level="warning"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
