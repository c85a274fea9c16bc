"""Reads the layout of a checkpoint from its config and the headers of its weight files.

No weight is loaded: a plan for 8 billion parameters takes milliseconds and no memory.
"""

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from quantize.source import ModelSource
from serving.artifacts.checkpoint_config import read_config
from serving.contracts.errors import UnsuitableModel
from serving.contracts.plain_file import opened_plain, read_plain
from serving.contracts.validation_words import problem_place, problem_words

ARCHITECTURES = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
)
"""Dense decoders whose layer names SmoothQuant, AWQ, GPTQModel and vLLM all know."""

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Projections that vLLM runs as one matrix product: they must be in one precision."""

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
# A safetensors header larger than this is damage, not a model.
_MAX_HEADER_BYTES = 100 * 2**20
_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
_SIXTEEN_BITS = frozenset({"BF16", "F16"})
_DECODER_LINEAR = re.compile(r"^model\.layers\.(\d{1,6})\.(self_attn|mlp)\.\w+_proj\.weight$")


@dataclass(frozen=True, slots=True, order=True)
class LinearLayer:
    """One linear layer of a decoder block. weight: (out_features, in_features)."""

    name: str
    out_features: int
    in_features: int

    @property
    def weights(self) -> int:
        """Return the number of weights."""
        return self.out_features * self.in_features


@dataclass(frozen=True, slots=True)
class ModelLayout:
    """Shapes and sizes of a checkpoint. other_bytes: everything that is not a linear layer."""

    linear: tuple[LinearLayer, ...]
    other_bytes: int
    total_bytes: int
    blocks: int
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int

    @property
    def linear_weights(self) -> int:
        """Return the number of weights in linear layers."""
        return sum(layer.weights for layer in self.linear)


_Positive = Annotated[int, Field(ge=1, le=2**40)]


class _Description(BaseModel):
    """The fields that are read from a config.json; others are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    architectures: tuple[str, ...] | None = None
    quantization_config: Any = None
    num_hidden_layers: _Positive
    num_attention_heads: _Positive
    num_key_value_heads: _Positive
    head_dim: _Positive | None = None
    hidden_size: _Positive
    vocab_size: _Positive
    max_position_embeddings: _Positive


class _Index(BaseModel):
    weight_map: dict[str, Annotated[str, Field(pattern=r"^[^/\\\x00]+$")]]


class _Entry(BaseModel):
    dtype: str
    shape: tuple[Annotated[int, Field(ge=0, le=2**40)], ...]
    data_offsets: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


_HEADER: TypeAdapter[dict[str, _Entry]] = TypeAdapter(dict[str, _Entry])


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Return the size in the file."""
        return math.prod(self.shape) * _BYTES.get(self.dtype, 1)


def read_layout(source: ModelSource) -> ModelLayout:
    """Return the layout of a checkpoint. Reads headers, or asks the hub for them.

    Raises UnsuitableModel for architectures that the recipes do not cover, quantized inputs,
    missing or damaged files.
    """
    folder = source.fetch_description()
    config = read_config(folder, "model", source.id)
    tensors = _hub_tensors(source) if source.on_hub else folder_tensors(folder)
    return layout_of(config, tensors, source.id)


def layout_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor], model: str) -> ModelLayout:
    """Return the layout for a config.json's content and a checkpoint's tensors. Pure.

    Raises UnsuitableModel.
    """
    described = _described(config, model)
    linear = []
    for name, tensor in tensors.items():
        if _DECODER_LINEAR.match(name):
            if len(tensor.shape) != 2:
                raise UnsuitableModel(f"{model!r}: {name} has shape {tensor.shape}, not a matrix")
            if tensor.dtype not in _SIXTEEN_BITS:
                raise UnsuitableModel(
                    f"{model!r}: {name} is stored as {tensor.dtype}, not in 16 bits",
                    field="model",
                    fix="name the 16-bit checkpoint, or save this one in bfloat16 first",
                )
            linear.append(LinearLayer(name.removesuffix(".weight"), *tensor.shape))
    blocks = {_block_of(layer.name) for layer in linear}
    wanted = described.num_hidden_layers
    if len(blocks) != wanted or max(blocks, default=-1) != wanted - 1:
        raise UnsuitableModel(
            f"{model!r}: config.json states {wanted} decoder blocks, the weight files hold "
            f"{len(blocks)}",
            fix="the checkpoint is incomplete or of an unknown layout; fetch it again",
        )
    total = sum(tensor.size_bytes for tensor in tensors.values())
    in_linear = sum(tensors[f"{layer.name}.weight"].size_bytes for layer in linear)
    return ModelLayout(
        linear=tuple(sorted(linear, key=lambda layer: (_block_of(layer.name), layer.name))),
        other_bytes=total - in_linear,
        total_bytes=total,
        blocks=wanted,
        hidden_size=described.hidden_size,
        vocab_size=described.vocab_size,
        max_position_embeddings=described.max_position_embeddings,
    )


def matching(layers: Iterable[LinearLayer], patterns: Sequence[str]) -> list[LinearLayer]:
    """Return the layers whose name one of the patterns occurs in."""
    return [layer for layer in layers if any(re.search(p, layer.name) for p in patterns)]


def folder_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of a local checkpoint by name, from headers only.

    Raises UnsuitableModel for missing or damaged files.
    """
    index = folder / _INDEX
    if index.is_file():
        files = _indexed_files(index)
    elif (folder / _SINGLE).is_file():
        files = [_SINGLE]
    else:
        raise UnsuitableModel(
            f"{folder.name!r} has no {_SINGLE} and no {_INDEX}",
            field="model",
            fix="convert the weights to safetensors (transformers: save_pretrained)",
        )
    tensors: dict[str, Tensor] = {}
    for name in files:
        for tensor, entry in _header(folder / name).items():
            tensors[tensor] = Tensor(entry.dtype, entry.shape)
    return tensors


