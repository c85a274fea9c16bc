"""Shared pieces of the unit tests: a tokenizer whose ids can be read, specs, a signing key."""

from collections.abc import Sequence

import pytest

from evals.signing import KeyPair
from serving.contracts.task_spec import ClassificationSpec, TaskSpec
from serving.tasks.catalog import load_specs
from serving.tasks.prompt import Turn

from .attested import make_key


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
