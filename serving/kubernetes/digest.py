"""The digest that names a model in manifests: `sha256-HEX`, because labels hold no colon."""

import re
from pathlib import Path

from serving.contracts.errors import InvalidRequest

PREFIX = "sha256-"


def artifact_hex(text: str) -> str:
    """Return the hex digits of `sha256-HEX`. Raises InvalidRequest for any other text."""
    if not re.fullmatch(f"{PREFIX}[0-9a-f]{{64}}", text):
        raise InvalidRequest(
            f"{text!r} is not the digest of a model",
            field="--artifact",
            fix="give sha256- and 64 hex digits, as narrowgate verify prints them",
        )
    return text.removeprefix(PREFIX)


def artifact_of(text: str) -> str:
    """Return `sha256-HEX` of a model's folder, or the digest itself.

    Blocking: reads every file of a folder. Raises InvalidRequest.
    """
    folder = Path(text)
    if text.startswith(PREFIX) and not folder.exists():
        return PREFIX + artifact_hex(text)
    if not (folder / "config.json").is_file():
        raise InvalidRequest(
            f"{text!r} is neither a model's folder nor a digest",
            field="--artifact",
            fix="give a folder with config.json, or sha256- and 64 hex digits",
        )
    from serving.artifacts.manifest import file_manifest

    return PREFIX + file_manifest(folder).root
