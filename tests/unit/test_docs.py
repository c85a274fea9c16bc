"""The documentation names every setting with its default, and its examples hold."""

import json
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from quantize.calibration import read_examples
from quantize.recipe import (
    BitsAndBytesRecipe,
    CalibrationNeed,
    GptqModelRecipe,
    LlmCompressorRecipe,
    built_in_recipes,
)
from serving.cache.guards import refusal as guards
from serving.cache.guards.refusal import refusal
from serving.cache.guards.words import Words
from serving.cli import main, narrowgate_parser
from serving.contracts.batch_settings import BatchSettings
from serving.contracts.cache_settings import CacheSettings
from serving.contracts.context_settings import ContextSettings
from serving.contracts.errors import NarrowgateError
from serving.contracts.evidence_settings import AuditSettings, EvidenceSettings
from serving.contracts.frontier_settings import (
    BoundSettings,
    BreakerSettings,
    FrontierSettings,
    PromptCacheSettings,
    ProviderSettings,
)
from serving.contracts.head_settings import HeadSettings
from serving.contracts.ledger_settings import AuthSettings, LedgerSettings
from serving.contracts.routing import Reason
from serving.contracts.routing_settings import ComplexityThresholds, RoutingSettings
from serving.contracts.settings import (
    AttestationSettings,
    CpuAccelerator,
    GatewaySettings,
    GpuAccelerator,
    ModelSettings,
    Replicas,
    Settings,
)
from serving.contracts.settings_sources import load_settings
from serving.contracts.task_spec import parse_task_spec
from serving.contracts.tiers_settings import TiersSettings
from serving.gateway.metrics import Metrics
from serving.pipeline.context_fields import PART_FIELD
from serving.settings_linter import lint

DOCS = Path(__file__).parents[2] / "docs"
SETTINGS = (DOCS / "settings.md").read_text(encoding="utf-8")

GROUPS: list[tuple[str, type[BaseModel]]] = [
    ("", Settings),
    ("models.", ModelSettings),
    ("models.accelerator.", CpuAccelerator),
    ("models.accelerator.", GpuAccelerator),
    ("models.replicas.", Replicas),
    ("gateway.", GatewaySettings),
    ("attestation.", AttestationSettings),
    ("frontier.", FrontierSettings),
    ("frontier.providers.", ProviderSettings),
    ("frontier.providers.breaker.", BreakerSettings),
    ("frontier.bounds.", BoundSettings),
    ("frontier.prompt_cache.", PromptCacheSettings),
    ("routing.", RoutingSettings),
    ("routing.complexity.", ComplexityThresholds),
    ("ledger.", LedgerSettings),
    ("auth.", AuthSettings),
    ("evidence.", EvidenceSettings),
    ("context.", ContextSettings),
    ("evidence.head.", HeadSettings),
    ("evidence.audit.", AuditSettings),
    ("cache.", CacheSettings),
    ("tiers.", TiersSettings),
    ("batch.", BatchSettings),
]
GROUP_NAMES = {prefix.removesuffix(".") for prefix, _ in GROUPS}
LISTS = {"models", "frontier.providers"}


def documented() -> dict[str, str]:
    rows = re.findall(r"^\| (`[^|]+`) \|\s*([^|]*?)\s*\|", SETTINGS, re.MULTILINE)
    found = {}
    for names, default in rows:
        first, *others = re.findall(r"`([^`]+)`", names)
        parent = first.rpartition(".")[0]
        values = [value.strip() for value in default.split(",")]
        keys = [first, *(parent + other for other in others)]
        found.update(zip(keys, values * (len(keys) if len(values) == 1 else 1), strict=True))
    return found


def fields() -> dict[str, Any]:
    """Return every setting that is a value and not a group of its own, with its default."""
    return {
        f"{prefix}{name}": field.default
        for prefix, model in GROUPS
        for name, field in model.model_fields.items()
        if prefix + name not in GROUP_NAMES - LISTS
    }


def test_every_setting_is_documented_and_none_besides() -> None:
    assert set(documented()) == set(fields())


@pytest.mark.parametrize("name", [n for n, d in fields().items() if isinstance(d, int | float)])
def test_the_documented_default_is_the_default(name: str) -> None:
    # YAML reads 4194304, 0.9 and false alike.
    assert yaml.safe_load(documented()[name]) == fields()[name]


