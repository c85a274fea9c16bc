"""Checkpoints read from their headers: shapes, refusals, damage."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantize.layout import Tensor, folder_tensors, layout_of, matching, read_layout
from quantize.source import ModelSource, parse_source
from serving.contracts.errors import UnsuitableModel

from .checkpoints import config, tensors, write


def source(folder: Path) -> ModelSource:
    return ModelSource(folder.name, folder=folder)


def test_linear_layers_and_the_rest_are_told_apart(tmp_path: Path) -> None:
    found = read_layout(source(write(tmp_path / "tiny")))
    assert len(found.linear) == 14
    assert found.linear_weights == 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 64 * 192)
    assert found.other_bytes == 2 * (100 * 64 + 64 + 2 * 64)
    assert found.total_bytes == found.other_bytes + 2 * found.linear_weights
    names = [layer.name for layer in matching(found.linear, [r"layers\.1\..*k_proj$"])]
    assert names == ["model.layers.1.self_attn.k_proj"]


def test_blocks_are_in_the_order_of_their_numbers() -> None:
    found = layout_of(config(blocks=11), tensors(blocks=11), "tiny")
    order = [int(layer.name.split(".")[2]) for layer in found.linear]
    assert order == sorted(order)


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    whole = tensors()
    folder = write(tmp_path / "tiny", dict(list(whole.items())[:5]))
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    write(folder, dict(list(whole.items())[5:]))
    (folder / "model.safetensors").rename(folder / "two.safetensors")
    index = {name: "one.safetensors" if n < 5 else "two.safetensors" for n, name in
             enumerate(whole)}  # fmt: skip
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": index}), encoding="utf-8"
    )
    assert folder_tensors(folder) == whole


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, r"already quantized \(gptq\)"),
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": []}, "none"),
        ({"num_hidden_layers": 3}, "states 3 decoder blocks"),
    ],
)
def test_models_that_the_recipes_do_not_cover_are_refused(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    folder = write(tmp_path / "tiny", description={**config(), **change})
    with pytest.raises(UnsuitableModel, match=complaint):
        read_layout(source(folder))


def test_weights_in_another_format_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsuitableModel, match="no model"):
        read_layout(source(folder))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(share=st.floats(0.0, 0.999))
def test_a_file_cut_anywhere_is_noticed(tmp_path: Path, share: float) -> None:
    folder = write(tmp_path / "cut")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UnsuitableModel, match=r"cannot be read|cut short"):
        read_layout(source(folder))


def test_a_header_that_claims_exabytes_is_damage(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(UnsuitableModel, match="cannot be read"):
        read_layout(source(folder))


def test_a_matrix_that_is_none_is_refused() -> None:
    content = {**tensors(), "model.layers.0.mlp.up_proj.weight": Tensor("BF16", (3, 4, 5))}
    with pytest.raises(UnsuitableModel, match="not a matrix"):
        layout_of(config(), content, "tiny")


@pytest.mark.parametrize("dtype", ["F32", "I8", "F8_E4M3"])
def test_weights_that_are_not_in_16_bits_are_refused(dtype: str) -> None:
    content = {**tensors(), "model.layers.0.mlp.up_proj.weight": Tensor(dtype, (192, 64))}
    with pytest.raises(UnsuitableModel, match=f"stored as {dtype}"):
        layout_of(config(), content, "tiny")


def test_a_source_is_a_folder_or_a_pinned_hub_id(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    assert parse_source(str(folder), None, tmp_path).fetch() == folder
    pinned = parse_source("owner/name", "a" * 40, tmp_path)
    assert pinned.on_hub
    for model, revision, field in [
        (str(folder), "a" * 40, "revision"),
        ("owner/name", None, "revision"),
        ("owner/name", "main", "revision"),
        ("not/a/model", "a" * 40, "model"),
        ("/nowhere", None, "model"),
    ]:
        with pytest.raises(UnsuitableModel) as caught:
            parse_source(model, revision, tmp_path)
        assert caught.value.field == field
