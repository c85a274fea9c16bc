"""Settings: three sources, unknown keys refused, every error names its field."""

from pathlib import Path

import pytest

from serving.contracts.errors import InvalidSettings
from serving.contracts.settings import BUNDLED_MODEL, bundled_recipe, load_settings


def write(folder: Path, text: str) -> Path:
    path = folder / "narrowgate.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_anything_the_bundled_model_is_served() -> None:
    settings = load_settings(None, {})
    assert [model.source for model in settings.models] == [f"{BUNDLED_MODEL}@int8-w8a8"]
    assert bundled_recipe(settings.models[0].source) == "int8-w8a8"
    assert bundled_recipe(BUNDLED_MODEL) is None
    assert bundled_recipe("other@int8-w8a8") is None
    assert not settings.attestation.development
    assert (settings.host, settings.port, settings.state) == (
        "127.0.0.1", 8000, Path(".narrowgate"),
    )  # fmt: skip
    assert settings.model_for("anything") == "smollm2-135m-instruct"


def test_flags_beat_the_environment_beats_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(
        tmp_path, "port: 1111\nhost: 127.0.0.9\ngateway: {max_inputs: 5, max_queued_inputs: 6}\n"
    )
    monkeypatch.setenv("NARROWGATE_PORT", "2222")
    monkeypatch.setenv("NARROWGATE_GATEWAY__MAX_INPUTS", "7")
    settings = load_settings(file, {"port": 3333, "host": None})
    assert (settings.port, settings.host) == (3333, "127.0.0.9")
    assert (settings.gateway.max_inputs, settings.gateway.max_queued_inputs) == (7, 6)
    assert load_settings(file, {}).port == 2222


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("prot: 1\n", "prot"),
        ("port: 0\n", "port"),
        ("port: high\n", "port"),
        ("gateway: {max_inputs: -1}\n", "gateway.max_inputs"),
        ("models: []\n", "models"),
        ("models: [{id: a, source: b, accelerator: {kind: tpu}}]\n", "models.0.accelerator"),
        ("models: [{id: a, source: b, accelerator: {kind: cpu}, revision: main}]\n",
         "models.0.revision"),
        ("- 1\n", "config"),
        ("just text\n", "config"),
        ("port: [\n", "config"),
        ("port: 1\nport: 2\n", "config"),
        ("[" * 5000, "config"),
        ("1: 2\n", "config"),
    ],
)  # fmt: skip
def test_what_does_not_hold_is_named(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings(write(tmp_path, text), {})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task_models: {sentiment: other}\n", "'other' is none of the models"),
        (
            "models:\n"
            "- {id: a, source: x/y, accelerator: {kind: cpu}}\n"
            "- {id: a, source: x/z, accelerator: {kind: cpu}}\n",
            "distinct",
        ),
        (
            "models: [{id: a, source: b, accelerator: {kind: cpu}, replicas: {min: 3, max: 2}}]\n",
            "min .3. is above max",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        load_settings(write(tmp_path, text), {})


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWGATE_PROT", "1")
    with pytest.raises(InvalidSettings, match="'NARROWGATE_PROT', which is no setting"):
        load_settings(None, {})


def test_an_unreadable_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWGATE_MODELS", "[{")
    with pytest.raises(InvalidSettings, match=r"an environment variable cannot be read: .*models"):
        load_settings(None, {})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="no settings file"):
        load_settings(tmp_path / "none.yaml", {})


def test_settings_cannot_be_changed() -> None:
    settings = load_settings(None, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]
