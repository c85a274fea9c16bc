"""The file with the states of local models, written by the process that starts the stack.

One writer replaces it; every gateway replica reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from serving.contracts.errors import EngineFailure
from serving.contracts.model_status import ModelStatus, Progress
from serving.host.safe_write import replace_file


def write_statuses(path: Path, statuses: Mapping[str, ModelStatus]) -> None:
    """Replace the file. statuses: by model id. Blocking. Raises OSError."""
    content = {model_id: asdict(status) for model_id, status in statuses.items()}
    replace_file(path, json.dumps(content).encode())


def read_statuses(path: Path) -> dict[str, ModelStatus]:
    """Return the statuses by model id. Blocking. Raises EngineFailure for an unreadable file."""
    try:
        content: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
        return {model_id: _status(fields) for model_id, fields in content.items()}
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise EngineFailure(
            f"the file with the models' states {str(path)!r} cannot be read: {error}"
        ) from error


def _status(fields: dict[str, Any]) -> ModelStatus:
    progress = fields.pop("progress")
    return ModelStatus(**fields, progress=None if progress is None else Progress(**progress))
