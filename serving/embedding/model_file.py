"""The INT8 encoder on disk: made once from the packaged weights, then only read."""

import os
from pathlib import Path

from serving.contracts.errors import MaterializationFailed
from serving.embedding.onnx_graph import encoder_model
from serving.embedding.weights import EncoderFiles, packaged_files
from serving.host.making import made_alone

# Raised by one whenever the graph or its quantization changes: old files are then not used.
GRAPH_FORMAT = 1
_DIGEST_CHARS = 16
_MODEL = "model.onnx"
_TOKENIZER = "tokenizer.json"


def ensure_model(state: Path, source: EncoderFiles | None = None) -> EncoderFiles:
    """Return the INT8 model and its tokenizer, made now where they are missing.

    state: the folder for everything written; the files are in its `models`. Blocking: about 1 s the
    first time, 0.1 s after. Safe with concurrent processes: the folder is complete or absent.
    Raises MaterializationFailed.
    """
    source = source or packaged_files()
    folder = state / "models" / encoder_name(source)
    if not folder.is_dir():
        from safetensors import SafetensorError

        try:
            _make(folder, source)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise MaterializationFailed(
                f"the encoder could not be written to {str(folder)!r}: {error}",
                fix="check that the state folder is writable and has 30 MB to spare",
            ) from error
    return EncoderFiles(folder / _MODEL, folder / _TOKENIZER)


def encoder_name(source: EncoderFiles | None = None) -> str:
    """Return a name that changes whenever the encoder's vectors may. Blocking: reads the weights.

    source: the weights; the packaged ones where None.
    """
    digest = (source or packaged_files()).digest()[:_DIGEST_CHARS]
    return f"all-minilm-l6-v2-int8-{digest}-{GRAPH_FORMAT}"


def _make(folder: Path, source: EncoderFiles) -> None:
    from safetensors.numpy import load_file

    with made_alone(folder.parent, ".encoder-") as temporary:
        if folder.is_dir():
            # Another process made it meanwhile.
            return
        content = encoder_model(load_file(source.weights), "int8")
        for name, data in ((_MODEL, content), (_TOKENIZER, source.tokenizer.read_bytes())):
            with (temporary / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        temporary.chmod(0o755)
        temporary.rename(folder)
