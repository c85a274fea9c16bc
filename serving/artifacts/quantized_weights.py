"""What a checkpoint's config.json states about its quantized weights."""

from collections.abc import Mapping
from typing import Any

_INTEGER_METHODS = frozenset({"compressed-tensors", "gptq", "awq"})


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
