"""Real quantizations of the bundled model, from the command line to vLLM and transformers."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from quantize.artifact import partial_folder
from quantize.environment import environment_folder
from quantize.layout import folder_tensors
from serving.artifacts.manifest import file_manifest
from serving.host.processor import has_int4_kernel

from .conftest import ROOT

pytestmark = pytest.mark.timeout(1500)

BUNDLED = "bundled:smollm2-135m-instruct"
BASELINE = ROOT / ".narrowgate" / "models" / "smollm2-135m-instruct"
QUANTIZE_PYTHON = environment_folder(gpu=False) / "bin" / "python"
# The shipped recipes with less calibration: the steps are tested, not the loss.
INT4 = """
name: int4-short
description: four bits, quickly
library: llm-compressor
weight_bits: 4
symmetric: false
group_size: [128, 64]
keep_16bit: ['layers\\.29\\.mlp\\.down_proj']
calibration: {samples: 8, max_tokens: 512}
"""
GPTQ = """
name: gptq-short
description: AutoGPTQ's format, quickly
library: gptqmodel
group_size: [64]
calibration: {samples: 8, max_tokens: 512}
"""


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "serving.cli", "quantize", *map(str, arguments)]


def quantize(recipe: object, out: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the document on standard output and the events on standard error."""
    done = subprocess.run(
        command(BUNDLED, "--recipe", recipe, "--out", out, "--json"),
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return json.loads(done.stdout), [json.loads(line) for line in done.stderr.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def recipes(folder: Path) -> Path:
    for name, text in (("int4", INT4), ("gptq", GPTQ)):
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def killed_then_made(recipes: Path, out: Path) -> Iterator[str]:
    with subprocess.Popen(
        command(BUNDLED, "--recipe", recipes / "int4.yaml", "--out", out, "--json"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as run:  # fmt: skip
        assert run.stderr is not None
        for line in run.stderr:
            if json.loads(line).get("index") == 3:
                break
        else:
            pytest.fail("the run ended before its third block")
        workers = psutil.Process(run.pid).children(recursive=True)
        assert workers
        os.kill(run.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == [], "the worker outlives a killed run"
    yield "killed"
    document, events = quantize(recipes / "int4.yaml", out)
    blocks = [event["index"] for event in events if "index" in event]
    assert blocks == list(range(1, 31))
    assert all(event["loss"] > 0 for event in events if "index" in event)
    assert document["digest"] == f"sha256:{file_manifest(out).root}"
    yield "made"


@pytest.fixture(scope="module")
def int4(recipes: Path, folder: Path) -> Path:
    """Kill a run with no chance to clean up, then run it again."""
    out = folder / "int4"
    steps = killed_then_made(recipes, out)
    assert next(steps) == "killed"
    assert not out.exists()
    assert partial_folder(out).is_dir()
    assert next(steps) == "made"
    assert not partial_folder(out).exists()
    return out


@pytest.fixture(scope="module")
def gptq(recipes: Path, folder: Path) -> Path:
    quantize(recipes / "gptq.yaml", folder / "gptq")
    return folder / "gptq"


@pytest.fixture(scope="module")
def nf4(folder: Path) -> Path:
    quantize("bnb-nf4", folder / "nf4")
    return folder / "nf4"


def test_the_facts_are_in_the_artifact(int8: Path) -> None:
    facts = json.loads((int8 / "provenance.json").read_text(encoding="utf-8"))
    assert facts["base"]["digest"] == f"sha256:{file_manifest(BASELINE).root}"
    assert facts["base"]["files"]["model.safetensors"]
    assert facts["recipe"]["name"] == "int8-w8a8"
    assert facts["calibration"]["samples"] == len(facts["calibration"]["example_digests"]) == 96
    assert facts["libraries"]["compressed-tensors"] == "0.19.0"
    assert facts["duration_s"] > 10
    assert facts["peak_memory_bytes"] > facts["size_before_bytes"]
    outliers = {f"model.layers.{block}.mlp.down_proj" for block in (11, 28, 29)}
    assert set(facts["resolved"]["outliers"]) == set(facts["resolved"]["layers_16bit"]) == outliers
    assert facts["resolved"]["layers_by_bits"] == {"8": 207, "16": 3}
    names = [name for name in folder_tensors(int8) if name.endswith("_proj.weight_scale")]
    assert set(facts["resolved"]["losses"]) == {
        name.removesuffix(".weight_scale") for name in names
    }
    card = (int8 / "README.md").read_text(encoding="utf-8")
    assert facts["calibration"]["digest"] in card
    stored = json.loads((int8 / "manifest.json").read_text(encoding="utf-8"))
    assert stored["files"] == file_manifest(int8).files
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (int8 / name).read_bytes() == (BASELINE / name).read_bytes()


# Formats that the quick tests leave out: make test-slow.
GPTQ_TOO = pytest.param("gptq", marks=pytest.mark.slow)
NF4_TOO = pytest.param("nf4", marks=pytest.mark.slow)


@pytest.mark.parametrize("name", ["int8", "int4", GPTQ_TOO, NF4_TOO])
def test_the_plan_told_the_size(name: str, folder: Path, request: pytest.FixtureRequest) -> None:
    out: Path = request.getfixturevalue(name)
    recipe = {"int8": "int8-w8a8", "nf4": "bnb-nf4"}.get(name, str(folder / f"{name}.yaml"))
    done = subprocess.run(
        command(BUNDLED, "--recipe", recipe, "--dry-run", "--json"),
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    plan = json.loads(done.stdout)
    facts = json.loads((out / "provenance.json").read_text(encoding="utf-8"))
    tensors = folder_tensors(out)
    actual = sum(tensor.size_bytes for tensor in tensors.values())
    # Processors without bfloat16 kernels leave scales in float32; the plan counts 16 bits.
    scales = [item for name, item in tensors.items() if name.endswith(".weight_scale")]
    actual -= sum(item.size_bytes // 2 for item in scales if item.dtype == "F32")
    # The plan cannot know which layers will be found to be outliers.
    kept = len(facts["resolved"]["outliers"]) * 576 * 1536
    assert plan["size_after_bytes"] + kept == pytest.approx(actual, rel=0.002)
    assert facts["peak_memory_bytes"] < 1.6 * plan["peak_memory_bytes"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(int4: Path, recipes: Path, folder: Path) -> None:
    quantize(recipes / "int4.yaml", folder / "again")
    first, second = file_manifest(int4).files, file_manifest(folder / "again").files
    assert first["model.safetensors"] == second["model.safetensors"]
    differing = {name for name in first if first[name] != second[name]}
    assert differing <= {"provenance.json", "README.md"}, "they hold the duration"


@pytest.mark.slow
def test_the_files_have_auto_gptqs_format(gptq: Path) -> None:
    config = json.loads((gptq / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    assert config["quant_method"] == "gptq"
    assert {key: config[key] for key in ("bits", "group_size", "desc_act", "sym")} == {
        "bits": 4, "group_size": 64, "desc_act": False, "sym": True,
    }  # fmt: skip
    tensors = folder_tensors(gptq)
    layer = "model.layers.0.mlp.down_proj"
    parts = ("qweight", "qzeros", "scales", "g_idx")
    shapes = {part: tensors[f"{layer}.{part}"] for part in parts}
    assert shapes["qweight"].dtype == shapes["qzeros"].dtype == shapes["g_idx"].dtype == "I32"
    # in / 8 rows of packed weights; groups x out scales; groups x out / 8 packed zero points.
    assert shapes["qweight"].shape == (1536 // 8, 576)
    assert shapes["scales"].shape == (1536 // 64, 576)
    assert shapes["qzeros"].shape == (1536 // 64, 576 // 8)
    assert shapes["g_idx"].shape == (1536,)
    assert f"{layer}.weight" not in tensors


AGREEMENT = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
base, other = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
text = ("The harbour was quiet in the morning. A few boats lay at the pier, and the fishermen "
        "were mending their nets while the sun rose over the hills behind the town.")
ids = tokenizer(text, return_tensors="pt")
best = []
for folder in (base, other):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        best.append(model(**ids).logits[0].float().argmax(dim=-1))
print((best[0] == best[1]).float().mean().item())
"""


@pytest.mark.parametrize("name", ["int8", "int4", GPTQ_TOO])
def test_transformers_loads_it_and_agrees(name: str, request: pytest.FixtureRequest) -> None:
    out: Path = request.getfixturevalue(name)
    done = subprocess.run(
        [QUANTIZE_PYTHON, "-c", AGREEMENT, BASELINE, out],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.splitlines()[-1]) > 0.5


def compared(artifacts: dict[str, Path], tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Return what vLLM makes of artifacts beside the baseline, by name."""
    inputs = tmp_path / "inputs.jsonl"
    calibration = ROOT / "quantize" / "builtin_texts" / "sentiment.jsonl"
    rows = [json.loads(line) for line in calibration.read_text(encoding="utf-8").splitlines()[:30]]
    lines = [json.dumps({"task": "sentiment", "text": row["text"]}) for row in rows]
    inputs.write_text("\n".join(lines), encoding="utf-8")
    # A third of the shipped prose: the steps are tested, not the third digit of a divergence.
    prose = (ROOT / "quantize" / "compare" / "heldout.jsonl").read_text(encoding="utf-8")
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(prose.splitlines()[:8]), encoding="utf-8")
    done = subprocess.run(
        command(
            "--compare", *artifacts.values(), "--inputs", inputs, "--text", text, "--rounds", 1,
            "--json",
        ),
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    document = json.loads(done.stdout)
    names = [model["name"] for model in document["models"]]
    assert names == ["baseline", *(path.name for path in artifacts.values())]
    models = dict(zip(["baseline", *artifacts], document["models"], strict=True))
    assert models["baseline"]["kl_mean"] == 0.0
    assert models["baseline"]["agreement"] == models["baseline"]["labels_kept"] == 1.0
    assert 1500 < models["baseline"]["positions"] < 2000
    for name, model in models.items():
        assert 0 < model["kl_mean"] <= model["kl_p99"] or name == "baseline"
        assert model["prompts_per_s_ratio"] > 0
        assert model["decoded_tokens_per_s"] > 0
        assert model["perplexity"] < 3 * models["baseline"]["perplexity"]
    return models


def test_vllm_answers_on_the_right_kernels_beside_the_baseline(
    int8: Path, int4: Path, tmp_path: Path
) -> None:
    models = compared({"int8": int8, **({"int4": int4} if has_int4_kernel() else {})}, tmp_path)
    # vLLM counts joined projections: four layers a block, less those that are kept in 16 bits.
    assert models["int8"]["kernels"]["CPUInt8ScaledMMLinearKernel"] == 117
    assert 0.0 < models["int8"]["kl_mean"] < 0.1
    assert models["int8"]["agreement"] > 0.8
    if has_int4_kernel():
        assert models["int4"]["kernels"]["CPUWNA16LinearKernel"] == 119
        assert 0.1 < models["int4"]["kl_mean"] < 1.0


@pytest.mark.slow
def test_vllm_answers_on_the_right_kernels_of_other_formats(
    gptq: Path, nf4: Path, tmp_path: Path
) -> None:
    models = compared({"nf4": nf4, **({"gptq": gptq} if has_int4_kernel() else {})}, tmp_path)
    if has_int4_kernel():
        assert models["gptq"]["kernels"] == {"CPUWNA16LinearKernel": 120}
    assert models["nf4"]["kl_mean"] > 0


def test_the_readme_shows_commands_that_hold() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^(?:\.venv/bin/)?narrowgate quantize (.+)$", readme, re.MULTILINE)
    assert [line.split()[0] for line in lines] == [BUNDLED, "--compare"]
    done = subprocess.run(
        command(*lines[0].split(), "--dry-run", "--json"),
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_artifacts_of_another_model_are_not_compared(int4: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (other / name).write_bytes((BASELINE / name).read_bytes())
    done = subprocess.run(
        command(other, "--compare", int4, "--json"),
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2
    assert "made from a model with digest" in json.loads(done.stdout)["error"]["message"]
