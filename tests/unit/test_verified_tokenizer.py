"""A gateway loads tokenizer and chat template only from bytes that the attestation covers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from serving.artifacts import verified_tokenizer
from serving.artifacts.checkpoint import Checkpoint
from serving.artifacts.load_check import LoadCheck
from serving.artifacts.signing_key import KeyPair
from serving.artifacts.verified_tokenizer import load_tokenizer
from serving.contracts.errors import AttestationRefused
from serving.contracts.settings import AttestationSettings, CpuAccelerator, ModelSettings, Settings
from serving.tasks.prompt import Turn

from .attested import attest, predicate

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
LOSING = "{% for m in messages %}{{ m['role'] }}: {% endfor %}"


@pytest.fixture
def folder(tmp_path: Path, key: KeyPair) -> Path:
    folder = tmp_path / "model"
    backend = Tokenizer(models.WordLevel({"user:": 0, "Hello": 1, "</s>": 2, "[UNK]": 3}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")  # noqa: S106
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(64))
    attest(folder, key, predicate(folder, {}))
    return folder


def check(folder: Path, key: KeyPair, *, development: bool = False) -> LoadCheck:
    model = ModelSettings(id="m", source=str(folder), accelerator=CpuAccelerator(kind="cpu"))
    rules = AttestationSettings(trusted_keys=(key.public,), development=development)
    settings = Settings(state=folder.parent / "state", models=(model,), attestation=rules)
    return LoadCheck.of(settings, model, Checkpoint(str(folder), None))


def change_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(LOSING, encoding="utf-8")


def change_vocabulary(folder: Path) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["vocab"] |= {"user:": 1, "Hello": 0}
    file.write_text(json.dumps(content), encoding="utf-8")


def add_template(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text(LOSING, encoding="utf-8")


def link_templates(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "default.jinja").write_text(LOSING, encoding="utf-8")
    (folder / "additional_chat_templates").symlink_to(elsewhere)


def remove_configuration(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


def test_the_attested_tokenizer_is_loaded(folder: Path, key: KeyPair) -> None:
    tokenizer = load_tokenizer(check(folder, key))
    assert tokenizer.render([Turn("user", "Hello")]) == "user: Hello "
    assert tokenizer.encode("Hello") == [1]


@pytest.mark.parametrize(
    "change",
    [change_template, change_vocabulary, add_template, link_templates, remove_configuration],
)
def test_a_changed_tokenizer_is_refused(
    folder: Path, key: KeyPair, change: Callable[[Path], None]
) -> None:
    change(folder)
    with pytest.raises(AttestationRefused) as caught:
        load_tokenizer(check(folder, key))
    assert caught.value.fix
    load_tokenizer(check(folder, key, development=True))


def test_the_loaded_bytes_are_the_verified_bytes(
    folder: Path, key: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder changes after its verification and before transformers reads it."""
    load = verified_tokenizer.CheckpointTokenizer.load

    def load_later(*args: object) -> object:
        change_template(folder)
        return load(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(verified_tokenizer.CheckpointTokenizer, "load", load_later)
    tokenizer = load_tokenizer(check(folder, key))
    assert tokenizer.render([Turn("user", "Hello")]) == "user: Hello "
