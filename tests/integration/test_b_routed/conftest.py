"""One stack for all of these tests: the gated model, a provider, keys asked for, PostgreSQL."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pydantic import SecretStr

from serving.ledger.database import Database, database_url

from ...provider.server import ProviderServer
from ...unit.database import postgres_server
from ..conftest import ROOT, STATE, Stack, served

PROVIDER_KEY = "sk-test-0123456789-never-logged"
# The price in the budget test: no input, a dollar for every output token.
PRICES = 'openai/dollar: {input: 0, output: 1000000}\n"anthropic/second": {input: 0, output: 1}\n'


@dataclass(frozen=True)
class LedgerTool:
    """The stack's ledger, and its commands."""

    url: SecretStr

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [ROOT / ".venv" / "bin" / "narrowgate", *arguments, "--state", STATE],
            env={**os.environ, "NARROWGATE_LEDGER__URL": self.url.get_secret_value()},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def tenant(self, name: str, *limits: str) -> str:
        """Make a tenant; return a key of its own."""
        done = self.command("tenant", "create", name, *limits)
        assert done.returncode == 0, done.stderr
        made = self.command("key", "create", "--tenant", name)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()

    def report(self, *arguments: str) -> dict[str, Any]:
        """Return the whole report; its numbers must agree."""
        done = self.command("report", "--json", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def database(self) -> Database:
        return Database(database_url(self.url, STATE))

    def processes(self) -> list[psutil.Process]:
        """Return every process of the server."""
        socket = self.url.get_secret_value().rpartition("host=")[2]
        postmaster = psutil.Process(int((Path(socket) / "postmaster.pid").read_text().split()[0]))
        return [postmaster, *postmaster.children(recursive=True)]


@pytest.fixture(scope="package")
def provider() -> Iterator[ProviderServer]:
    with ProviderServer(keys=[PROVIDER_KEY]) as running:
        yield running


@pytest.fixture(scope="package")
def ledger() -> Iterator[LedgerTool]:
    with postgres_server() as url:
        yield LedgerTool(SecretStr(url))


@pytest.fixture(scope="package")
def routed(
    provider: ProviderServer,
    ledger: LedgerTool,
    int8: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """The gated INT8 model, as `make serve` serves it, with keys for both providers."""
    folder = tmp_path_factory.mktemp("routed")
    prices = folder / "prices.yaml"
    prices.write_text(PRICES, encoding="utf-8")
    common = {"connect_timeout_s": 2, "max_retries": 1, "breaker": {"failures": 50}}
    many = {**common, "max_concurrent": 256}
    providers = {
        "anthropic": {"api": "anthropic", "base_url": provider.url, **common},
        "openai": {"api": "openai", "base_url": f"{provider.url}/v1", **many},
    }
    yield from served(
        folder / "serve.log",
        AUTH="keys",
        NARROWGATE_FRONTIER__PROVIDERS=json.dumps(providers),
        NARROWGATE_LEDGER__URL=ledger.url.get_secret_value(),
        NARROWGATE_LEDGER__PRICES_FILE=str(prices),
        # 200 paid calls at once on two busy cores: some wait longer than the default of 2 s.
        NARROWGATE_LEDGER__CALL_WAIT_S="6",
        NARROWGATE_AUTH__REFRESH_S="0.5",
        # Only attested thresholds decide: a task in shadow would be answered by the provider.
        NARROWGATE_EVIDENCE__ENABLED="false",
        NARROWGATE_ROUTING__MAX_CONCURRENT_FRONTIER="256",
        ANTHROPIC_API_KEY=PROVIDER_KEY,
        OPENAI_API_KEY=PROVIDER_KEY,
    )


@pytest.fixture(scope="package")
def key(routed: Stack, ledger: LedgerTool) -> str:
    """A key of a tenant without limits. The first: it must count by the time it is used."""
    made = ledger.tenant("acme")
    wait_for_key(routed, made)
    return made


def wait_for_key(stack: Stack, key: str) -> None:
    deadline = time.monotonic() + 60
    with httpx.Client(base_url=stack.url, headers=bearer(key), timeout=30) as session:
        while session.get("/v1/models").status_code != 200:
            assert time.monotonic() < deadline, "the key does not count"
            time.sleep(0.05)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def script(provider: ProviderServer) -> Any:
    provider.reset()
    return provider.script


@pytest.fixture
def client(routed: Stack, key: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=routed.url, timeout=120, headers=bearer(key)) as session:
        yield session


def chat(text: str, model: str = "auto", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}
