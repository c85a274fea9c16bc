"""Each setting with odd values: read as written, or refused with the field and the fix."""

import copy
import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from serving.cli import main
from serving.contracts.errors import InvalidSettings
from serving.contracts.settings import Settings
from serving.contracts.settings_sources import _models, _origin, _plain, load_settings

from .odd_files import write_odd_files

BASE: dict[str, Any] = {
    "models": [{"id": "m", "source": "bundled:smollm2-135m-instruct", "replica_hour_usd": 0,
                "accelerator": {"kind": "cpu"}}],
    "frontier": {"providers": {"openai": {"api": "openai"}, "anthropic": {"api": "anthropic"}}},
}  # fmt: skip
ODD: list[Any] = [
    None, True, -1, 1.5, 10**30, 1e300, float("nan"), "", " ", "x", "5", "\u0663", [], {}, [1],
    ["", " "], {"": ""}, {"x": {"x": [[]]}}, "/", "..", "~/x", "\x07", "\ud800", "a\nb", "x" * 300,
    "x/" * 3000,
]  # fmt: skip
LIBRARY = ("Input", "String should", "pydantic", "Value error", "Traceback", "pathlib", "Errno")


def fields(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, FieldInfo]]:
    """Yield every setting, by its path; 0 and the names of BASE stand for lists and mappings."""
    for name, field in model.model_fields.items():
        here = (*path, name)
        yield ".".join(here), field
        for inner in _models(field.annotation):
            yield from fields(inner, here)
        if _origin(field.annotation) in (dict, tuple):
            place = "0" if _origin(field.annotation) is tuple else "openai"
            for kind in get_args(_plain(field.annotation)):
                for inner in _models(kind):
                    yield from fields(inner, (*here, place))


FIELDS = dict(fields(Settings))
PATHS = [name for name, field in FIELDS.items() if "Path" in str(field.annotation)]


def document(path: str, value: Any) -> dict[str, Any]:
    """Return settings with one value set."""
    whole = copy.deepcopy(BASE)
    node: Any = whole
    *parents, last = path.split(".")
    if "accelerator" in parents and last in ("type", "count", "memory_utilization"):
        whole["models"][0]["accelerator"] = {"kind": "gpu"}
    for parent in parents:
        node = node[int(parent)] if isinstance(node, list) else node.setdefault(parent, {})
    node[last] = value
    return whole


def load(tmp_path: Path, content: dict[str, Any]) -> Settings:
    file = tmp_path / "settings.yaml"
    # JSON is YAML, but for NaN and infinite numbers.
    text = json.dumps(content).replace("NaN", ".nan").replace("Infinity", ".inf")
    file.write_text(text, encoding="utf-8")
    return load_settings(file, {}, {})


def test_the_paths_of_this_test_are_settings(tmp_path: Path) -> None:
    assert load(tmp_path, BASE).models[0].id == "m"
    assert len(FIELDS) > 150
    assert len(PATHS) > 14


@pytest.mark.parametrize("path", sorted(FIELDS))
def test_an_odd_value_is_read_as_written_or_refused(tmp_path: Path, path: str) -> None:
    refused: list[InvalidSettings] = []
    for value in ODD:
        try:
            load(tmp_path, document(path, value))
        except InvalidSettings as error:
            refused.append(error)
    assert len(refused) > 5
    for refusal in refused:
        assert refusal.field
        assert refusal.fix
        for inside in LIBRARY:
            assert inside not in refusal.message, refusal.message


def bounds(field: FieldInfo) -> set[str]:
    return {name for item in field.metadata for name in ("gt", "ge", "lt", "le")
            if getattr(item, name, None) is not None}  # fmt: skip


def test_every_number_has_a_least_and_a_largest_value(tmp_path: Path) -> None:
    numbers = {
        name for name, field in FIELDS.items() if _plain(field.annotation) in (int, float, Decimal)
    }
    assert len(numbers) > 60
    for name in numbers:
        for value in (10**30, -(10**30)):
            with pytest.raises(InvalidSettings):
                load(tmp_path, document(name, value))


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize("blank", ["", " ", "\t", "\u00a0", "\u200b"])
def test_a_blank_path_is_not_the_current_folder(tmp_path: Path, path: str, blank: str) -> None:
    value = [blank] if "tuple" in str(FIELDS[path].annotation) else blank
    with pytest.raises(InvalidSettings, match="blank") as caught:
        load(tmp_path, document(path, value))
    assert path.partition(".")[0] in str(caught.value.field)


