"""Writes the encoder as ONNX, straight from its tensors: no tracing, no hub, no torch.

The graph is BERT with mean pooling and unit length, in onnxruntime's fused operators. In INT8 the
matrices are `MatMulNBits` in blocks of 32 weights with a scale each. Its activations are quantized
row by row and not over the whole tensor as in dynamic quantization, so a text's vector does not
depend on the texts in the same batch.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Precision = Literal["int8", "float32"]

HEADS = 12
LAYERS = 6
_EPSILON = 1e-12
_BLOCK = 32
# MatMulNBits: 4 asks for INT8 arithmetic on the activations.
_INT8_COMPUTE = 4
_MICROSOFT = "com.microsoft"

Tensors = Mapping[str, NDArray[Any]]


def encoder_model(tensors: Tensors, precision: Precision) -> bytes:
    """Return a serialised ONNX model.

    tensors: a BERT checkpoint's by name, float32.
    Inputs: input_ids, attention_mask (batch, tokens) int64. Output: embedding (batch, hidden)
    float32, rows of unit length.
    """
    return _Graph(tensors, precision).build()


def quantize_blocks(
    weights: NDArray[np.float32], block: int = _BLOCK
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return symmetric 8-bit weights, offset by 128, and a scale for every block of a row.

    weights: (rows, columns), columns divisible by block.
    Returns (rows, columns // block, block) and (rows, columns // block).
    """
    rows, columns = weights.shape
    blocks = weights.reshape(rows, columns // block, block)
    scales = np.abs(blocks).max(axis=2) / 127.0
    scales = np.where(scales == 0.0, 1.0, scales).astype(np.float32)
    quantized = np.clip(np.rint(blocks / scales[:, :, None]), -127, 127) + 128
    return quantized.astype(np.uint8), scales


class _Graph:
    """One use: collects nodes and initializers, then serialises them."""

    def __init__(self, tensors: Tensors, precision: Precision) -> None:
        self._tensors = tensors
        self._precision = precision
        self._nodes: list[Any] = []
        self._initializers: list[Any] = []

    def build(self) -> bytes:
        from onnx import TensorProto, helper

        hidden = self._embeddings()
        mask = self._node("Cast", ["attention_mask"], "mask_i32", to=TensorProto.INT32)
        for layer in range(LAYERS):
            hidden = self._layer(hidden, mask, f"encoder.layer.{layer}.")
        self._pool(hidden)
        graph = helper.make_graph(
            self._nodes,
            "all-minilm-l6-v2",
            [
                helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "tokens"])
                for name in ("input_ids", "attention_mask")
            ],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", "hidden"])],
            self._initializers,
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid(_MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        return bytes(model.SerializeToString())

    def _node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self._nodes.append(helper.make_node(op, list(inputs), [output], **attributes))
        return output

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        from onnx import numpy_helper

        self._initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _tensor(self, name: str) -> str:
        return self._constant(name, self._tensors[name])

    def _embeddings(self) -> str:
        words = self._words()
        # Every text is segment 0: its vector is the same everywhere and joins the positions.
        positions = (
            self._tensors["embeddings.position_embeddings.weight"]
            + self._tensors["embeddings.token_type_embeddings.weight"][0]
        )
        shape = self._node("Shape", ["input_ids"], "shape", start=1, end=2)
        start = self._constant("zero", np.array([0], np.int64))
        table = self._constant("positions", positions)
        used = self._node("Slice", [table, start, shape, start], "used_positions")
        summed = self._node("Add", [words, used], "embedded")
        scale = self._tensor("embeddings.LayerNorm.weight")
        bias = self._tensor("embeddings.LayerNorm.bias")
        return self._node(
            "LayerNormalization", [summed, scale, bias], "hidden", axis=-1, epsilon=_EPSILON
        )

    def _words(self) -> str:
        table = self._tensors["embeddings.word_embeddings.weight"]
        if self._precision == "float32":
            return self._node("Gather", [self._constant("words", table), "input_ids"], "word")
        from onnx import TensorProto

        quantized, scales = quantize_blocks(table, block=table.shape[1])
        signed = (quantized[:, 0].astype(np.int16) - 128).astype(np.int8)
        rows = self._node("Gather", [self._constant("words", signed), "input_ids"], "word_i8")
        rows = self._node("Cast", [rows], "word_f32", to=TensorProto.FLOAT)
        scale = self._node("Gather", [self._constant("word_scale", scales), "input_ids"], "scale")
        return self._node("Mul", [rows, scale], "word")

    def _layer(self, hidden: str, mask: str, name: str) -> str:
        attention = name + "attention."
        query, key, value = (
            self._linear(hidden, f"{attention}self.{part}") for part in ("query", "key", "value")
        )
        context = self._node(
            "MultiHeadAttention", [query, key, value, "", mask], name + "context",
            domain=_MICROSOFT, num_heads=HEADS,
        )  # fmt: skip
        attended = self._linear(context, attention + "output.dense")
        hidden = self._add_norm(attended, hidden, attention + "output.LayerNorm")
        wide = self._linear(hidden, name + "intermediate.dense")
        wide = self._node("Gelu", [wide], name + "gelu", domain=_MICROSOFT)
        narrow = self._linear(wide, name + "output.dense")
        return self._add_norm(narrow, hidden, name + "output.LayerNorm")

    def _linear(self, hidden: str, name: str) -> str:
        weights = self._tensors[name + ".weight"]
        bias = self._tensor(name + ".bias")
        if self._precision == "float32":
            matrix = self._constant(name + ".matrix", weights.T)
            product = self._node("MatMul", [hidden, matrix], name + ".product")
            return self._node("Add", [product, bias], name)
        quantized, scales = quantize_blocks(weights)
        matrix = self._constant(name + ".quantized", quantized)
        scale = self._constant(name + ".scale", scales)
        return self._node(
            "MatMulNBits", [hidden, matrix, scale, "", "", bias], name, domain=_MICROSOFT,
            K=weights.shape[1], N=weights.shape[0], bits=8, block_size=_BLOCK,
            accuracy_level=_INT8_COMPUTE,
        )  # fmt: skip

    def _add_norm(self, hidden: str, residual: str, name: str) -> str:
        scale, bias = self._tensor(name + ".weight"), self._tensor(name + ".bias")
        return self._node(
            "SkipLayerNormalization", [hidden, residual, scale, bias], name + ".out",
            domain=_MICROSOFT, epsilon=_EPSILON,
        )  # fmt: skip

    def _pool(self, hidden: str) -> None:
        from onnx import TensorProto

        # The mean over the tokens and the sum over them differ only in length.
        last = self._constant("last_axis", np.array([2], np.int64))
        tokens = self._constant("token_axis", np.array([1], np.int64))
        mask = self._node("Cast", ["attention_mask"], "mask_f32", to=TensorProto.FLOAT)
        mask = self._node("Unsqueeze", [mask, last], "mask_3d")
        kept = self._node("Mul", [hidden, mask], "kept")
        summed = self._node("ReduceSum", [kept, tokens], "summed", keepdims=0)
        self._node("LpNormalization", [summed], "embedding", axis=1, p=2)
