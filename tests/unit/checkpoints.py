"""Tiny checkpoints written by hand: real safetensors files without any library."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantize.layout import Tensor

_SIZES = {"BF16": 2, "I8": 1, "I32": 4}


def config(blocks: int = 2, hidden: int = 64, intermediate: int = 192) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": blocks,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
        "max_position_embeddings": 512,
    }


def tensors(blocks: int = 2, hidden: int = 64, intermediate: int = 192) -> dict[str, Tensor]:
    found = {
        "model.embed_tokens.weight": Tensor("BF16", (100, hidden)),
        "model.norm.weight": Tensor("BF16", (hidden,)),
    }
    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (hidden // 2, hidden),
        "self_attn.v_proj": (hidden // 2, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (intermediate, hidden),
        "mlp.up_proj": (intermediate, hidden),
        "mlp.down_proj": (hidden, intermediate),
    }
    for block in range(blocks):
        found[f"model.layers.{block}.input_layernorm.weight"] = Tensor("BF16", (hidden,))
        for name, shape in shapes.items():
            found[f"model.layers.{block}.{name}.weight"] = Tensor("BF16", shape)
    return found


def write(
    folder: Path,
    content: Mapping[str, Tensor] | None = None,
    description: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint of zeros and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(description or config()), encoding="utf-8")
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in (content or tensors()).items():
        size = _SIZES[tensor.dtype]
        for length in tensor.shape:
            size *= length
        header[name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [end, end + size],
        }  # fmt: skip
        end += size
    encoded = json.dumps(header).encode()
    data = struct.pack("<Q", len(encoded)) + encoded + bytes(end)
    (folder / "model.safetensors").write_bytes(data)
    return folder