TEXTS = [
    "cache.excluded_keys", "cache.excluded_tasks", "context.tools", "frontier.bounds.directive",
    "frontier.bounds.stop", "frontier.providers.openai.api_key_env", "models.0.accelerator.type",
    "frontier.prompt_cache.marker", "models.0.source", "ledger.time_zone", "models.0.id",
    "evidence.baseline", "tiers.judge", "ledger.reference_model",
]  # fmt: skip


@pytest.mark.parametrize("path", TEXTS)
def test_a_text_has_a_visible_character(tmp_path: Path, path: str) -> None:
    for blank in ("", " ", " " * 5, "\u200b" * 5, "\x07" * 5):
        value = [blank] if "tuple" in str(FIELDS[path].annotation) else blank
        with pytest.raises(InvalidSettings) as caught:
            load(tmp_path, document(path, value))
        assert path.partition(".")[0] in str(caught.value.field)


AMOUNTS = [name for name, field in FIELDS.items() if "Decimal" in str(field.annotation)]


@pytest.mark.parametrize("path", AMOUNTS)
def test_an_amount_of_money_is_written_in_digits(tmp_path: Path, path: str) -> None:
    for value in ("\u0663", "1e3", " 5 ", "1_000", "+5", "-5", "NaN", "Infinity", "0x1", "", "5,0"):
        with pytest.raises(InvalidSettings, match=r"number|amount"):
            load(tmp_path, document(path, value))
        variable = "NARROWGATE_" + path.upper().replace(".", "__")
        if value and "0" not in path.split("."):
            with pytest.raises(InvalidSettings, match="amount"):
                load_settings(None, {}, {variable: value})
    for written, meant in (("2.50", "2.5"), (2.5, "2.5"), (3, "3"), ("0", "0"), (1e3, "1000")):
        found: Any = load(tmp_path, document(path, written))
        for part in path.split("."):
            found = found[int(part)] if isinstance(found, tuple) else getattr(found, part)
        assert found == Decimal(meant)


@pytest.mark.parametrize(
    "host",
    ["../..", "", " ", "a b", "127.0.0.1:80", "[::1]", "http://a", "1.2.3.4.5", "999.1.1.1", "-a",
     "a..b", "a_b", "\u212aelvin", "x" * 64, "a\n"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused(tmp_path: Path, host: str) -> None:
    with pytest.raises(InvalidSettings, match="host name") as caught:
        load(tmp_path, document("host", host))
    assert caught.value.field == "host"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "fe80::1%eth0", "localhost", "Pod-0.a."])  # noqa: S104
