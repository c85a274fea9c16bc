"""A model under test: its folder and its engine, configured by the settings."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from serving.artifacts.checkpoint import Checkpoint
from serving.artifacts.checkpoint_config import read_config, weight_bits
from serving.contracts.engine import EngineWork
from serving.contracts.engine_arguments import (
    ArgumentValue,
    answer_arguments,
    answer_environment,
)
from serving.contracts.errors import UnsuitableModel
from serving.contracts.plain_file import read_plain_text, unread_because
from serving.contracts.settings import ModelSettings
from serving.contracts.task_spec import TaskSpec
from serving.local.deployment import offline_arguments
from serving.local.offline import OfflineEngine
from serving.local.offline_work import Batch, engine_version, peak_memory, run_works
from serving.tasks.prompt import CheckpointTokenizer
from serving.tasks.task import Task, bind

P = ParamSpec("P")
R = TypeVar("R")
Precision = Literal["16-bit", "int8", "int4"]


@dataclass(slots=True)
class Subject:
    """One model. settings: configure its engine; their `source` field is not read.

    Not thread-safe.
    """

    name: str
    folder: Path
    settings: ModelSettings
    version: str = ""
    memory_bytes: int = 0
    arguments: dict[str, ArgumentValue] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    _tokenizer: CheckpointTokenizer | None = None
    _tasks: dict[str, Task] = field(default_factory=dict)
    _engine: OfflineEngine | None = None
    _loaded: bool = False
    _log: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="narrowgate-gate-")))

    @property
    def tokenizer(self) -> CheckpointTokenizer:
        """Return the model's tokenizer, loaded once."""
        if self._tokenizer is None:
            self._tokenizer = CheckpointTokenizer.load(self.folder)
        return self._tokenizer

    def task(self, spec: TaskSpec, label_offsets: dict[str, float] | None = None) -> Task:
        """Return the task bound to this model. Raises InvalidTaskSpec."""
        if label_offsets is not None:
            return bind(spec, self.tokenizer, self.settings.max_model_len, label_offsets)
        # Cached: binding a translation task takes seconds.
        if spec.name not in self._tasks:
            self._tasks[spec.name] = bind(spec, self.tokenizer, self.settings.max_model_len)
        return self._tasks[spec.name]

    def begin_load(self) -> None:
        """Start the engine unless it runs, and return at once.

        Raises UnsuitableTarget, EngineFailure.
        """
        if self._engine is not None:
            return
        checkpoint = Checkpoint(str(self.folder.resolve()), None)
        engine_kwargs, environment = offline_arguments(self.settings, checkpoint)
        # In one process, so that the peak memory of that process is the engine's.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        log = self._log / "engine.log"
        self._engine = OfflineEngine.launch(engine_kwargs, environment, log)
        self._loaded = False
        self.arguments = answer_arguments(engine_kwargs)
        self.environment = answer_environment({**os.environ, **environment})

    def load(self) -> None:
        """Start the engine unless it runs, and wait until its model is loaded.

        Blocking, up to minutes. Raises UnsuitableTarget, EngineFailure.
        """
        self.begin_load()
        assert self._engine is not None
        if not self._loaded:
            self._engine.wait_until_loaded()
            self._loaded = True
            self.version = self._engine.call(engine_version)

    def unload(self) -> None:
        """Stop the engine if it runs, and record its peak memory."""
        if self._engine is not None:
            self.memory_bytes = max(self.memory_bytes, self.call(peak_memory))
            self._engine.stop()
            self._engine = None

    def close(self, *, broken_off: bool = False) -> None:
        """Stop the engine and remove its log. broken_off: at once, during its work."""
        if self._engine is not None:
            if broken_off:
                self._engine.kill()
            else:
                self._engine.stop()
            self._engine = None
        for path in self._log.glob("*"):
            path.unlink()
        self._log.rmdir()

    def run(self, works: Sequence[EngineWork]) -> Batch:
        """Run works on the engine, loading it first where needed. Raises EngineFailure."""
        return self.call(run_works, works)

    def call(
        self, function: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call a function in the engine's process, loading it first where needed."""
        self.load()
        assert self._engine is not None
        return self._engine.call(function, *args, **kwargs)


def weight_bytes(folder: Path) -> int:
    """Return the size of the weight files, bytes."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def precision_of(folder: Path) -> Precision:
    """Return the precision of a checkpoint's weights according to its configuration.

    Mixed precision counts as its lowest. Raises UnsuitableModel for an unreadable configuration or
    an unknown quantization method.
    """
    config = read_config(folder, "candidate")
    stated = config.get("quantization_config")
    if stated is None:
        return "16-bit"
    try:
        bits = weight_bits(stated)
    except (AttributeError, KeyError, TypeError, ValueError):
        bits = []
    if not bits:
        raise UnsuitableModel(
            f"{str(folder)!r}: quantization_config in config.json does not state how many bits the "
            "weights have",
            field="candidate",
            fix="use a checkpoint whose quantization method this version knows (docs/quantize.md)",
        )
    return "int4" if min(bits) <= 4 else "int8" if min(bits) <= 8 else "16-bit"


def recipe_of(folder: Path) -> str | None:
    """Return an artifact's recipe, or None if its provenance does not name one."""
    try:
        return str(_json(folder / "provenance.json")["recipe"]["name"])
    except (UnsuitableModel, KeyError, TypeError):
        return None


def calibration_digests(folder: Path) -> frozenset[str]:
    """Return the digests of an artifact's calibration texts; empty without a provenance file."""
    try:
        provenance = _json(folder / "provenance.json")
    except UnsuitableModel:
        # Artifacts of other tools have no provenance file.
        if not (folder / "provenance.json").exists():
            return frozenset()
        raise
    used = provenance.get("calibration")
    if used is None:
        return frozenset()
    try:
        return frozenset(map(str, used["example_digests"]))
    except (KeyError, TypeError) as error:
        raise UnsuitableModel(
            f"provenance.json of {str(folder)!r} does not list the calibration texts as digests",
            field="candidate",
            fix="quantize the model again",
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_plain_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise UnsuitableModel(
            f"{str(path)!r} cannot be read: {unread_because(error)}",
            field="candidate",
            fix="name a folder with a Hugging Face checkpoint",
        ) from error
    if not isinstance(content, dict):
        raise UnsuitableModel(f"{str(path)!r} is not a JSON object", field="candidate")
    return content
