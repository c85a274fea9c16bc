"""The INT8 encoder, made and loaded once a process.

Making it takes 0.5 s and loading it 50 ms; each gateway and command would do both.
"""

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest

from serving.embedding import embedder
from serving.embedding.encoder import Encoder
from serving.embedding.model_file import encoder_name, ensure_model
from serving.embedding.weights import EncoderFiles

from .database import MEMORY


@cache
def encoder_state() -> Path:
    """Return a state folder with nothing but the encoder, removed at the end of the process."""
    folder = Path(tempfile.mkdtemp(prefix="ng-encoder-", dir=MEMORY))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ensure_model(folder)
    return folder


def place_encoder(state: Path) -> None:
    """Put the encoder into another state folder, as if it had been made there."""
    models = encoder_state() / "models"
    shutil.copytree(models, state / "models", copy_function=_linked, dirs_exist_ok=True)


@cache
def loaded_encoder() -> Encoder:
    return Encoder(ensure_model(encoder_state()))


def share_encoder(patch: pytest.MonkeyPatch) -> None:
    """Let embedders over a state folder with the placed encoder share one that is loaded."""

    def same(files: EncoderFiles) -> Encoder:
        # The folder's name has the digest of what the encoder was made from.
        assert files.weights.parent.name == encoder_name()
        return loaded_encoder()

    patch.setattr(embedder, "Encoder", same)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileExistsError:  # an earlier gateway of the same state folder
        return
    except OSError:  # another file system
        shutil.copy2(source, target)
