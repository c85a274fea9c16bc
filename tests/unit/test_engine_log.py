"""The engine's log holds nothing that a client sent."""

import json
import logging
import logging.config
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from serving.artifacts.checkpoint import Checkpoint
from serving.contracts.settings import CpuAccelerator, ModelSettings
from serving.local.deployment import llm_config_arguments, offline_arguments
from serving.local.engine_log import CONFIG_FILE, EngineLogFormatter

MARKER = "zebra-stripes-4711"


def line(message: str, *args: object, error: bool = False) -> str:
    record = logging.LogRecord(
        "vllm", logging.ERROR, "file.py", 7, message, args, sys.exc_info() if error else None
    )
    return EngineLogFormatter("%(levelname)s %(message)s").format(record)


def test_texts_are_withheld_and_numbers_are_not() -> None:
    assert line("%d tokens of %s in %.1f s", 3, MARKER, 0.25) == (
        "ERROR 3 tokens of <withheld> in 0.2 s"
    )
    assert line("fields %s ignored", {MARKER: 1}) == "ERROR fields <withheld> ignored"
    assert line("%(a)s of %(b)d", {"a": MARKER, "b": 2}) == "ERROR <withheld> of 2"
    assert line("100 % done") == "ERROR 100 % done"


def test_an_exception_is_told_by_class_and_place() -> None:
    try:
        fail(ValueError(f"logprobs (parameter=logprobs, value={MARKER})"))
    except ValueError:
        shown = line("Error in preprocessing", error=True)
    assert MARKER not in shown
    assert "ValueError: <withheld>" in shown
    assert f"{Path(__file__).name}:" in shown


def test_a_chained_exception_is_withheld_too() -> None:
    try:
        try:
            fail(KeyError(MARKER))
        except KeyError as first:
            raise RuntimeError("second") from first
    except RuntimeError:
        assert MARKER not in line("failed", error=True)


def fail(error: Exception) -> NoReturn:
    raise error


def load_model() -> NoReturn:
    raise RuntimeError("out of memory")


def test_the_reason_of_a_failed_load_is_readable() -> None:
    try:
        load_model()
    except RuntimeError:
        assert "RuntimeError: out of memory" in line("EngineCore failed to start.", error=True)


def test_another_handlers_text_is_not_reused() -> None:
    try:
        fail(ValueError(MARKER))
    except ValueError:
        record = logging.LogRecord("vllm", 40, "f.py", 7, "x", (), sys.exc_info())
    assert MARKER in logging.Formatter().format(record)
    assert MARKER not in EngineLogFormatter().format(record)


def test_a_replica_gets_the_configuration_and_an_offline_engine_does_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = ModelSettings(id="m", source="a/b", accelerator=CpuAccelerator(kind="cpu"))
    arguments = llm_config_arguments(model, Checkpoint("/m", None), 1.0)
    variables = arguments["runtime_env"]["env_vars"]
    assert variables["VLLM_LOGGING_CONFIG_PATH"] == str(CONFIG_FILE)
    assert "VLLM_LOGGING_CONFIG_PATH" not in offline_arguments(model, Checkpoint("/m", None))[1]
    config = json.loads(CONFIG_FILE.read_text(encoding="utf-8"))
    # vLLM passes it to dictConfig; here under a name of its own, to leave pytest's handlers.
    config["loggers"] = {"narrowgate_test_vllm": config["loggers"]["vllm"]}
    config["incremental"] = False
    handlers = dict(logging._handlers)  # type: ignore[attr-defined]
    try:
        logging.config.dictConfig(config)
        logging.getLogger("narrowgate_test_vllm").warning("value %s", MARKER)
    finally:
        logging._handlers.update(handlers)  # type: ignore[attr-defined]
    assert "value <withheld>" in capsys.readouterr().out
