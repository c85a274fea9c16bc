"""Formats vLLM's log lines without clients' texts.

vLLM writes values and exception texts into its log. Both can hold a request's content. A line here
keeps its constant text, its numbers, the class of an exception and the places where it was raised.
"""

import logging
import traceback
from pathlib import Path
from types import TracebackType

CONFIG_FILE = Path(__file__).with_name("engine_logging.json")
"""For VLLM_LOGGING_CONFIG_PATH: every process of the engine reads it."""

WITHHELD = "<withheld>"
# While a model is loaded no request exists; the reason of a failed start must be readable.
_LOADING = frozenset({
    "_init_executor", "_initialize_kv_caches", "create_engine_config", "determine_available_memory",
    "init_device", "initialize_from_config", "initialize_kv_cache", "load_model",
})  # fmt: skip

ExceptionFacts = (
    tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
)


class EngineLogFormatter(logging.Formatter):
    """Removes texts that are filled into a line, and the texts of exceptions."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; the record itself stays as it is."""
        shown = logging.makeLogRecord(record.__dict__)
        shown.args = _withheld(record.args, named="%(" in str(record.msg))
        # Already formatted by another handler, with all texts.
        shown.exc_text = None
        return super().format(shown)

    def formatException(self, ei: ExceptionFacts) -> str:  # noqa: N802  # logging's name
        """Return the class and the places; the text too where a model was being loaded."""
        kind, error, trace = ei
        if kind is None:
            return ""
        frames = traceback.extract_tb(trace)
        places = [f"  {frame.filename}:{frame.lineno} in {frame.name}" for frame in frames]
        loading = any(frame.name in _LOADING for frame in frames)
        return "\n".join([f"{kind.__name__}: {error if loading else WITHHELD}", *places])


def _withheld(args: object, *, named: bool) -> tuple[object, ...] | dict[str, object] | None:
    if isinstance(args, dict):
        # logging keeps a single mapping as it is, for named and for positional places alike.
        return {key: _shown(value) for key, value in args.items()} if named else (WITHHELD,)
    return tuple(_shown(value) for value in args) if isinstance(args, tuple) else None


def _shown(value: object) -> object:
    return value if isinstance(value, int | float) or value is None else WITHHELD
