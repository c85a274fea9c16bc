"""The cluster tests' models, database and network. They need root and an attested model."""

import json
import os
import shutil
from base64 import b64decode
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from evals.signing import make_statement, sign
from serving.artifacts.manifest import file_manifest
from serving.artifacts.signing_key import load_signer, read_key
from serving.contracts.attestation import FILE, GatePredicate, Statement

from ..unit.database import postgres_server
from .pods import ROOT, Pods, pod_network, pods, usable
from .release import narrowgate

MODEL = "smollm2-135m-instruct"
STATE = Path(os.environ.get("STATE", ROOT / ".narrowgate"))


@dataclass(frozen=True, slots=True)
class Models:
    """A store with the model in INT8 and in 16 bits, both attested, and one that is not.

    key: the trusted public key.
    """

    store: Path
    key: Path
    int8: str
    bits16: str
    changed: str


@pytest.fixture(scope="session")
def machine() -> None:
    """Skip where pods cannot be made; fail where the model is missing."""
    if reason := usable():
        pytest.skip(reason)
    assert (STATE / "artifacts" / f"{MODEL}-int8-w8a8" / FILE).is_file(), (
        f"no attested model in {str(STATE)!r}: run `make serve` once, or set STATE"
    )


@pytest.fixture(scope="session")
def models(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Models:
    store = tmp_path_factory.mktemp("store")
    private = STATE / "keys" / "development"
    int8 = STATE / "artifacts" / f"{MODEL}-int8-w8a8"
    attested = stored(store, int8)
    bits16 = tmp_path_factory.mktemp("bits16") / MODEL
    shutil.copytree(STATE / "models" / MODEL, bits16)
    attest_like(bits16, int8 / FILE, private)
    changed = shutil.copytree(store / stored(store, bits16), store / f"sha256-{'f' * 64}")
    # Its attestation names another model.
    (changed / FILE).write_bytes((int8 / FILE).read_bytes())
    return Models(
        store, private.with_name("development.pub"), attested, stored(store, bits16), changed.name
    )


def stored(store: Path, folder: Path) -> str:
    """Copy a model into the store and return its digest."""
    name = f"sha256-{file_manifest(folder).root}"
    if not (store / name).exists():
        shutil.copytree(folder, store / name)
    return name


def attest_like(folder: Path, envelope: Path, private: Path) -> None:
    """Sign for this folder what a gate found for another.

    The tests need a second model that may serve, and say nothing about its quality.
    """
    payload = json.loads(envelope.read_bytes())["payload"]
    found: GatePredicate = Statement.model_validate_json(b64decode(payload)).predicate
    manifest = file_manifest(folder)
    predicate = found.model_copy(
        update={
            "artifact": found.artifact.model_copy(
                update={"files": manifest.files, "precision": "16-bit", "recipe": None}
            ),
            # Others in 16 bits.
            "engine": found.engine.model_copy(update={"kernels": {}}),
            "probes": {},
        }
    )
    statement = make_statement(MODEL, manifest.root, predicate)
    (folder / FILE).write_bytes(sign(statement, load_signer(read_key(private), str(private))))


@dataclass(frozen=True, slots=True)
class Ledger:
    """PostgreSQL with the ledger's tables and one tenant. socket: its folder."""

    url: str
    socket: Path
    key: str


@pytest.fixture(scope="session")
def ledger(machine: None) -> Iterator[Ledger]:
    with postgres_server() as url:
        # What the migration Job does, and a tenant.
        environment = {"NARROWGATE_LEDGER__URL": url}
        narrowgate("tenant", "create", "acme", **environment)
        key = narrowgate("key", "create", "--tenant", "acme", "--json", **environment)
        socket = Path(url.partition("host=")[2].partition("&")[0])
        yield Ledger(url, socket, json.loads(key)["key"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the pods' logs to the report of a failure."""
    report = yield
    if report.failed and "machine_pods" in item.funcargs:
        running, _ = item.funcargs["machine_pods"]
        report.sections += [(f"pod {pod.spec.name}", pod.tail()) for pod in running.started]
    return report


@pytest.fixture(scope="session")
def machine_pods(
    machine: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Pods, Path]]:
    folder = tmp_path_factory.mktemp("pods")
    with pod_network(), pods(folder) as running:
        yield running, folder
