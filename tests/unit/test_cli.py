"""The program: subcommands found, nothing heavy loaded for help, errors with their fix."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from serving.cli import installed_commands, main, narrowgate_parser, run_program
from serving.tasks.catalog import load_specs

from ..built_in_tasks import BUILT_IN_TASKS

HEAVY = ["ray", "vllm", "torch", "transformers", "pydantic", "fastapi", "yaml", "rich", "numpy"]


def test_help_lists_the_subcommands_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom serving.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    for command in (
        "config",
        "gate",
        "keygen",
        "materialize",
        "quantize",
        "serve",
        "suite",
        "tasks",
        "verify",
    ):
        assert command in done.stdout


def helped(*words: str) -> str:
    command = [sys.executable, "-m", "serving.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return " ".join(done.stdout.split())


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield the parser and those of its subcommands, nested ones included."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for nested in action.choices.values():
                yield from parsers(nested)


def test_every_help_describes_its_command_and_states_the_exit_statuses() -> None:
    found = list(parsers(narrowgate_parser()))
    assert len(found) > len(installed_commands()) + 20
    assert [one.prog for one in found if not one.description] == []
    assert [one.prog for one in found if "Exit status: 0" not in (one.epilog or "")] == []
    statuses = {one.prog: one.epilog or "" for one in found}
    assert "3 inconclusive" in statuses["narrowgate gate"]
    assert "3 inconclusive" in statuses["narrowgate suite"]
    assert "3 the batch has not ended" in statuses["narrowgate batch watch"]
    assert "3 " not in statuses["narrowgate tenant list"]
    assert "3 inconclusive" in statuses["narrowgate"]
    shown = helped("evidence", "replay", "--help")
    assert "estimate when labelled inputs would earn a claim" in shown
    assert "Exit status: 0 done, 1 failed, 2 wrong use" in shown


def test_the_version_is_printed() -> None:
    assert helped("--version") == f"narrowgate {version('narrowgate')}"


def test_only_commands_that_listen_or_print_settings_take_a_port() -> None:
    taking = {
        one.prog
        for one in parsers(narrowgate_parser())
        if any("--port" in action.option_strings for action in one._actions)
    }
    assert taking == {"narrowgate config", "narrowgate serve"}


def test_only_the_arguments_of_the_called_command_are_configured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configured: list[str] = []

    class Recorded:
        HELP = "records that it was configured"

        def __init__(self, name: str) -> None:
            self.name = name

        def configure(self, parser: argparse.ArgumentParser) -> None:
            configured.append(self.name)

        def run(self, args: argparse.Namespace) -> int:
            return 0

    commands = {name: Recorded(name) for name in ("one", "two")}
    assert run_program("program", "", commands, ["two", "--json"]) == 0
    assert configured == ["two"]
    with pytest.raises(SystemExit):
        run_program("program", "", commands, ["--help"])
    assert configured == ["two", "one", "two"]
    assert "one" in capsys.readouterr().out


def test_an_unknown_subcommand_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fly"])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "words", [["fly", "--json"], ["config", "--json", "--port", "x"], ["verify", "--json"]]
)
def test_wrong_arguments_are_one_json_document_too(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "invalid_request"
    assert "--help" in error["fix"]


def test_config_prints_settings_that_can_be_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "--port", "9000"]) == 0
    first = capsys.readouterr().out
    file = tmp_path / "settings.yaml"
    file.write_text(first, encoding="utf-8")
    assert main(["config", "--config", str(file)]) == 0
    assert capsys.readouterr().out == first
    assert yaml.safe_load(first)["port"] == 9000


def test_an_error_has_its_field_and_fix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("models: [{id: a, source: x/y, accelerator: {kind: gpu}}]", encoding="utf-8")
    assert main(["config", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert "models.0.revision" in error
    assert "fix: pin the commit" in error
    assert main(["config", "--config", str(file), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["error"]["code"] == "invalid_settings"


def test_tasks_lists_and_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(BUILT_IN_TASKS)
    assert main(["tasks", "show", "topic"]) == 0
    shown = capsys.readouterr().out
    (tmp_path / "topic.yaml").write_text(shown, encoding="utf-8")
    assert main(["tasks", "--json", "--tasks-dir", str(tmp_path)]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again == rows
    assert main(["tasks", "show", "nothing"]) == 2
    assert "use one of" in capsys.readouterr().err


def test_tasks_show_the_messages_of_a_prompt(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "show", "topic", "--prompt", " The cup final. ", "--json"]) == 0
    system, *shots, last = json.loads(capsys.readouterr().out)
    spec = load_specs(None)["topic"]
    assert system == {"role": "system", "content": spec.instruction}
    assert [shot["role"] for shot in shots] == ["user", "assistant"] * len(spec.examples)
    assert shots[0]["content"] == spec.examples[0].text
    assert last == {"role": "user", "content": "The cup final."}
    words = ["--prompt", "Good day.", "--source-language", "en", "--target-language"]
    assert main(["tasks", "show", "translation", *words, "fr"]) == 0
    shown = capsys.readouterr().out
    assert "French" in shown.partition("[user]")[0]
    assert shown.endswith("[user]\nGood day.\n")
    assert main(["tasks", "show", "translation", *words, "xx"]) == 2
    assert "has no language 'xx'" in capsys.readouterr().err


def test_tasks_show_without_a_name_lists_the_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "show"]) == 2
    message = capsys.readouterr().err
    assert "needs the name of a task" in message
    assert "ner, sentiment, topic, translation" in message


def config(file: Path, text: str) -> int:
    file.write_text(text, encoding="utf-8")
    return main(["config", "--config", str(file)])


PROVIDER = "frontier: {providers: {anthropic: {api: anthropic}, openai: {api: openai, base_url: "


def test_config_prints_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for url in ("http://user:hunter2@host:1/v1", "http://hunter2@host/v1?api-key=hunter2&v=1"):
        assert config(tmp_path / "s.yaml", PROVIDER + f"'{url}'}}}}}}") == 0
        shown = capsys.readouterr().out
        assert "hunter2" not in shown
        assert "@host" in shown
    url = "postgresql://u:hunter2@h/d"
    assert config(tmp_path / "s.yaml", f"ledger: {{url: '{url}'}}") == 0
    assert "hunter2" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("ledger: {url: 'mysql://u:p@h/d'}", "ledger.url"),
        ("ledger: {prices_file: /none.yaml}", "ledger.prices_file"),
        ("ledger: {reference_model: anthropic/nobody-knows-it}", "ledger.reference_model"),
        ("routing: {model: /none}", "routing.model"),
        (PROVIDER + "'http://h', api_key_file: /none}}}", "frontier.providers.openai.api_key_file"),
    ],
)
def test_config_refuses_what_serve_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, field: str
) -> None:
    assert config(tmp_path / "s.yaml", text) == 2
    assert field in capsys.readouterr().err
