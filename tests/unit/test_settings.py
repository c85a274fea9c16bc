"""Settings: three sources, unknown keys refused, every error names its field."""

from pathlib import Path
from typing import Any

import pytest

from serving.contracts.errors import InvalidSettings
from serving.contracts.settings import BUNDLED_MODEL, Settings, bundled_recipe
from serving.contracts.settings_sources import load_settings


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
        ("models: 3\n", "models"),
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
def test_invalid_settings_are_refused_with_their_field(
    tmp_path: Path, text: str, field: str
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings(write(tmp_path, text), {})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task_models: {sentiment: other}\n", "'other' is not one of the models"),
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
def test_contradictory_settings_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        load_settings(write(tmp_path, text), {})


def test_an_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWGATE_PROT", "1")
    with pytest.raises(InvalidSettings, match="'NARROWGATE_PROT', which is not a setting"):
        load_settings(None, {})


def test_the_variables_of_commands_and_of_ci_are_no_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("KEY", "SIGNING_KEY", "PUBLIC_KEY"):
        monkeypatch.setenv(f"NARROWGATE_{name}", "x")
    assert load_settings(None, {}) == Settings()


def test_an_unreadable_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NARROWGATE_MODELS", "[{")
    with pytest.raises(InvalidSettings, match="NARROWGATE_MODELS does not hold JSON"):
        load_settings(None, {})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="no settings file"):
        load_settings(tmp_path / "none.yaml", {})


def test_settings_cannot_be_changed() -> None:
    settings = load_settings(None, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1  # type: ignore[misc]


BENT = [
    ("port: yes\n", "reads yes as true or false", 1),
    ("port: 010000\n", "reads 010000 as a number", 1),
    ("host: 127.0.0.1\nport: 2:13\n", "reads 2:13 as a number", 2),
    ("port: 8_000\n", "reads 8_000 as a number", 1),
    ("port: 0x1F40\n", "reads 0x1F40 as a number", 1),
    ("gateway: {max_inputs: on}\n", "reads on as true or false", 1),
    ("port: 8001\nport: 8002\n", "the key 'port' is written twice", 2),
    ("gateway: {max_inputs: 5, max_inputs: 50}\n", "the key 'max_inputs' is written twice", 1),
]


@pytest.mark.parametrize(("text", "message", "line"), BENT)
def test_a_settings_file_has_each_key_once_in_one_form(
    tmp_path: Path, text: str, message: str, line: int
) -> None:
    with pytest.raises(InvalidSettings, match=message) as caught:
        load_settings(write(tmp_path, text), {})
    assert f"(line {line}, " in caught.value.message


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("port: true\n", "port"),
        ("port: '8000'\n", "port"),
        ("port: 8000.5\n", "port"),
        ("host: 1\n", "host"),
        ("gateway: {request_timeout_s: true}\n", "gateway.request_timeout_s"),
        ("attestation: {development: 1}\n", "attestation.development"),
        ("attestation: {development: 'true'}\n", "attestation.development"),
        ("frontier: {bounds: {max_tokens: {economy: true, standard: 5, frontier: 6}}}\n",
         "frontier.bounds.max_tokens.economy"),
        ("models: [{id: a, source: b, accelerator: {kind: cpu}, max_num_seqs: true}]\n",
         "models.0.max_num_seqs"),
    ],
)  # fmt: skip
def test_a_type_in_a_file_is_not_bent(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings(write(tmp_path, text), {})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('state: "a\\0b"\n', "state"),
        ('attestation: {trusted_keys: [a, "b\\x00"]}\n', "attestation.trusted_keys.1"),
        ('evidence: {signing_key: "\\u0000"}\n', "evidence.signing_key"),
        ('models: [{id: a, source: "b\\0", accelerator: {kind: cpu}}]\n', "models.0.source"),
    ],
)
def test_a_nul_in_a_text_is_refused(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(InvalidSettings, match="holds the character NUL") as caught:
        load_settings(write(tmp_path, text), {})
    assert caught.value.field == field
    variable = {"NARROWGATE_EVIDENCE__TRUSTED_KEYS": '["a\\u0000"]'}
    with pytest.raises(InvalidSettings, match="NARROWGATE_EVIDENCE__TRUSTED_KEYS") as caught:
        load_settings(None, {}, variable)
    assert caught.value.field == "evidence.trusted_keys.0"


ALIASES = "a: &a [1, 1]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}, *{a}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ALIASES, "aliases make more than 1000000 values"),
        ("models: &m [*m]\n", "stands for what it is part of"),
        ("gateway: &g {max_inputs: 5, x: *g}\n", "stands for what it is part of"),
        ("gateway: {x: &x {y: {z: *x}}}\n", "stands for what it is part of"),
        ("x: " + "[" * 150 + "]" * 150 + "\n", "nested more than 100 levels"),
    ],
    ids=["many", "list", "mapping", "inner", "deep"],
)
def test_aliases_without_end_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        load_settings(write(tmp_path, text), {})


