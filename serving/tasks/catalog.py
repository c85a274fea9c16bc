"""The tasks that are served: the built-in files and the user's own folder."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path

from serving.contracts.errors import InvalidTaskSpec, UnknownTask
from serving.contracts.plain_file import read_plain
from serving.contracts.task_spec import TaskSpec, parse_task_spec
from serving.contracts.yaml_text import UnreadableYaml, parse_yaml


def load_specs(tasks_dir: Path | None) -> Mapping[str, TaskSpec]:
    """Return every task by name: the built-in ones and those of a folder.

    A file in the folder replaces the built-in task of the same name. Reads files, blocking.
    Raises InvalidTaskSpec.
    """
    specs = dict(_built_in())
    if tasks_dir is not None:
        specs.update(_own(tasks_dir))
    return specs


def find_task(specs: Mapping[str, TaskSpec], name: str) -> TaskSpec:
    """Return a task by name. Raises UnknownTask, which lists the tasks."""
    if name not in specs:
        raise UnknownTask(
            f"no task {name!r}", field="task", fix="use one of: " + ", ".join(sorted(specs))
        )
    return specs[name]


@cache
def _built_in() -> Mapping[str, TaskSpec]:
    """Return the tasks of the package, which are frozen and do not change while a process runs."""
    files = sorted(resources.files("serving.tasks.builtin").iterdir(), key=lambda file: file.name)
    specs = [
        parse_task_file(file.read_bytes(), file.name)
        for file in files
        if file.name.endswith(".yaml")
    ]
    return {spec.name: spec for spec in specs}


def _own(folder: Path) -> dict[str, TaskSpec]:
    if not folder.is_dir():
        raise InvalidTaskSpec(f"tasks_dir {str(folder)!r} is not a folder", field="tasks_dir")
    found: dict[str, TaskSpec] = {}
    origin: dict[str, str] = {}
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        spec = read_task_file(path)
        if spec.name in found:
            raise InvalidTaskSpec(
                f"{path.name} and {origin[spec.name]} both describe task {spec.name!r}",
                field=path.name,
                fix="rename one of the tasks",
            )
        found[spec.name] = spec
        origin[spec.name] = path.name
    return found


def read_task_file(path: Path, source: str | None = None) -> TaskSpec:
    """Return the task in a file. Blocking. source: names it in messages, by default its name.

    Raises InvalidTaskSpec.
    """
    try:
        content = read_plain(path)
    except OSError as error:
        raise InvalidTaskSpec(
            f"task file {str(path)!r} cannot be read: {error.strerror}", field=path.name
        ) from error
    return parse_task_file(content, source or path.name)


def parse_task_file(content: bytes, source: str) -> TaskSpec:
    """Return the task that a file's content describes. source: names it in messages.

    Raises InvalidTaskSpec.
    """
    try:
        document = parse_yaml(content)
    except UnreadableYaml as error:
        raise InvalidTaskSpec(
            f"{source} is {error}", field=source, fix="correct it there; it must be YAML in UTF-8"
        ) from error
    return parse_task_spec(document, source)