def test_an_address_is_read(tmp_path: Path, host: str) -> None:
    assert load(tmp_path, document("host", host)).host == host


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NARROWGATE_GATEWAY", "[" * 5000, "nested too deeply"),
        ("NARROWGATE_GATEWAY", '{"a":' * 5000, "nested too deeply"),
        ("NARROWGATE_MODELS", "[" * 900 + "]" * 900, "100 levels"),
        ("NARROWGATE_GATEWAY", '{"max_inputs": ' + "1" * 5000 + "}", "too many digits"),
        ("NARROWGATE_GATEWAY", '{"max_inputs": 1e999}', "not a number"),
        ("NARROWGATE_PORT", "1" * 5000, "whole number"),
        ("NARROWGATE_EVIDENCE__MAX_USD_A_DAY", "1" * 5000, "number"),
        ("NARROWGATE_STATE", " ", "blank"),
        ("NARROWGATE_STATE", "\udcff", "not UTF-8"),
        ("NARROWGATE_EVIDENCE__SIGNING_KEY", ".", "names a folder"),
        ("NARROWGATE_ATTESTATION__TRUSTED_KEYS", '[""]', "blank"),
        ("NARROWGATE_FRONTIER", '{"\\ud800": 1}', "half of a character"),
        ("narrowgate_port", "1", "capital letters"),
        ("NARROWGATE_Port", "1", "capital letters"),
    ],
)  # fmt: skip
def test_a_bad_variable_ends_a_command_with_the_status_of_a_bad_setting(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    message: str,
) -> None:
    with pytest.raises(InvalidSettings, match=message) as caught:
        load_settings(None, {}, {variable: value})
    assert caught.value.fix
    try:
        monkeypatch.setenv(variable, value)
    except UnicodeError:
        return
    assert main(["config"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gateway: {2026-11-27: 1}", "is not a name"),
        ("gateway: {1: 2}", "is not a name"),
        ("gateway: {null: 2}", "is not a name"),
        ("host: !!binary aGk=", "read as a bytes"),
        ("state: 2026-11-27", "read as a date"),
        ("gateway: !!set {a}", "read as a set"),
        ('"\\ud800": 1', "half of a character"),
        ("port: " + "1" * 5000, "digits"),
    ],
)
def test_a_bad_file_ends_a_command_with_the_status_of_a_bad_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    assert main(["config", "--config", str(file)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("port: 70000", "port: it must be less than or equal to 65535, not 70000"),
        ('port: "8000"', "port: it must be a whole number, not '8000'"),
        ("cache: {semantic: always}", "it must be 'off', 'shadow' or 'on', not 'always'"),
        ("batch: {enabled: 1}", "it must be true or false, not 1"),
        ("ledger: {reference_model: gpt}", "it must be provider/model, such as"),
        ("models: 5", "models: it must be a list, not 5"),
        ("gateway: []", "gateway: it must be a mapping"),
        ("evidence: {max_usd_a_day: 1e3x}", "such as 2.50, not '1e3x'"),
        ("gateway: {num_cpus: 1.0e+30}", "it must be less than or equal to 1024, not 1e+30"),
    ],
)
def test_a_message_has_the_field_the_value_and_what_it_must_be(
    tmp_path: Path, text: str, told: str
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidSettings) as caught:
        load_settings(file, {}, {})
    assert told in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize(
    "text",
    [
        "frontier: {providers: {openai: {api: openai, api_key: sk-hunter2}}}",
        "frontier: {providers: {openai: {api: openai, base_url: 'u:hunter2@h'}}}",
        "frontier: {providers: {openai: {api: openai, api_key_file: ' hunter2'}}}",
        "ledger: {url: {a: hunter2}}",
        "password: hunter2",
    ],
)
def test_a_message_has_no_value_that_may_be_secret(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InvalidSettings) as caught:
        load_settings(file, {}, {})
    assert "hunter2" not in caught.value.message


@pytest.fixture(name="odd_files")
def odd_files_fixture(tmp_path: Path) -> list[str]:
    return write_odd_files(tmp_path)


@pytest.mark.parametrize("path", sorted(PATHS))
def test_config_ends_with_a_documented_status_for_every_file(
    tmp_path: Path, odd_files: list[str], capsys: pytest.CaptureFixture[str], path: str
) -> None:
    for odd in odd_files:
        value = [odd] if "tuple" in str(FIELDS[path].annotation) else odd
        file = tmp_path / "settings.yaml"
        # libyaml: PyYAML's own takes as long as the command.
        text = yaml.dump(document(path, value), Dumper=yaml.CSafeDumper)
        file.write_text(text, encoding="utf-8")
        status = main(["config", "--config", str(file)])
        told = capsys.readouterr().err
        assert status in (0, 2), (odd, told)
        if status == 2:
            assert "  at:  " in told, (odd, told)
            assert "  fix: " in told, (odd, told)
            for inside in LIBRARY:
                assert inside not in told, (odd, told)


@pytest.mark.parametrize("arguments", [["config", "--state"], ["report", "--config"]])
@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_path_on_the_command_line_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], blank: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*arguments, blank])
    assert caught.value.code == 2
    assert "is blank" in capsys.readouterr().err
    assert main(["config", "--json", "--state", blank]) == 2
    assert "is blank" in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.parametrize("port", [0, 99_999])
def test_a_port_that_no_database_has_is_refused_without_the_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], port: int
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"ledger: {{url: 'postgresql://u:hunter2@h:{port}/d'}}", encoding="utf-8")
    assert main(["config", "--config", str(file)]) == 2
    told = capsys.readouterr().err
    assert f"has the port {port}" in told
    assert "1 to 65535" in told
    assert "hunter2" not in told
