"""The tasks that are served: the built-in files and the user's own folder."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import yaml

from serving.contracts.errors import InvalidTaskSpec
from serving.contracts.task_spec import TaskSpec, parse_task_spec


def load_specs(tasks_dir: Path | None) -> Mapping[str, TaskSpec]:
    """Return every task by name, the built-in ones and those of a folder.

    A file of the user's replaces the built-in task of the same name. Reads files, blocking.
    Raises InvalidTaskSpec.
    """
    specs: dict[str, TaskSpec] = {}
    for entry in sorted(resources.files("serving.tasks.builtin").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            spec = _parse(entry.read_text(encoding="utf-8"), entry.name)
            specs[spec.name] = spec
    if tasks_dir is not None:
        specs.update(_own(tasks_dir))
    return specs


def _own(folder: Path) -> dict[str, TaskSpec]:
    if not folder.is_dir():
        raise InvalidTaskSpec(f"tasks_dir {str(folder)!r} is not a folder", field="tasks_dir")
    found: dict[str, TaskSpec] = {}
    origin: dict[str, str] = {}
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        spec = _parse(path.read_text(encoding="utf-8"), path.name)
        if spec.name in found:
            raise InvalidTaskSpec(
                f"{path.name} and {origin[spec.name]} both describe task {spec.name!r}",
                field=path.name,
                fix="rename one of the tasks",
            )
        found[spec.name] = spec
        origin[spec.name] = path.name
    return found


def _parse(text: str, source: str) -> TaskSpec:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidTaskSpec(f"{source} is not YAML: {error}", field=source) from error
    return parse_task_spec(content, source)