def test_the_gpu_settings_hold(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", SETTINGS, re.DOTALL)
    file = tmp_path / "gpu.yaml"
    key = tmp_path / "gate.pub"
    key.touch()
    file.write_text(block.replace("/etc/narrowgate/gate.pub", str(key)), encoding="utf-8")
    lint(load_settings(file, {}))


def test_every_recipe_and_every_field_of_one_is_documented() -> None:
    text = (DOCS / "quantize.md").read_text(encoding="utf-8")
    recipes = text.partition("## Recipes")[2].partition("### Fields")[0]
    assert set(re.findall(r"^\| `([a-z0-9-]+)`", recipes, re.MULTILINE)) == set(built_in_recipes())
    fields = text.partition("### Fields of a recipe")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", fields))
    for model in (LlmCompressorRecipe, GptqModelRecipe, BitsAndBytesRecipe, CalibrationNeed):
        assert set(model.model_fields) <= named


def test_the_example_calibration_lines_hold(tmp_path: Path) -> None:
    text = (DOCS / "quantize.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    file = tmp_path / "mine.jsonl"
    file.write_text(block, encoding="utf-8")
    assert len(read_examples(file)) == 4


def test_the_example_task_holds() -> None:
    text = (DOCS / "tasks.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert parse_task_spec(yaml.safe_load(block), "urgency.yaml").name == "urgency"


def test_the_example_frontier_is_one_that_serve_accepts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (DOCS / "frontier.md").read_text("utf-8")
    settings, prices = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "prices.yaml").write_text(prices, encoding="utf-8")
    (tmp_path / "anthropic").write_text("no-real-key", encoding="utf-8")
    settings = settings.replace("/run/secrets", str(tmp_path))
    file = tmp_path / "narrowgate.yaml"
    file.write_text(settings.replace("prices.yaml", f"{tmp_path}/prices.yaml"), encoding="utf-8")
    assert main(["config", "--config", str(file), "--json"]) == 0, capsys.readouterr().err
    shown = json.loads(capsys.readouterr().out)
    assert set(shown["frontier"]["providers"]) == {"anthropic", "openai", "house", "proxy"}
    # Without the prices file it is refused: the price of house/qwen-8b is unknown.
    file.write_text(settings.partition("ledger:")[0], encoding="utf-8")
    assert main(["config", "--config", str(file)]) == 2
    assert "house/qwen-8b" in capsys.readouterr().err


GUARDS = re.findall(
    r"^\| `(\w+)`[^|]* \| \*(.+)\*, \*(.+)\* \|$", (DOCS / "cache.md").read_text("utf-8"), re.M
)


@pytest.mark.parametrize(("guard", "one", "other"), GUARDS)
def test_a_guard_refuses_its_example(guard: str, one: str, other: str) -> None:
    assert refusal(Words(one), Words(other)) == guard


def test_every_guard_has_an_example() -> None:
    assert len({guard for guard, _, _ in GUARDS}) == len(guards.GUARDS)


def test_every_wire_format_is_documented() -> None:
    formats = get_args(ProviderSettings.model_fields["api"].annotation)
    (row,) = re.findall(r"^\| `frontier\.providers\.api` \|.*$", SETTINGS, re.M)
    assert tuple(re.findall(r"`(\w+)`", row.split("|")[3])) == formats
    page = (DOCS / "frontier.md").read_text("utf-8")
    (named,) = re.findall(r"a wire format \(([^)]*)\)", page)
    assert tuple(re.findall(r"`(\w+)`", named)) == formats


def test_the_documented_tiers_and_reasons_are_the_defaults() -> None:
    text = (DOCS / "routing.md").read_text(encoding="utf-8")
    for tier, targets in FrontierSettings().tiers.items():
        assert f"| `{tier}` | {', '.join(targets)} |" in text
    reasons = list(get_args(Reason))
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)[1 : 1 + len(reasons)] == reasons


ROOT = DOCS.parent
PAGES = [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES += sorted(DOCS.glob("*.md"))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    linked = re.findall(r"\]\((?!https?://|#)([^)#]+)[^)]*\)", text)
    missing = [name for name in linked if not (page.parent / name).exists()]
    # Code spans relative to the root; capitals and stars are placeholders, as in `NAME_api.py`.
    folders = "serving|evals|quantize|benchmarks|tests|docs|requirements"
    named = re.findall(rf"`((?:{folders})/[a-z0-9_./-]*)`", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_metric_that_a_page_names_exists(page: Path) -> None:
    known = {
        name.removesuffix("_total").removesuffix("_created")
        for metric in Metrics().registry.collect()
        for name in [metric.name, *(sample.name for sample in metric.samples)]
    }
    known.add(PART_FIELD)  # a request's field, not a metric
    named = re.findall(r"`(narrowgate_[a-z_]+)", page.read_text(encoding="utf-8"))
    assert {name.removesuffix("_total") for name in named} <= known


def test_every_error_code_of_the_runbook_exists() -> None:
    text = (DOCS / "runbook.md").read_text(encoding="utf-8")
    table = text.partition("## Errors by code")[2].partition("\n## ")[0]
    codes = re.findall(r"^\| \d{3} (.*?) \|", table, re.MULTILINE)
    named = {code for cell in codes for code in re.findall(r"`(\w+)`", cell)}
    assert named
    assert named <= {error.code for error in error_classes(NarrowgateError)}


def error_classes(root: type[NarrowgateError]) -> set[type[NarrowgateError]]:
    return {root}.union(*(error_classes(child) for child in root.__subclasses__()))


COMMANDS = [
    (path.name, line)
    for path in [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
    for block in re.findall(r"^```sh\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if re.match(r"(\.venv/bin/)?narrowgate ", line)
]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_every_command_that_is_shown_is_one(page: str, line: str) -> None:
    words = shlex.split(line.partition("#")[0])
    narrowgate_parser().parse_args(words[1:])


def test_settings_in_the_docs_are_written_as_the_settings_file_takes_them() -> None:
    loose = re.compile(
        r"`[a-z_]+(?:\.[a-z_]+)+: (?:on|off|yes|no)`|^ +[a-z_]+: +(?:on|off)\b", re.M
    )
    pages = [*DOCS.glob("*.md"), ROOT / "README.md"]
    assert pages
    assert {str(page): loose.findall(page.read_text("utf-8")) for page in pages} == {
        str(page): [] for page in pages
    }
