"""The encoder against its own weights in torch, and the thread that keeps it off the loop."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import erf, softmax

from serving.contracts.errors import EngineFailure, MaterializationFailed, QueueFull, ShuttingDown
from serving.embedding.embedder import ThreadedEmbedder, build_embedder
from serving.embedding.encoder import DIMENSIONS, MAX_TOKENS, Encoder
from serving.embedding.model_file import ensure_model
from serving.embedding.onnx_graph import quantize_blocks
from serving.embedding.weights import EncoderFiles, packaged_files

from .made_encoder import encoder_state
from .patience import GUARD_S

TEXTS = [
    "Classify the sentiment of this review: I loved it.",
    "hello",
    "Der Zug hat schon wieder Verspätung.",
    "今天天气很好",
    "def f(x):\n    return x + 1",
    "🙂🙂",
    "Why does the tide turn? " * 40,
]


@pytest.fixture(scope="module")
def files() -> EncoderFiles:
    return ensure_model(encoder_state())


@pytest.fixture(scope="module")
def encoder(files: EncoderFiles) -> Encoder:
    return Encoder(files)


_ENCODES = """
import sys
from pathlib import Path
from serving.embedding.encoder import Encoder
from serving.embedding.weights import EncoderFiles
print(Encoder(EncoderFiles(Path(sys.argv[1]), Path(sys.argv[2]))).encode(["A text."]).shape)
"""


def test_the_runtime_records_no_telemetry(files: EncoderFiles, tmp_path: Path) -> None:
    # It keeps its events in the user's cache until they are sent.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_"))}
    subprocess.run(
        [sys.executable, "-c", _ENCODES, str(files.weights), str(files.tokenizer)],
        env={**inherited, "HOME": str(tmp_path)},
        check=True,
    )
    assert list(tmp_path.rglob("*")) == []


def reference(texts: Sequence[str]) -> NDArray[np.float32]:
    """The same weights in 32 bits: BERT written out in numpy, one text at a time."""
    from safetensors.numpy import load_file
    from tokenizers import Tokenizer

    source = packaged_files()
    tokenizer = Tokenizer.from_file(str(source.tokenizer))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    config = json.loads((source.weights.parent / "config.json").read_text(encoding="utf-8"))
    bert = Bert(load_file(source.weights), config)
    rows = [bert.hidden(tokenizer.encode(text).ids).mean(axis=0) for text in texts]
    return np.stack([row / np.linalg.norm(row) for row in rows])


class Bert:
    """tensors: a checkpoint's by name, float32. config: of the same checkpoint."""

    def __init__(
        self, tensors: Mapping[str, NDArray[np.float32]], config: Mapping[str, Any]
    ) -> None:
        self._tensors = tensors
        self._heads: int = config["num_attention_heads"]
        self._layers: int = config["num_hidden_layers"]
        self._epsilon: float = config["layer_norm_eps"]

    def hidden(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return the last layer's output for one text: (tokens, 384)."""
        tables = [self._tensors[f"embeddings.{name}_embeddings.weight"]
                  for name in ("word", "position", "token_type")]  # fmt: skip
        summed = tables[0][list(ids)] + tables[1][: len(ids)] + tables[2][0]
        hidden = self._norm(summed, "embeddings.LayerNorm")
        for number in range(self._layers):
            layer = f"encoder.layer.{number}."
            mixed = self._linear(self._attended(hidden, layer), layer + "attention.output.dense")
            hidden = self._norm(hidden + mixed, layer + "attention.output.LayerNorm")
            wide = self._linear(hidden, layer + "intermediate.dense")
            wide = wide * (1.0 + erf(wide / np.sqrt(2.0, dtype=np.float32))) / 2.0
            narrow = self._linear(wide, layer + "output.dense")
            hidden = self._norm(hidden + narrow, layer + "output.LayerNorm")
        return hidden

    def _attended(self, hidden: NDArray[np.float32], layer: str) -> NDArray[np.float32]:
        query, key, value = (
            self._linear(hidden, f"{layer}attention.self.{part}")
            .reshape(len(hidden), self._heads, -1)
            .swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        weights = softmax(query @ key.swapaxes(1, 2) / np.sqrt(query.shape[2]), axis=2)
        return (weights @ value).swapaxes(0, 1).reshape(hidden.shape)

    def _linear(self, hidden: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        return hidden @ self._tensors[name + ".weight"].T + self._tensors[name + ".bias"]

    def _norm(self, hidden: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        centred = hidden - hidden.mean(axis=1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + self._epsilon)
        return scaled * self._tensors[name + ".weight"] + self._tensors[name + ".bias"]


def published(texts: Sequence[str]) -> NDArray[np.float32]:
    """The same weights in 32 bits through transformers."""
    import torch
    from tokenizers import Tokenizer
    from transformers import BertConfig, BertModel

    source = packaged_files()
    config = BertConfig.from_json_file(str(source.weights.parent / "config.json"))
    model = BertModel.from_pretrained(source.weights.parent, config=config)
    model.eval()
    tokenizer = Tokenizer.from_file(str(source.tokenizer))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    rows = []
    for text in texts:
        ids = torch.tensor([tokenizer.encode(text).ids])
        with torch.no_grad():
            mean = model(input_ids=ids).last_hidden_state.mean(1)[0]
        rows.append((mean / mean.norm()).numpy())
    return np.stack(rows)


def test_int8_points_where_float32_does(encoder: Encoder) -> None:
    cosines = (encoder.encode(TEXTS) * reference(TEXTS)).sum(axis=1)
    assert cosines.min() >= 0.98


@pytest.mark.slow
def test_the_reference_is_the_published_model() -> None:
    # It takes 15 s to import transformers; the reference above takes 1 s.
    assert np.abs(reference(TEXTS) - published(TEXTS)).max() < 1e-5


def test_vectors_have_unit_length_and_do_not_depend_on_the_batch(encoder: Encoder) -> None:
    together = encoder.encode(TEXTS)
    assert together.shape == (len(TEXTS), DIMENSIONS)
    assert together.dtype == np.float32
    assert np.linalg.norm(together, axis=1) == pytest.approx(1.0, abs=1e-5)
    alone = np.vstack([encoder.encode([text]) for text in TEXTS])
    assert np.abs(together - alone).max() < 1e-5


def test_odd_texts_are_embedded(encoder: Encoder) -> None:
    vectors = encoder.encode(["", " \n", "\ud800", "\x00", "a" * 100_000])
    assert np.isfinite(vectors).all()
    assert encoder.encode([]).shape == (0, DIMENSIONS)


def test_the_model_file_is_made_once_and_whole(tmp_path: Path) -> None:
    first = ensure_model(tmp_path)
    stamp = first.weights.stat().st_mtime_ns
    assert first.weights.stat().st_size < 30e6
    assert ensure_model(tmp_path).weights.stat().st_mtime_ns == stamp
    assert [path.name for path in (tmp_path / "models").iterdir()] == [first.weights.parent.name]


def test_damaged_weights_leave_nothing_behind(tmp_path: Path) -> None:
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b"\x00" * 64)
    source = EncoderFiles(broken, packaged_files().tokenizer)
    with pytest.raises(MaterializationFailed):
        ensure_model(tmp_path / "state", source)
    assert list((tmp_path / "state" / "models").iterdir()) == []


def test_blocks_are_restored_within_half_a_step() -> None:
    weights = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    weights[2] = 0.0
    quantized, scales = quantize_blocks(weights)
    restored = (quantized.astype(np.float32) - 128) * scales[:, :, None]
    error = np.abs(restored.reshape(weights.shape) - weights)
    assert (error <= np.repeat(scales, 32, axis=1) / 2 + 1e-6).all()


@pytest.fixture
def slow() -> Iterator[ThreadedEmbedder]:
    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        time.sleep(0.1)
        if "bad" in texts:
            raise ValueError("no such text")
        return np.array([[float(len(text))] for text in texts], np.float32)

    embedder = ThreadedEmbedder(encode, max_queued=4)
    yield embedder
    embedder.close()


async def test_the_event_loop_goes_on_while_texts_are_embedded() -> None:
    released = threading.Event()

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        # Released by the loop: it would wait in vain where it blocked the loop.
        assert released.wait(timeout=GUARD_S)
        return np.array([[float(len(text))] for text in texts], np.float32)

    embedder = ThreadedEmbedder(encode, max_queued=4)
    try:
        embedded = asyncio.gather(*(embedder.embed("a" * n) for n in range(1, 4)))
        asyncio.get_running_loop().call_later(0.01, released.set)
        assert [float(row[0]) for row in await embedded] == [1.0, 2.0, 3.0]
    finally:
        embedder.close()


async def test_a_full_queue_refuses(slow: ThreadedEmbedder) -> None:
    first = asyncio.create_task(slow.embed("x"))
    await asyncio.sleep(0.02)
    waiting = [asyncio.create_task(slow.embed("y")) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await slow.embed("z")
    await asyncio.gather(first, *waiting)
    assert slow.depth == 0


async def test_a_failure_reaches_the_callers_and_no_others(slow: ThreadedEmbedder) -> None:
    with pytest.raises(EngineFailure, match="ValueError"):
        await slow.embed("bad")
    assert float((await slow.embed("good"))[0]) == 4.0


async def test_a_cancelled_caller_is_forgotten(slow: ThreadedEmbedder) -> None:
    tasks = [asyncio.create_task(slow.embed("x")) for _ in range(3)]
    await asyncio.sleep(0.02)
    tasks[2].cancel()
    assert len(await asyncio.gather(*tasks[:2])) == 2


async def test_a_closed_embedder_refuses_and_its_thread_is_gone() -> None:
    before = set(threading.enumerate())
    embedder = ThreadedEmbedder(lambda texts: np.zeros((len(texts), 1), np.float32))
    await embedder.embed("x")
    embedder.close()
    with pytest.raises(ShuttingDown):
        await embedder.embed("y")
    assert set(threading.enumerate()) <= before


async def test_the_packaged_encoder_embeds(tmp_path: Path) -> None:
    embedder = build_embedder(tmp_path)
    vector = await embedder.embed("a text")
    assert vector.shape == (DIMENSIONS,)
    assert np.abs(embedder.embed_all(["a text"])[0] - vector).max() < 1e-6
    embedder.close()
