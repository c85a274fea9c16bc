"""vLLM's offline engine in a process of its own, driven over pipes.

For measurements and evaluations: what runs in the engine's process is a function that the caller
names. The parent (`OfflineEngine`) sends pickled calls, the child answers with pickled results.
"""

import contextlib
import os
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec, Self, TypeVar

from serving.contracts.errors import EngineFailure

P = ParamSpec("P")
R = TypeVar("R")
_STOP_S = 30
_LOG_LINES = 15


class OfflineEngine:
    """The parent process's side. For one thread."""

    def __init__(
        self, process: "subprocess.Popen[bytes]", model: str, log: Path | None = None
    ) -> None:
        self._process = process
        self._model = model
        self._log = log
        self.load_s = 0.0
        """Seconds from the arguments to a model ready to answer, without imports."""

    @classmethod
    def start(
        cls, engine_kwargs: dict[str, Any], environment: dict[str, str], log: Path | None = None
    ) -> Self:
        """Start the child and wait until the model is loaded. Blocking, up to minutes.

        The arguments are those of `launch`. Raises EngineFailure when the model cannot be loaded.
        """
        engine = cls.launch(engine_kwargs, environment, log)
        engine.wait_until_loaded()
        return engine

    @classmethod
    def launch(
        cls, engine_kwargs: dict[str, Any], environment: dict[str, str], log: Path | None = None
    ) -> Self:
        """Start the child, which begins to load the model, and return at once.

        engine_kwargs: of vllm.LLM. environment: added to this process's. log: file for what the
        engine prints; this process's standard error without one.
        """
        stderr: IO[bytes] | None = log.open("wb") if log else None
        try:
            process = subprocess.Popen(  # our own module
                [sys.executable, "-m", "serving.local.offline"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **environment},
            )
        finally:
            if stderr is not None:
                stderr.close()
        engine = cls(process, str(engine_kwargs["model"]), log)
        # Small enough for the pipe: this does not wait for the child.
        engine._send(engine_kwargs)
        return engine

    def wait_until_loaded(self) -> None:
        """Wait until the model is loaded. Blocking, up to minutes. Raises EngineFailure."""
        try:
            self.load_s = self._receive()
        except EngineFailure as error:
            self.stop()
            raise EngineFailure(f"{error.message}{_tail(self._log)}", fix=error.fix) from error
        except BaseException:  # KeyboardInterrupt too: no process may remain; re-raised
            self.kill()
            raise

    def call(
        self, function: Callable[Concatenate[Any, P], R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Call a module-level function with the vllm.LLM and the arguments; return its result.

        Blocking. Raises EngineFailure when the function raises or the engine ends.
        """
        self._send((function, args, kwargs))
        result: R = self._receive()
        return result

    def stop(self) -> None:
        """End the child; it shuts its engine down cleanly when its input closes."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def kill(self) -> None:
        """Kill the child process."""
        self._process.kill()
        self.stop()

    def _send(self, item: object) -> None:
        assert self._process.stdin is not None
        try:
            pickle.dump(item, self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        try:
            failure, result = pickle.load(self._process.stdout)  # noqa: S301  # our own child's
        except (EOFError, pickle.UnpicklingError) as error:
            raise self._died() from error
        if failure is not None:
            raise EngineFailure(f"vLLM with {self._model!r}: {failure}")
        return result

    def _died(self) -> EngineFailure:
        return EngineFailure(
            f"vLLM's process for {self._model!r} ended with status {self._process.wait(_STOP_S)}",
            fix="the end of its output shows the reason, most often too little memory",
        )


def _tail(log: Path | None) -> str:
    if log is None:
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    return "\n" + "\n".join(lines)


def _child() -> None:
    # The engine writes to standard output; answers are written to a copy of it.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    commands = sys.stdin.buffer
    kwargs = pickle.load(commands)  # noqa: S301  # from our own parent
    engine: Any = None

    def answer(function: Callable[[], Any]) -> None:
        try:
            reply: tuple[str | None, Any] = (None, function())
        except Exception as error:  # noqa: BLE001  # the process's edge: sent to the parent
            traceback.print_exc()
            reply = (f"{type(error).__name__}: {error}", None)
        pickle.dump(reply, answers)
        answers.flush()

    def load() -> float:
        nonlocal engine
        from vllm import LLM

        started = time.perf_counter()
        engine = LLM(**kwargs)
        return time.perf_counter() - started

    answer(load)
    while engine is not None:
        try:
            function, args, named = pickle.load(commands)  # noqa: S301  # from our own parent
        except EOFError:
            break
        answer(lambda: function(engine, *args, **named))  # noqa: B023  # called at once
    if engine is not None:
        engine.llm_engine.engine_core.shutdown()
    sys.stderr.flush()
    # Everything is stopped and answered. Taking half a million objects apart costs seconds.
    os._exit(0)


if __name__ == "__main__":
    _child()
