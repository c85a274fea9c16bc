"""Gateway processes without Ray, as benchmarks load them, and what they use."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.processes import listening

if TYPE_CHECKING:
    import psutil

    from serving.contracts.frontier_settings import ProviderSettings
    from serving.contracts.settings import Settings

# A model with a known price: calls of unpriced models are refused.
MODEL = "openai/gpt-6-luna"
_START_S = 120.0
_LOOKUP_S = 10.0


@dataclass(frozen=True, slots=True)
class GatewayProcess:
    """A gateway that runs. url: where it listens."""

    url: str
    process: "psutil.Process"

    def cpu_s(self) -> float:
        """Return the processor time that it has used so far, seconds."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


def settings_of(
    state: Path, provider: "ProviderSettings", *, cached: bool, url: str | None = None
) -> "Settings":
    """Return the settings of a gateway in front of one provider, with its ledger in `state`.

    url: of the ledger's PostgreSQL database; it is written into a file of `state`, because settings
    that are printed as JSON do not show it.
    """
    from serving.contracts.cache_settings import CacheSettings
    from serving.contracts.evidence_settings import EvidenceSettings
    from serving.contracts.frontier_settings import FrontierSettings
    from serving.contracts.ledger_settings import AuthSettings, LedgerSettings
    from serving.contracts.routing import TIERS
    from serving.contracts.settings import Settings

    url_file = None
    if url is not None:
        state.mkdir(parents=True, exist_ok=True)
        url_file = state / "ledger-url"
        url_file.touch(mode=0o600)
        url_file.write_text(url, encoding="utf-8")
    return Settings(
        state=state,
        models=(),
        auth=AuthSettings(mode="off"),
        # A machine that other work starves is slow, and refuses nothing.
        ledger=LedgerSettings(call_wait_s=60.0, url_file=url_file),
        cache=CacheSettings(enabled=cached, lookup_timeout_s=_LOOKUP_S),
        evidence=EvidenceSettings(enabled=False),
        frontier=FrontierSettings(
            providers={"openai": provider}, tiers=dict.fromkeys(TIERS, (MODEL,))
        ),
    )


@contextmanager
def gateway(settings: "Settings") -> Iterator[GatewayProcess]:
    """Start a gateway, yield it, and stop it at the end."""
    import psutil

    from serving.lifecycle.ports import free_port

    port = free_port()
    command = [sys.executable, "-m", "benchmarks.cache_server", str(port)]
    with listening(command, port, _START_S, settings.model_dump_json()) as url:
        process = next(
            child for child in psutil.Process().children() if str(port) in child.cmdline()
        )
        yield GatewayProcess(url, process)
