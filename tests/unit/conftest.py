"""Fixtures of the unit tests: specs, a signing key, databases, the gateway, a provider server."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from pydantic import SecretStr

from serving.artifacts.signing_key import KeyPair
from serving.contracts.task_spec import ClassificationSpec, TaskSpec
from serving.tasks.catalog import load_specs

from .attested import make_key
from .blocked_loop import LoopWatch
from .character_tokenizer import CharacterTokenizer

if TYPE_CHECKING:
    from serving.evidence.store import EvidenceStore
    from serving.ledger.database import Database

    from ..provider.server import ProviderServer
    from .scripted import Server

# A busy machine generates slowly; no test may depend on the clock.
settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")

# The imported libraries are half a million objects: searching them for cycles again and again took
# 15 % of the tests' processor time. None is collected while they are imported, nor later.
gc.disable()


LONG_FILES = (
    "test_bench_replay", "test_gate_reference", "test_settings_values", "test_kubernetes_manifests",
    "test_population_shift", "test_odd_files", "test_ledger_report",
    "test_pattern_time", "test_cache_similar", "test_bench_scale", "test_report", "test_savings",
    "test_messages_batches", "test_batch_costs", "test_context_claims", "test_bench_tiers",
    "test_cache_http", "test_batch_equal_lines", "test_routing_evaluation", "test_public_sets",
)  # fmt: skip
"""Files of several seconds, the longest first: one that begins last would run alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    first = {name: place for place, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: first.get(item.path.stem, len(first)))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
    gc.enable()


# A fixture imports what it needs: the gateway takes seconds to import, and most tests do without.


@pytest.fixture(autouse=True)
def loop_watch() -> Iterator[LoopWatch]:
    """Fail a test in which something blocked the event loop."""
    with LoopWatch() as watch:
        yield watch
    assert watch.blocked == [], "the event loop was blocked"


@pytest.fixture
def tokenizer() -> CharacterTokenizer:
    return CharacterTokenizer()


@pytest.fixture(scope="session")
def specs() -> dict[str, TaskSpec]:
    return dict(load_specs(None))


@pytest.fixture(scope="session")
def sentiment(specs: dict[str, TaskSpec]) -> ClassificationSpec:
    spec = specs["sentiment"]
    assert isinstance(spec, ClassificationSpec)
    return spec


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return make_key(tmp_path_factory.mktemp("trusted"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a real PostgreSQL server, shared by all workers of a test run."""
    from .database import postgres_server

    with postgres_server(os.environ.get("PYTEST_XDIST_TESTRUNUID", "")[:12]) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest) -> SecretStr | None:
    """A database without rows: None for SQLite, which goes to the state folder."""
    return _new_database(request, has_tables=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_ledger_url(request: pytest.FixtureRequest) -> SecretStr | None:
    """As `ledger_url`, for tests that make the tables."""
    return _new_database(request, has_tables=False)


def _new_database(request: pytest.FixtureRequest, *, has_tables: bool) -> SecretStr | None:
    if request.param == "sqlite":
        return None
    from .database import fresh_postgres

    server = request.getfixturevalue("postgres")
    return fresh_postgres(server, f"t{uuid4().hex}", has_tables=has_tables)


@pytest.fixture
def state() -> Iterator[Path]:
    """A state folder of the test's own, not yet created."""
    from .database import MEMORY

    with tempfile.TemporaryDirectory(prefix="ng-", dir=MEMORY) as folder:
        yield Path(folder) / "state"


@pytest.fixture
def database(state: Path) -> "Iterator[Database]":
    """A migrated SQLite database. Test files that run on both databases override it."""
    from .authenticated import opened

    found = opened(None, state)
    yield found
    found.close()


@pytest.fixture
def store(database: "Database") -> "EvidenceStore":
    """An evidence store with one defined claim."""
    from serving.evidence.store import EvidenceStore

    from .evidence_kit import defined

    found = EvidenceStore(database)
    found.register([defined()])
    return found


@pytest.fixture
async def server(specs: dict[str, TaskSpec]) -> "Server":
    """The gateway: topic passes its gate, sentiment is below its threshold, ner fails."""
    from serving.contracts.attestation import Verdict
    from serving.contracts.errors import TaskNotAttested
    from serving.tasks.grant import Grant

    from .attested import result
    from .scripted import Server

    doubtful = result(specs["sentiment"])
    assert doubtful.certificate is not None
    certificate = doubtful.certificate.model_copy(update={"threshold": 0.99})
    refusal = TaskNotAttested("model 'tiny' does not serve task 'ner': a reason", fix="gate it")
    grants = {
        "topic": Grant(result(specs["topic"]), "sha256:abc", None),
        "sentiment": Grant(
            doubtful.model_copy(update={"certificate": certificate}), "sha256:abc", None
        ),
        "ner": Grant(result(specs["ner"], Verdict.FAIL), "sha256:abc", refusal),
    }
    return await Server(specs, grants).ready()


@pytest.fixture(scope="module")
def provider_server() -> "Iterator[ProviderServer]":
    """A provider's HTTP server, one for all tests of a module."""
    import ssl

    from httpx._transports import default as transports
    from httpx2._transports import default as transports2

    # The vendors' SDKs: 3 s of processor time, which would block the first test's event loop.
    from serving.frontier import anthropic_api, openai_api  # noqa: F401

    from ..provider.server import ProviderServer
    from .frontier_kit import KEY

    # Each client reads the certificates anew, 18 ms, and plain HTTP needs none of them.
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.MonkeyPatch.context() as patch, ProviderServer(keys=[KEY]) as running:
        for library in (transports, transports2):
            patch.setattr(library, "create_ssl_context", lambda **_: bare)
        yield running


@pytest.fixture
def keyless_provider() -> "Iterator[ProviderServer]":
    """A provider server of the test's own, which takes any key.

    A fixture, because its start and its end wait: in an async test they would block the loop.
    """
    from ..provider.server import ProviderServer

    with ProviderServer() as running:
        yield running


@pytest.fixture
def provider(provider_server: "ProviderServer") -> "ProviderServer":
    """The module's provider server, with nothing scripted and nothing seen."""
    provider_server.reset()
    return provider_server
