"""Plan arithmetic: group sizes against shapes, sizes against the formats, layers in precision."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantize.layout import LinearLayer, ModelLayout, layout_of
from quantize.plan import Workload, choose_group_size, make_plan
from quantize.recipe import Recipe, built_in_recipes, parse_recipe
from serving.contracts.errors import UnsuitableModel

from .checkpoints import config, tensors

INT4 = """
name: mine
description: four bits
library: llm-compressor
weight_bits: 4
"""
WORKLOAD = Workload(samples=8, tokens=800, longest_batch=200)


def layout(**sizes: int) -> ModelLayout:
    return layout_of(config(**sizes), tensors(**sizes), "tiny")


def recipe(lines: str = "group_size: [64, 32]") -> Recipe:
    return parse_recipe(INT4 + lines, "mine.yaml")


@given(
    sizes=st.lists(st.sampled_from([16, 32, 64, 128, 256]), min_size=1, max_size=4, unique=True),
    inputs=st.lists(st.integers(1, 64).map(lambda n: 16 * n), min_size=1, max_size=6),
)
def test_the_first_size_that_divides_every_layer_or_a_refusal_that_names_one(
    sizes: list[int], inputs: list[int]
) -> None:
    layers = [LinearLayer(f"model.layers.{n}.mlp.up_proj", 32, i) for n, i in enumerate(inputs)]
    fitting = [size for size in sizes if all(i % size == 0 for i in inputs)]
    given_recipe = recipe(f"group_size: {sizes}")
    if fitting:
        assert choose_group_size(given_recipe, layers) == fitting[0]
        return
    with pytest.raises(UnsuitableModel) as caught:
        choose_group_size(given_recipe, layers)
    wrong = [layer for layer in layers if layer.in_features % sizes[-1]]
    assert wrong[0].name in caught.value.message
    # Every size in the proposal does fit.
    proposed = [int(word) for word in re.findall(r"\d+", (caught.value.fix or "").split(",")[0])]
    assert all(i % size == 0 for size in proposed for i in inputs)


def test_the_bundled_models_widths_take_64_and_not_128() -> None:
    layers = [LinearLayer("a", 576, 576), LinearLayer("b", 576, 1536)]
    assert choose_group_size(recipe("group_size: [128, 64, 32]"), layers) == 64
    with pytest.raises(UnsuitableModel, match=r"128 does not divide a \(576 inputs\)") as caught:
        choose_group_size(recipe("group_size: [128]"), layers)
    assert "16 or 32 or 64" in (caught.value.fix or "")


@given(
    blocks=st.integers(1, 4),
    hidden=st.integers(1, 6).map(lambda n: 64 * n),
    intermediate=st.integers(1, 8).map(lambda n: 64 * n),
    name=st.sampled_from(sorted(built_in_recipes())),
)
def test_sizes_add_up_and_shrink(blocks: int, hidden: int, intermediate: int, name: str) -> None:
    model = layout(blocks=blocks, hidden=hidden, intermediate=intermediate)
    chosen = built_in_recipes()[name]
    plan = make_plan(chosen, model, WORKLOAD, cores=2, gpu=False)
    assert plan.size_before == model.total_bytes
    assert plan.size_after - sum(item.size_bytes for item in plan.layers) == model.other_bytes
    for item in plan.layers:
        least = item.layer.weights * item.bits // 8
        assert least <= item.size_bytes
        if item.bits < 16 and item.layer.weights >= 64 * 64:
            assert item.size_bytes < 2 * item.layer.weights
    assert plan.peak_memory > model.total_bytes
    assert plan.seconds > 0


def test_asymmetric_groups_cost_scales_and_zero_points() -> None:
    plan = make_plan(
        recipe("group_size: [32]\nsymmetric: false"), layout(), WORKLOAD, cores=2, gpu=False
    )
    (down,) = [item for item in plan.layers if item.layer.name.endswith("0.mlp.down_proj")]
    weights, groups = 64 * 192 // 2, 192 // 32
    assert down.size_bytes == weights + 2 * 64 * groups + 4 * (64 // 8) * groups + 16


def test_layers_can_keep_their_precision_or_get_eight_bits() -> None:
    text = "group_size: [32]\nkeep_16bit: ['down_proj']\neight_bit: ['layers.1.mlp']"
    plan = make_plan(recipe(text), layout(), WORKLOAD, cores=2, gpu=False)
    bits = {item.layer.name: item.bits for item in plan.layers}
    assert bits["model.layers.1.mlp.down_proj"] == 16, "16 bits win"
    assert bits["model.layers.1.mlp.up_proj"] == 8
    assert bits["model.layers.0.mlp.up_proj"] == 4
    assert plan.names(16) == ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")


def test_groups_need_not_divide_layers_that_are_kept() -> None:
    model = layout(hidden=64, intermediate=96)
    with pytest.raises(UnsuitableModel, match="down_proj"):
        make_plan(recipe("group_size: [64]"), model, WORKLOAD, cores=2, gpu=False)
    kept = recipe("group_size: [64]\nkeep_16bit: [down_proj]")
    assert make_plan(kept, model, WORKLOAD, cores=2, gpu=False).group_size == 64


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UnsuitableModel, match="matches none"):
        make_plan(recipe("keep_16bit: [fc1]"), layout(), WORKLOAD, cores=2, gpu=False)


@pytest.mark.parametrize("pattern", ["q_proj", "up_proj", "layers.0.self_attn.v_proj"])
def test_layers_that_the_engine_joins_stay_together(pattern: str) -> None:
    with pytest.raises(UnsuitableModel, match="as one layer"):
        make_plan(
            recipe(f"group_size: [32]\nkeep_16bit: ['{pattern}']"),
            layout(), WORKLOAD, cores=2, gpu=False,
        )  # fmt: skip


def test_more_data_takes_longer_and_more_memory() -> None:
    few = make_plan(recipe(), layout(), WORKLOAD, cores=2, gpu=False)
    many = make_plan(recipe(), layout(), Workload(800, 80_000, 200), cores=2, gpu=False)
    assert many.seconds > few.seconds
    assert many.peak_memory > few.peak_memory


def test_a_llama_3_8b_fits_a_card_of_24_gib_block_by_block() -> None:
    sizes = {"blocks": 32, "hidden": 4096, "intermediate": 14336}
    described = {**config(**sizes), "num_attention_heads": 32, "num_key_value_heads": 8,
                 "vocab_size": 128_256}  # fmt: skip
    model = layout_of(described, tensors(**sizes), "llama")
    workload = Workload(256, 60_000, 4096)
    for name in ("int8-w8a8", "int4-w4a16-gptq", "int4-w4a16-awq"):
        plan = make_plan(built_in_recipes()[name], model, workload, cores=8, gpu=True)
        assert plan.peak_accelerator_memory < 24 * 2**30, name
        assert plan.group_size in {None, 128}
