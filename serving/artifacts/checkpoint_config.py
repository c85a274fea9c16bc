"""Reads a checkpoint's config.json, and what it states about quantized weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.contracts.errors import UnsuitableModel
from serving.contracts.plain_file import read_plain_text

CONFIG_NAME = "config.json"

_INTEGER_METHODS = frozenset({"compressed-tensors", "gptq", "awq"})


def read_config(folder: Path, field: str, model: str | None = None) -> dict[str, Any]:
    """Return the content of a checkpoint's config.json.

    field: the option that names the checkpoint. model: its name in messages; None for the folder.
    Raises UnsuitableModel for a file that cannot be read or is not a JSON object.
    """
    named = repr(model or str(folder))
    try:
        content = json.loads(read_plain_text(folder / CONFIG_NAME))
    except (OSError, ValueError, RecursionError) as error:
        raise UnsuitableModel(
            f"config.json of {named} cannot be read: {error}",
            field=field,
            fix="name a folder with a Hugging Face checkpoint",
        ) from error
    if not isinstance(content, dict):
        raise UnsuitableModel(
            f"config.json of {named} is not a JSON object",
            field=field,
            fix="name a folder with a Hugging Face checkpoint",
        )
    return content


def weight_bits(stated: Mapping[str, Any]) -> list[int]:
    """Return the bits of the weights, one entry for each group of layers; empty where not stated.

    stated: `quantization_config`. Raises AttributeError, KeyError, TypeError or ValueError where it
    is malformed.
    """
    match stated.get("quant_method"):
        case "bitsandbytes":
            return [4] if stated.get("load_in_4bit") else [8]
        case "fp8" | "fbgemm_fp8":
            return [8]
        case "compressed-tensors":
            return [int(weights["num_bits"]) for weights in _groups(stated)]
        case "mxfp4":
            return [4]
    named = str(stated.get("bits") or stated.get("w_bit") or stated.get("weight_bits"))
    return [int(named)] if named.isdecimal() else []


def has_int4_weights(stated: object) -> bool:
    """Return whether some weights are 4-bit integers in groups (compressed-tensors, GPTQ, AWQ).

    stated: `quantization_config` of any shape. bitsandbytes and 4-bit floats have other kernels.
    """
    if not isinstance(stated, Mapping) or stated.get("quant_method") not in _INTEGER_METHODS:
        return False
    try:
        if any(weights.get("type", "int") != "int" for weights in _groups(stated)):
            return False
        return 4 in weight_bits(stated)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False


def _groups(stated: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = stated.get("config_groups", {}).values()
    return [group["weights"] for group in groups if group.get("weights")]
