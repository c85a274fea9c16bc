"""From texts to vectors, in the calling thread."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.contracts.no_telemetry import disable_telemetry
from serving.embedding.weights import EncoderFiles

DIMENSIONS = 384
MAX_TOKENS = 256
# A token is rarely longer than this many characters; longer texts are cut before tokenizing.
_MAX_CHARS = MAX_TOKENS * 16
_BATCH = 16


class Encoder:
    """The sentence encoder on one core. Threads may share it.

    files: a model of onnx_graph and its tokenizer. Loads them, blocking, about 50 ms.
    """

    def __init__(self, files: EncoderFiles) -> None:
        disable_telemetry()
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        # One thread: the encoder must not take cores from the engine.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session: Any = onnxruntime.InferenceSession(
            str(files.weights), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer: Any = Tokenizer.from_file(str(files.tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return (len(texts), 384) float32, rows of unit length. Blocking, about 2.5 ms a text.

        Texts of any language are accepted; the model was trained on English. Tokens after the 256th
        are ignored. A text's vector does not depend on the other texts.
        """
        rows = [self._tokenizer.encode(_clean(text)).ids for text in texts]
        # Neighbours in length share a batch, so that little of it is padding.
        order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
        vectors = np.empty((len(rows), DIMENSIONS), np.float32)
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            vectors[part] = self._run([rows[n] for n in part])
        return vectors

    def _run(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        width = max(len(row) for row in rows)
        ids = np.zeros((len(rows), width), np.int64)
        mask = np.zeros_like(ids)
        for n, row in enumerate(rows):
            ids[n, : len(row)] = row
            mask[n, : len(row)] = 1
        (vectors,) = self._session.run(None, {"input_ids": ids, "attention_mask": mask})
        result: NDArray[np.float32] = vectors
        return result


def _clean(text: str) -> str:
    # JSON escapes can express lone surrogates, which UTF-8 cannot encode.
    return text[:_MAX_CHARS].encode("utf-8", "replace").decode("utf-8")
