"""Recipes that the serving hardware cannot run are refused before any work."""

import pytest

from quantize.checks import refuse_too_little_space, refuse_unservable
from quantize.hardware import Gpu, Machine, parse_gpu
from quantize.layout import layout_of
from quantize.plan import Workload, make_plan
from quantize.recipe import built_in_recipes, parse_recipe
from quantize.targets import TARGETS, find_target, refuse_unsuitable
from serving.contracts.errors import InsufficientResources, OutputInUse, UnsuitableTarget
from serving.host.safe_write import refuse_used_output

from .checkpoints import config, tensors

RECIPES = built_in_recipes()
FP8 = parse_recipe(
    """
name: fp8
description: floating point
library: llm-compressor
weight_bits: 8
weight_type: float
activations: 8-bit dynamic per token
rounding: nearest
calibration: null
""",
    "fp8.yaml",
)


@pytest.mark.parametrize(
    ("name", "group", "target", "complaint"),
    [
        ("int8-w8a8", None, "v100", "INT8 tensor cores"),
        ("int8-w8a8", None, "b200", "Blackwell"),
        ("int8-w8a16", None, "cpu", "no kernel for 8-bit weights"),
        ("int4-w4a16-gptq", 128, "v100", "7.5"),
        ("int4-w4a16-gptq", 16, "a10g", "groups of"),
        ("int4-gptq", 256, "a10g", "groups of"),
        ("fp8", None, "a10g", "8.9"),
        ("fp8", None, "cpu", "8.9"),
    ],
)
def test_recipes_that_a_target_cannot_run_are_refused(
    name: str, group: int | None, target: str, complaint: str
) -> None:
    recipe = FP8 if name == "fp8" else RECIPES[name]
    with pytest.raises(UnsuitableTarget, match=complaint) as caught:
        refuse_unsuitable(recipe, group, find_target(target))
    assert caught.value.field == "target"


@pytest.mark.parametrize(
    ("name", "group", "target"),
    [
        ("int8-w8a8", None, "cpu"),
        ("int8-w8a8", None, "a10g"),
        ("int8-w8a16", None, "a10g"),
        ("int4-w4a16-gptq", 64, "cpu"),
        ("int4-w4a16-gptq", 16, "cpu"),
        ("int4-gptq", 128, "t4"),
        ("bnb-nf4", None, "v100"),
        ("fp8", None, "l4"),
    ],
)
def test_recipes_that_a_target_can_run_pass(name: str, group: int | None, target: str) -> None:
    refuse_unsuitable(FP8 if name == "fp8" else RECIPES[name], group, find_target(target))


def test_targets_are_found_by_name_or_capability() -> None:
    assert find_target("sm86").capability == TARGETS["a10g"].capability
    for wrong in ("a10", "sm8", "sm86x", ""):
        with pytest.raises(UnsuitableTarget):
            find_target(wrong)


def plan_and_machine(memory: int, gpu: Gpu | None = None):  # type: ignore[no-untyped-def]
    layout = layout_of(config(), tensors(), "tiny")
    recipe = parse_recipe(
        "{name: a, description: b, library: llm-compressor, weight_bits: 8}", "a.yaml"
    )
    plan = make_plan(recipe, layout, Workload(8, 800, 200), cores=2, gpu=gpu is not None)
    return plan, Machine("cpu", 2, memory, gpu)


def test_too_little_memory_or_disk_is_refused(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    plan, machine = plan_and_machine(2**40)
    refuse_too_little_space(plan, machine, tmp_path / "out")
    plan, small = plan_and_machine(2**20)
    with pytest.raises(InsufficientResources, match="memory"):
        refuse_too_little_space(plan, small, tmp_path / "out")
    plan, full = plan_and_machine(2**40, Gpu("A10G", 86, 2**35, 2**20))
    with pytest.raises(InsufficientResources, match="GPU memory"):
        refuse_too_little_space(plan, full, tmp_path / "out")
    monkeypatch.setattr("quantize.checks.free_disk_bytes", lambda folder: 1000)
    with pytest.raises(InsufficientResources, match="are free for"):
        refuse_too_little_space(plan, machine, tmp_path / "out")


def test_an_artifact_must_leave_room_for_the_cache(tmp_path) -> None:  # type: ignore[no-untyped-def]
    sizes = {"blocks": 80, "hidden": 8192, "intermediate": 28672}
    layout = layout_of(config(**sizes), tensors(**sizes), "large")
    plan = make_plan(RECIPES["int8-w8a8"], layout, Workload(1, 100, 100), cores=2, gpu=True)
    with pytest.raises(UnsuitableTarget, match="no memory for the KV cache"):
        refuse_unservable(RECIPES["int8-w8a8"], find_target("a10g"), plan)
    refuse_unservable(RECIPES["int8-w8a8"], find_target("h200"), plan)


def test_bitsandbytes_needs_its_plugin_where_it_is_served(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    plan, _ = plan_and_machine(2**40)
    refuse_unservable(RECIPES["bnb-nf4"], find_target("cpu"), plan)
    monkeypatch.setattr("quantize.checks._installed", lambda package: False)
    with pytest.raises(UnsuitableTarget, match="vllm-bnb-plugin"):
        refuse_unservable(RECIPES["bnb-nf4"], find_target("cpu"), plan)


def test_an_output_with_something_in_it_is_refused(tmp_path) -> None:  # type: ignore[no-untyped-def]
    refuse_used_output(tmp_path / "new")
    refuse_used_output(tmp_path)
    (tmp_path / "file").write_text("x")
    for used in (tmp_path, tmp_path / "file"):
        with pytest.raises(OutputInUse):
            refuse_used_output(used)


def test_nvidia_smi_is_read() -> None:
    found = parse_gpu("NVIDIA A10G, 8.6, 23028, 22515\nNVIDIA A10G, 8.6, 23028, 1\n")
    assert found == Gpu("NVIDIA A10G", 86, 23028 * 2**20, 22515 * 2**20)
    for wrong in ("", "no devices", "a, b, c, d"):
        with pytest.raises((ValueError, IndexError)):
            parse_gpu(wrong)