@pytest.mark.parametrize("number", [".inf", "-.inf", ".nan"])
@pytest.mark.parametrize(
    "text",
    ["gateway: {request_timeout_s: NUMBER}", "attestation: {max_age_days: NUMBER}",
     "cache: {namespace_ttl_s: {a: NUMBER}}", "evidence: {max_usd_a_day: NUMBER}"],
)  # fmt: skip
def test_a_number_that_is_not_finite_is_refused(tmp_path: Path, text: str, number: str) -> None:
    with pytest.raises(InvalidSettings, match="which is not a number of its unit") as caught:
        load_settings(write(tmp_path, text.replace("NUMBER", number)), {})
    assert caught.value.field in text.replace(": {", ".").replace("}", "")


@pytest.mark.parametrize(
    "text",
    ["nothing: 1", "state: 2026-11-27", "port: 0", "port: x", "models: [{}]",
     "ledger: {time_zone: x}", "ledger: {time_zone: localtime}", "ledger: {time_zone: right/UTC}",
     "ledger: {time_zone: posixrules}", "frontier: {prompt_cache: {marker: x}}"],
)  # fmt: skip
def test_a_message_has_none_of_the_librarys_words(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings(write(tmp_path, text), {})
    for inside in ("Input", "inputs", "class", "Value error", "Field", "pathlib", "pydantic"):
        assert inside not in caught.value.message


def test_a_whole_number_is_a_number_of_seconds(tmp_path: Path) -> None:
    file = write(tmp_path, "gateway: {request_timeout_s: 7}\nmodels: [{id: a, source: b, "
                 "accelerator: {kind: cpu}, replica_hour_usd: 0.25}]\n")  # fmt: skip
    settings = load_settings(file, {})
    assert settings.gateway.request_timeout_s == 7.0
    assert str(settings.models[0].replica_hour_usd) == "0.25"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NARROWGATE_GATEWAY", "{bad", "does not hold JSON"),
        ("NARROWGATE_GATEWAY", "[1]", "valid"),
        ("NARROWGATE_GATEWAY", '{"max_inputs": true}', "gateway.max_inputs"),
        ("NARROWGATE_GATEWAY", '{"max_inputs": 5, "max_inputs": 6}', "written twice"),
        ("NARROWGATE_ATTESTATION__TRUSTED_KEYS", "/a/b", "does not hold JSON"),
        ("NARROWGATE_MODELS", '[{"id": 1}]', "models.0.id"),
        ("NARROWGATE_PORT", "high", "port"),
        ("NARROWGATE_GATEWAY__MAX_INPUT", "1", "which is not a setting"),
        ("NARROWGATE_MODELS__0__ID", "a", "has no settings below it"),
        ("NARROWGATE_FRONTIER__PROVIDERS__X__NO", "a", "which is not a setting"),
    ],
)
def test_a_variable_at_fault_is_named(variable: str, value: str, message: str) -> None:
    with pytest.raises(InvalidSettings, match=message) as caught:
        load_settings(None, {}, {variable: value})
    assert variable in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize(
    ("variable", "value", "field"),
    [
        *(("NARROWGATE_PORT", value, "port")
          for value in ("8_001", "+8001", " 8001", "8001 ", "08001", "0x1F41", "\u0668\u0660",
                        "8001.0", "8e3", "true", "'8001'")),
        *(("NARROWGATE_GATEWAY__REQUEST_TIMEOUT_S", value, "gateway.request_timeout_s")
          for value in ("1_0", "+10", " 10", "\u0661", "nan", "inf", "1e", "010", "0.5_5")),
        *(("NARROWGATE_EVIDENCE__MAX_USD_A_DAY", value, "evidence.max_usd_a_day")
          for value in ("1_000", "+1", "\uff11", "NaN", "1,5")),
        *(("NARROWGATE_CACHE__ENABLED", value, "cache.enabled")
          for value in ("yes", "no", "on", "off", "1", "0", "t", "y", "true ")),
        ("NARROWGATE_EVIDENCE__KEEP_TEXTS", "1_0", "evidence.keep_texts"),
        ("narrowgate_models__replicas", "1_0", "narrowgate_models__replicas"),
    ],
)  # fmt: skip
def test_a_variable_holds_numbers_and_truth_values_as_a_file_does(
    variable: str, value: str, field: str
) -> None:
    with pytest.raises(InvalidSettings) as caught:
        load_settings(None, {}, {variable: value})
    assert variable in caught.value.message
    assert caught.value.field == field


