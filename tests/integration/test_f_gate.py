"""Controls of the gate on real models: copies pass, broken ones fail, few decide nothing."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from evals.answers import Answered, answer
from evals.assessment import Rules, assess
from evals.subject import Subject
from evals.suite import Suite, built_in_suites
from serving.artifacts.checkpoint import bundled_artifact
from serving.contracts.attestation import Verdict
from serving.contracts.settings import Settings
from serving.tasks.catalog import load_specs

from ..built_in_tasks import BUILT_IN_TASKS
from .conftest import ROOT, STATE

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1500)]

BASELINE = STATE / "models" / "smollm2-135m-instruct"
INT8 = bundled_artifact(STATE, "int8-w8a8")
RULES = Rules(margin=0.03, required_speed=0.0, resamples=2000)
GENERAL = """
task: arithmetic_words
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: ["yes", "no"]
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def topic() -> Suite:
    """A quarter of the suite: the models that are broken here lose ten times the margin."""
    (suite,) = (s for s in built_in_suites(load_specs(None)) if s.name == "topic")
    return suite.first(len(suite.examples) // 4)


@pytest.fixture(scope="module")
def answered(int8: Path, topic: Suite) -> Callable[[Path], Answered]:
    """Return a function that runs one model on the suite, as a gate does."""

    def run(folder: Path) -> Answered:
        subject = Subject("candidate", folder, Settings().models[0])
        try:
            return answer(subject, topic)
        finally:
            subject.close()

    return run


@pytest.fixture(scope="module")
def baseline(answered: Callable[[Path], Answered]) -> Answered:
    return answered(BASELINE)


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[Callable[[Path, Callable[[dict[str, Any]], None]], Path]]:
    def make(source: Path, change: Callable[[dict[str, Any]], None]) -> Path:
        folder = Path(shutil.copytree(source, tmp_path / "broken", copy_function=os.link))
        weights = folder / "model.safetensors"
        tensors = load_file(weights)
        change(tensors)
        weights.unlink()
        save_file(tensors, weights, metadata={"format": "pt"})
        return folder

    yield make
    shutil.rmtree(tmp_path / "broken", ignore_errors=True)


def shuffle_a_layer(tensors: dict[str, Any]) -> None:
    import torch

    generator = torch.Generator().manual_seed(0)
    for name, tensor in tensors.items():
        if name.startswith("model.layers.1.") and tensor.ndim == 2:
            order = torch.randperm(len(tensor), generator=generator)
            tensors[name] = tensor[order].contiguous()


def spoil_a_scale(tensors: dict[str, Any]) -> None:
    name = "model.layers.2.self_attn.o_proj.weight_scale"
    tensors[name] = tensors[name] * 30


def swap_labels(tensors: dict[str, Any]) -> None:
    # The embedding is also the output head: the model writes one label where it means another.
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(BASELINE).encode
    one, other = (encode(word, add_special_tokens=False)[0] for word in ("World", "Sports"))
    table = tensors["model.embed_tokens.weight"]
    first = table[one].clone()
    table[one] = table[other]
    table[other] = first


@pytest.mark.parametrize(
    ("source", "change"),
    [
        # Each starts an engine; the swapped labels are the hardest to see.
        pytest.param(BASELINE, shuffle_a_layer, marks=pytest.mark.slow),
        pytest.param(INT8, spoil_a_scale, marks=pytest.mark.slow),
        (BASELINE, swap_labels),
    ],
)
def test_a_broken_model_fails(
    source: Path,
    change: Callable[[dict[str, Any]], None],
    broken: Callable[[Path, Callable[[dict[str, Any]], None]], Path],
    answered: Callable[[Path], Answered],
    baseline: Answered,
    topic: Suite,
) -> None:
    found = assess(topic, baseline, answered(broken(source, change)), [], RULES).result
    print(f"{change.__name__}: {found.difference}, flips {found.flips}")
    assert found.verdict is Verdict.FAIL
    assert any("worse by at least" in reason for reason in found.reasons)
    assert found.flips.lost > 10


def test_twenty_examples_of_a_copy_are_inconclusive(baseline: Answered, topic: Suite) -> None:
    few = Answered(baseline.predictions[:20], baseline.label_offsets)
    found = assess(topic.first(20), few, few, [], RULES).result
    assert found.verdict is Verdict.INCONCLUSIVE
    assert found.more_examples > 20


def test_an_identical_copy_passes_from_the_command_line(int8: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(BASELINE, tmp_path / "copy", copy_function=os.link))
    rows = [
        {"question": f"Is {n} plus {n} equal to {2 * n + n % 2}? Answer:", "answer": n % 2}
        for n in range(40)
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tasks = tmp_path / "general"
    tasks.mkdir()
    (tasks / "arithmetic.yaml").write_text(GENERAL.replace("FILE", str(data)), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli", "gate", "--baseline", BASELINE, "--candidate", copy,
         "--suite", "builtin", "--task", "topic", "--key", STATE / "keys" / "development",
         "--min-speed", "0.5", "--general", "arithmetic_words", "--include-path", tasks,
         "--general-margin", "0.2", "--json"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    document = json.loads(done.stdout)
    task = document["predicate"]["tasks"]["topic"]
    assert document["verdict"] == task["verdict"] == "pass"
    assert task["difference"]["estimate"] == pytest.approx(0.0, abs=0.01)
    assert task["flips"]["rate"] < 0.02
    assert task["speed"]["blocks"] >= 4
    general = document["predicate"]["general"]["arithmetic_words"]
    assert (general["verdict"], general["n"]) == ("pass", 40)
    assert (copy / "report.html").is_file()


def lm_eval(*arguments: object) -> dict[str, Any]:
    done = subprocess.run(
        [Path(sys.executable).with_name("lm_eval"), "run", *map(str, arguments),
         "--include_path", "evals/lm_tasks"],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    out = Path(arguments[list(arguments).index("--output_path") + 1])  # type: ignore[arg-type]
    (file,) = out.rglob("results_*.json")
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["results"]
    return results


def test_stock_lm_eval_reads_the_task_definitions(tmp_path: Path) -> None:
    found = lm_eval(
        "--model", "dummy", "--tasks", *(f"narrowgate_{name}" for name in BUILT_IN_TASKS),
        "--limit", 4, "--output_path", tmp_path / "dummy",
    )  # fmt: skip
    assert set(found) == {f"narrowgate_{name}" for name in BUILT_IN_TASKS}


@pytest.mark.slow
def test_stock_lm_eval_scores_a_model(int8: Path, tmp_path: Path) -> None:
    real = lm_eval(
        "--model", "hf", "--model_args", f"pretrained={BASELINE},dtype=float32",
        "--tasks", "narrowgate_topic", "--limit", 24, "--apply_chat_template",
        "--output_path", tmp_path / "hf",
    )  # fmt: skip
    assert 0.3 < real["narrowgate_topic"]["macro_f1,none"] <= 1.0