def _indexed_files(index: Path) -> list[str]:
    try:
        return sorted(set(_Index.model_validate_json(read_plain(index)).weight_map.values()))
    except (OSError, ValidationError) as error:
        raise UnsuitableModel(
            f"{index.name} of {index.parent.name!r} cannot be read: {_reason(error)}",
            field="model",
            fix="fetch the checkpoint again",
        ) from error


def _reason(error: Exception) -> str:
    """Return the first problem of a validation in one line, or the error itself."""
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors(include_url=False, include_input=False)[0]
    place, words = problem_place(problem, ""), problem_words(problem)
    return f"{place}: {words}" if place else words


def weight_bytes(folder: Path) -> int:
    """Return the size of a local checkpoint's tensors. Raises UnsuitableModel."""
    return sum(tensor.size_bytes for tensor in folder_tensors(folder).values())


def _header(path: Path) -> dict[str, _Entry]:
    try:
        with opened_plain(path) as file:
            (size,) = struct.unpack("<Q", file.read(8))
            # A damaged file may state any length; the parser refuses the truncated header.
            content = json.loads(file.read(min(size, _MAX_HEADER_BYTES)))
        if isinstance(content, dict):
            content.pop("__metadata__", None)
        header = _HEADER.validate_python(content)
    except (OSError, ValueError, struct.error, RecursionError) as error:
        raise UnsuitableModel(
            f"{path.name} of {path.parent.name!r} cannot be read: {_reason(error)}",
            field="model",
            fix="fetch the checkpoint again",
        ) from error
    end = max((entry.data_offsets[1] for entry in header.values()), default=0)
    missing = 8 + size + end - path.stat().st_size
    if missing > 0:
        raise UnsuitableModel(
            f"{path.name} of {path.parent.name!r} is cut short by {missing} bytes",
            field="model",
            fix="fetch the checkpoint again",
        )
    return header


def _hub_tensors(source: ModelSource) -> dict[str, Tensor]:
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError

    try:
        metadata = get_safetensors_metadata(source.id, revision=source.revision)
    except (HfHubHTTPError, NotASafetensorsRepoError) as error:
        raise UnsuitableModel(
            f"the hub gives no safetensors headers for {source.id!r}: {error}", field="model"
        ) from error
    return {
        name: Tensor(info.dtype, tuple(info.shape))
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
    }


def _described(config: Mapping[str, Any], model: str) -> _Description:
    quantization = config.get("quantization_config")
    if quantization is not None:
        named = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise UnsuitableModel(
            f"{model!r} is already quantized ({named or 'an unknown method'})",
            field="model",
            fix="name the 16-bit checkpoint it was made from",
        )
    architectures = config.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else "none"
    if first not in tuple(ARCHITECTURES):
        raise UnsuitableModel(
            f"{model!r} has architecture {first!r}",
            field="model",
            fix="covered are: " + ", ".join(sorted(ARCHITECTURES)),
        )
    try:
        return _Description.model_validate(config)
    except ValidationError as error:
        raise UnsuitableModel(
            f"config.json of {model!r}: {_reason(error)}",
            field="model",
            fix="fetch the checkpoint again",
        ) from error


def _block_of(name: str) -> int:
    found = _DECODER_LINEAR.match(f"{name}.weight")
    assert found is not None
    return int(found.group(1))