def test_plain_numbers_and_truth_values_of_variables_are_read() -> None:
    settings = load_settings(None, {}, {
        "NARROWGATE_PORT": "8001", "NARROWGATE_GATEWAY__REQUEST_TIMEOUT_S": "7.5",
        "NARROWGATE_CONTEXT__RATIO": ".5", "NARROWGATE_EVIDENCE__MAX_USD_A_DAY": "0.25",
        "NARROWGATE_EVIDENCE__ALARM": "1e4", "NARROWGATE_CACHE__ENABLED": "False",
    })  # fmt: skip
    assert (settings.port, settings.gateway.request_timeout_s) == (8001, 7.5)
    assert (settings.context.ratio, settings.evidence.alarm) == (0.5, 10_000.0)
    assert (str(settings.evidence.max_usd_a_day), settings.cache.enabled) == ("0.25", False)


def test_a_variable_reaches_every_level() -> None:
    settings = load_settings(None, {}, {
        "NARROWGATE_FRONTIER__PROVIDERS__OPENAI__API": "openai",
        "NARROWGATE_FRONTIER__PROVIDERS__ANTHROPIC__API": "anthropic",
        "NARROWGATE_FRONTIER__PROVIDERS__OPENAI__KEYLESS": "true",
        "NARROWGATE_ATTESTATION__TRUSTED_KEYS": '["/a", "/b"]',
        "NARROWGATE_LEDGER__URL": "postgresql://u:p@h/d",
        "NARROWGATE_STATE": "",
        "OTHER": "x",
    })  # fmt: skip
    assert settings.frontier.providers["openai"].keyless
    assert settings.attestation.trusted_keys == (Path("/a"), Path("/b"))
    assert settings.ledger.url is not None
    assert settings.state == Path(".narrowgate")


@pytest.mark.parametrize(
    "url",
    ["http://[", "http://[::1", "https://", "https://:1/v1", "https://h:99999/v1", "https://h:p/",
     "https://u:hunter2@/", "https://h/v1#hunter2", "https://h /v1"],
)  # fmt: skip
def test_an_address_without_a_usable_host_is_refused_and_not_shown(url: str) -> None:
    providers = {"openai": {"api": "openai", "base_url": url}, "anthropic": {"api": "anthropic"}}
    with pytest.raises(InvalidSettings, match="address of a server") as caught:
        load_settings(None, {"frontier": {"providers": providers}})
    assert caught.value.field == "frontier.providers.openai.base_url"
    assert "hunter2" not in caught.value.message


@pytest.mark.parametrize(
    ("own", "message", "field"),
    [
        ({"headers": {"X-Api-Key": "hunter2"}}, "would carry a secret", ".headers"),
        ({"headers": {"Authorization": "hunter2"}}, "would carry a secret", ".headers"),
        ({"headers": {"Content-Type": "hunter2"}}, "set by the HTTP client", ".headers"),
        ({"headers": {"X-Team": "hunter2", "x-team": "b"}}, "named twice", ".headers"),
        ({"headers": {"X Team": "hunter2"}}, "X Team", ".headers.X Team"),
        ({"headers": {"X-Team": "hunter2\r\nx-b: c"}}, "X-Team", ".headers.X-Team"),
        ({"key_header": "Host"}, "the header of something else", ".key_header"),
        ({"key_header": "X-Team", "headers": {"x-team": "a"}}, "of something else", ".key_header"),
        ({"key_header": "X-Team", "keyless": True}, "leave out key_header", ".keyless"),
    ],
)
def test_headers_that_cannot_be_sent_are_refused(
    own: dict[str, Any], message: str, field: str
) -> None:
    providers = {"openai": {"api": "openai", **own}, "anthropic": {"api": "anthropic"}}
    with pytest.raises(InvalidSettings, match=message) as caught:
        load_settings(None, {"frontier": {"providers": providers}})
    assert caught.value.field is not None
    assert caught.value.field.removesuffix(".[key]") == f"frontier.providers.openai{field}"
    assert caught.value.fix
