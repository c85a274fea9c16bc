"""A gateway process without a local model, killed and started again while it runs batches."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import yaml
from pydantic import SecretStr

from serving.ledger.database import Database, database_url

from ..provider.server import ProviderServer

ROOT = Path(__file__).parents[2]
KEY = "sk-test-0123456789-never-logged"
_START_S = 300.0


class KilledGateway:
    """One gateway process, started again after each kill.

    url: of the ledger's database; SQLite in the state folder where None. model: of every tier.
    has_batches: whether the provider's batches are used. settings: more of them, by section.
    module: that is run as the process.
    """

    module = "tests.integration.gateway_process"

    def __init__(
        self,
        folder: Path,
        provider: ProviderServer,
        url: str | None,
        model: str = "openai/gpt-4.1",
        *,
        has_batches: bool = False,
        **settings: Any,
    ) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "gateway.log"
        self.config = folder / "settings.yaml"
        self.process: subprocess.Popen[bytes] | None = None
        self._database_url = url
        tiers = {tier: [model] for tier in ("economy", "standard", "frontier")}
        openai = {
            "api": "openai", "base_url": f"{provider.url}/v1", "batch": has_batches,
        }  # fmt: skip
        self.config.write_text(yaml.safe_dump({
            "models": [], "state": str(folder / "state"),
            "ledger": {} if url is None else {"url": url},
            "frontier": {"tiers": tiers, "providers": {"openai": openai}},
            "evidence": {"enabled": False}, "cache": {"enabled": False},
            **settings,
        }))  # fmt: skip

    def start(self) -> None:
        """Start and wait until it is ready. Raises RuntimeError with the log's end."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module, "--config", str(self.config),
                 "--port", str(self.port)],
                cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "OPENAI_API_KEY": KEY},
            )  # fmt: skip
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"the gateway is not ready:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=30)

    def close(self) -> None:
        """Kill the process if it still runs."""
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def database(self) -> Database:
        """Return the ledger's database; close it after use."""
        url = self._database_url
        return Database(
            database_url(None if url is None else SecretStr(url), self.folder / "state")
        )

    def command(self, *words: str) -> str:
        """Return what a subcommand prints. Raises CalledProcessError."""
        done = subprocess.run(
            [sys.executable, "-m", "serving.cli", *words, "--config", str(self.config)],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout
