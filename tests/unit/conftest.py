"""Shared pieces of the unit tests: a tokenizer whose ids can be read, specs, a signing key."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr

from evals.signing import KeyPair
from serving.contracts.task_spec import ClassificationSpec, TaskSpec
from serving.tasks.catalog import load_specs
from serving.tasks.prompt import Turn

from .attested import make_key
from .database import fresh_postgres, postgres_server


class CharacterTokenizer:
    """One token a character; the template marks turns with characters that texts do not hold."""

    end_of_turn_id = ord("\x03")

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def encode_rendered(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def render(self, turns: Sequence[Turn]) -> str:
        body = "".join(f"\x02{turn.role}\n{turn.content}\x03" for turn in turns)
        return body + "\x02assistant\n"


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
    """URL of a real PostgreSQL server, started at its first use."""
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest) -> SecretStr | None:
    """An empty database: None for SQLite, which goes to the state folder."""
    if request.param == "sqlite":
        return None
    return fresh_postgres(request.getfixturevalue("postgres"), f"t{uuid4().hex}")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder of the test's own."""
    return tmp_path / "state"
