"""Which layers rounding would hurt far more than their like.

A few layers of a language model carry activations thousands of times larger than the rest (Sun et
al., "Massive Activations in Large Language Models", 2024); rounding their weights in groups of 4
bits costs more than all other layers together. They are found by measuring, not by name.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from quantize.layout import FUSED

# Sequences are enough to see magnitudes; this pass runs on the processor in any case.
_SEQUENCES = 16


def outlier_layers(
    model: torch.nn.Module,
    names: Sequence[str],
    sequences: Sequence[Sequence[int]],
    *,
    bits: int,
    group_size: int | None,
    symmetric: bool,
    multiple: float,
) -> dict[str, float]:
    """Return layers whose error exceeds `multiple` times the median of their kind, with the ratio.

    A layer's error is the squared error of its output after rounding each weight to the nearest,
    inputs taken as uncorrelated: the sum over input channels of mean squared activation times
    squared weight error. Kind: the projection's name. Layers that the engine joins come together.
    """
    energy = _input_energy(model, names, sequences)
    errors = {
        name: _error(model.get_submodule(name).weight, energy[name], bits, group_size, symmetric)
        for name in names
    }
    ratios = {name: error / _median_of_kind(errors, name) for name, error in errors.items()}
    found = {name for name, ratio in ratios.items() if ratio > multiple}
    for name in list(found):
        prefix, _, last = name.rpartition(".")
        for fused in FUSED:
            if last in fused:
                found |= {f"{prefix}.{part}" for part in fused}
    return {name: ratios[name] for name in names if name in found}


def round_to_nearest(
    weight: torch.Tensor, bits: int, group_size: int | None, *, symmetric: bool
) -> torch.Tensor:
    """Return the weights (out, in) as rounding to the nearest would store them. float32."""
    rows, columns = weight.shape
    groups = weight.float().reshape(rows, -1, group_size or columns)
    levels = 2**bits - 1
    if symmetric:
        scale = groups.abs().amax(dim=-1, keepdim=True) / (levels / 2)
        rounded = (groups / _nonzero(scale)).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return (rounded * scale).reshape(rows, columns)
    low = groups.amin(dim=-1, keepdim=True).clamp(max=0.0)
    high = groups.amax(dim=-1, keepdim=True).clamp(min=0.0)
    scale = _nonzero((high - low) / levels)
    zero = (-low / scale).round()
    rounded = ((groups / scale).round() + zero).clamp(0, levels)
    return ((rounded - zero) * scale).reshape(rows, columns)


def _nonzero(scale: torch.Tensor) -> torch.Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _input_energy(
    model: torch.nn.Module, names: Sequence[str], sequences: Sequence[Sequence[int]]
) -> dict[str, torch.Tensor]:
    """Return the mean square of each input channel, (in,), for each layer."""
    energy: dict[str, torch.Tensor] = {}
    tokens = 0

    def watch(name: str) -> Any:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            squares = inputs[0].detach().float().flatten(0, -2).square().sum(dim=0)
            energy[name] = energy[name] + squares if name in energy else squares

        return model.get_submodule(name).register_forward_pre_hook(hook)

    handles = [watch(name) for name in names]
    try:
        step = max(1, len(sequences) // _SEQUENCES)
        with torch.no_grad():
            for ids in sequences[::step][:_SEQUENCES]:
                model(input_ids=torch.tensor([list(ids)]))
                tokens += len(ids)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / tokens for name, total in energy.items()}


def _error(
    weight: torch.Tensor, energy: torch.Tensor, bits: int, group_size: int | None, symmetric: bool
) -> float:
    rounded = round_to_nearest(weight.detach(), bits, group_size, symmetric=symmetric)
    return float(((weight.detach().float() - rounded).square().sum(dim=0) * energy).sum())


def _median_of_kind(errors: Mapping[str, float], name: str) -> float:
    kind = name.rpartition(".")[2]
    return statistics.median(error for other, error in errors.items() if other.endswith(kind))
