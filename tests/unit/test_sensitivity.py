"""Outlier layers: found by measuring, together with those that the engine joins to them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantize.worker.sensitivity import outlier_layers, round_to_nearest

NAMES = [
    f"layers.{block}.{part}"
    for block in range(6)
    for part in ("q_proj", "k_proj", "v_proj", "down_proj")
]


class Block(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        for part in ("q_proj", "k_proj", "v_proj", "down_proj"):
            setattr(self, part, torch.nn.Linear(width, width, bias=False))
        self.gain = 1.0
        self.attention_gain = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.attention_gain * x
        self.q_proj(y), self.k_proj(y), self.v_proj(y)
        return x + 0.01 * self.down_proj(self.gain * x) / self.gain


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(50, 32)
        self.layers = torch.nn.ModuleList(Block(32) for _ in range(6))

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x


def found(model: Model) -> dict[str, float]:
    sequences = [[n % 50 for n in range(start, start + 20)] for start in range(40)]
    return outlier_layers(
        model, NAMES, sequences, bits=4, group_size=16, symmetric=False, multiple=50.0
    )


def test_a_model_without_outliers_keeps_none() -> None:
    assert found(Model()) == {}


def test_a_layer_with_massive_activations_is_found() -> None:
    model = Model()
    model.layers[3].gain = 20.0
    kept = found(model)
    assert list(kept) == ["layers.3.down_proj"]
    assert kept["layers.3.down_proj"] == pytest.approx(400, rel=0.3)


def test_layers_that_the_engine_joins_come_together() -> None:
    model = Model()
    model.layers[2].k_proj.weight.data *= 20.0
    assert set(found(model)) == {f"layers.2.{part}" for part in ("q_proj", "k_proj", "v_proj")}


def test_the_hooks_are_gone_afterwards() -> None:
    model = Model()
    found(model)
    assert all(not module._forward_pre_hooks for module in model.modules())


@given(
    seed=st.integers(0, 100),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([None, 8, 16]),
    symmetric=st.booleans(),
    shift=st.floats(-3.0, 3.0),
)
def test_rounding_errs_by_half_a_step_at_most(
    seed: int, bits: int, group: int | None, symmetric: bool, shift: float
) -> None:
    torch.manual_seed(seed)
    weight = torch.randn(4, 32) + shift
    rounded = round_to_nearest(weight, bits, group, symmetric=symmetric)
    groups = weight.reshape(4, -1, group or 32)
    if symmetric:
        step = groups.abs().amax(dim=-1) / ((2**bits - 1) / 2)
    else:
        low, high = groups.amin(dim=-1).clamp(max=0), groups.amax(dim=-1).clamp(min=0)
        step = (high - low) / (2**bits - 1)
    error = (rounded - weight).reshape(4, -1, group or 32).abs().amax(dim=-1)
    # The zero point is rounded too: another half step at the ends.
    assert torch.all(error <= step * 1.001 + 1e-6)
    assert len(torch.unique(rounded[0, : group or 32])) <= 2**bits


def test_zeros_stay_zeros() -> None:
    for symmetric in (True, False):
        assert torch.equal(
            round_to_nearest(torch.zeros(2, 16), 4, 8, symmetric=symmetric), torch.zeros(2, 16)
        )
