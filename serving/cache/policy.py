"""The digest of all besides a request that decides who answers it."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from serving.contracts.settings import Settings
from serving.contracts.task_spec import TaskSpec


def policy_digest(settings: Settings, specs: Mapping[str, TaskSpec]) -> str:
    """Return 64 hex digits: of routing, providers, models, tasks, and this version. Blocking.

    Local models' attestations and claims are not part of it: they are compared at each hit.
    """
    content = {
        "version": version("narrowgate"),
        "routing": settings.routing.model_dump(mode="json"),
        "router": _files(settings.routing.model),
        "frontier": settings.frontier.model_dump(mode="json"),
        "context": settings.context.model_dump(mode="json"),
        "pruner": _files(settings.context.model),
        "models": [model.model_dump(mode="json") for model in settings.models],
        "task_models": settings.task_models,
        "tasks": {name: spec.digest() for name, spec in specs.items()},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files(place: Path | None) -> dict[str, str]:
    """Return the digests of a file, or of the files in a folder, by name."""
    if place is None:
        return {}
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()
    }


def guards_digest() -> str:
    """Return 16 hex digits: of all that decides which questions may have one answer. Blocking."""
    folder = Path(__file__).parent
    rules = [folder / "eligible.py", folder / "volatile.py"]
    files = [*rules, *sorted((folder / "guards").rglob("*"))]
    content = {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file() and "__pycache__" not in file.parts
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
