"""Runs only the provider: `python -m tests.provider --port 8099`."""

import argparse

import uvicorn

from .server import ProviderApp


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.provider")
    parser.add_argument("--port", type=int, default=8099)
    parser.add_argument("--key", action="append", help="accepted API key; any where none is given")
    arguments = parser.parse_args()
    app = ProviderApp(keys=arguments.key)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, lifespan="off", log_level="warning")


if __name__ == "__main__":
    main()
