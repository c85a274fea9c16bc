"""Sources of the 16-bit checkpoint: a local folder, a hub revision, or the bundled model."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from serving.artifacts.checkpoint import materialize_bundled
from serving.contracts.errors import UnsuitableModel
from serving.contracts.settings import BUNDLED_MODEL

_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
# Weights in other formats, images and so on are not fetched.
_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_DESCRIPTION = ["*.json", "*.jinja", "*.model", "*.txt"]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A checkpoint by name. revision: a commit of 40 hex digits, only for hub ids.

    models: the folder in which the bundled model is made; None for others.
    """

    id: str
    revision: str | None = None
    folder: Path | None = None
    models: Path | None = None

    @property
    def on_hub(self) -> bool:
        """Return whether the files must be fetched."""
        return self.folder is None and self.models is None

    def made(self) -> "ModelSource":
        """Return the source with its folder: the bundled model is written on the first call.

        Blocking, up to a minute. Raises MaterializationFailed.
        """
        if self.models is None:
            return self
        return replace(self, folder=materialize_bundled(self.models), models=None)

    def fetch(self) -> Path:
        """Return the folder of the whole checkpoint, fetched where need be. Blocking.

        Raises UnsuitableModel when the hub does not have it.
        """
        return self.folder or _snapshot(self.id, self.revision, _FILES)

    def fetch_description(self) -> Path:
        """Return a folder with everything but the weights. Blocking. Raises UnsuitableModel."""
        return self.folder or _snapshot(self.id, self.revision, _DESCRIPTION)


def parse_source(model: str, revision: str | None, state: Path) -> ModelSource:
    """Return the source that a command line names, the bundled model not made yet.

    Raises UnsuitableModel.
    """
    if model == BUNDLED_MODEL:
        return ModelSource(model, models=state / "models")
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise UnsuitableModel(
                f"{model!r} is a folder and has no revisions",
                field="revision",
                fix="omit --revision",
            )
        return ModelSource(folder.resolve().name, folder=folder.resolve())
    if not _HUB_ID.match(model):
        raise UnsuitableModel(
            f"{model!r} is neither a folder nor a hub id (owner/name)",
            field="model",
            fix="correct it",
        )
    if revision is None or not _COMMIT.match(revision):
        raise UnsuitableModel(
            f"{model!r} is a hub id and revision is {revision!r}: a branch or tag can move",
            field="revision",
            fix="pass --revision with the commit, 40 hex digits",
        )
    return ModelSource(model, revision=revision)


def _snapshot(repo: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, EntryNotFoundError, LocalEntryNotFoundError) as error:
        raise UnsuitableModel(
            f"the hub returned no checkpoint {repo!r} at {revision}: {error}",
            field="model",
            fix="check id, revision, access (HF_TOKEN) and network, or download it and name the "
            "folder",
        ) from error
    except OfflineModeIsEnabled as error:
        raise UnsuitableModel(
            f"{repo!r} is not in the local cache and HF_HUB_OFFLINE is set",
            field="model",
            fix="unset HF_HUB_OFFLINE, or name a local folder",
        ) from error
