"""The INT8 encoder, made once a process: it takes 0.5 s, and each gateway would make its own."""

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from serving.embedding.model_file import ensure_model

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


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileExistsError:  # an earlier gateway of the same state folder
        return
    except OSError:  # another file system
        shutil.copy2(source, target)
