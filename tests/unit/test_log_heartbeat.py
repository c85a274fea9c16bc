"""The heartbeat of the log stops when the log's file no longer receives lines."""

import logging
import logging.config
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from pathlib import Path

import pytest

from serving.gateway import log_heartbeat
from serving.gateway.log_heartbeat import LogHeartbeat

OURS = log_heartbeat.logger


@pytest.fixture
def handlers(tmp_path: Path) -> Iterator[tuple[MemoryHandler, logging.FileHandler]]:
    """Ray Serve's arrangement: a buffer in front of a file."""
    file = logging.FileHandler(tmp_path / "replica.log")
    buffer = MemoryHandler(10, target=file)
    saved = OURS.handlers, OURS.level, OURS.propagate
    OURS.handlers, OURS.propagate = [buffer], False
    OURS.setLevel(logging.INFO)
    yield buffer, file
    OURS.handlers, OURS.level, OURS.propagate = saved
    OURS.disabled = False
    logging.getLogger().manager._clear_cache()  # type: ignore[attr-defined]
    buffer.close()
    file.close()


def test_a_line_that_the_file_received_counts(
    handlers: tuple[MemoryHandler, logging.FileHandler],
) -> None:
    times: list[float] = []
    heartbeat = LogHeartbeat(times.append)
    assert heartbeat.beat()
    assert heartbeat.beat()
    assert len(times) == 2
    lines = Path(handlers[1].baseFilename).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2
    assert all(line.startswith("log.heartbeat mark=") for line in lines)


def test_closed_handlers_stop_it(handlers: tuple[MemoryHandler, logging.FileHandler]) -> None:
    times: list[float] = []
    heartbeat = LogHeartbeat(times.append)
    assert heartbeat.beat()
    handlers[0].close()
    assert not heartbeat.beat()
    assert len(times) == 1


@pytest.mark.parametrize("disables", [True, False])
def test_a_library_that_reconfigures_logging_stops_it(
    handlers: tuple[MemoryHandler, logging.FileHandler], disables: bool
) -> None:
    heartbeat = LogHeartbeat(lambda _: None)
    assert heartbeat.beat()
    settings = {"version": 1, "disable_existing_loggers": disables}
    saved = logging.getLogger().handlers[:]
    try:
        logging.config.dictConfig(settings)
        assert not heartbeat.beat()
    finally:
        logging.getLogger().handlers = saved
        for name in list(logging.root.manager.loggerDict):
            logging.getLogger(name).disabled = False


@pytest.mark.parametrize("lost", ["no handler", "level", "file"])
def test_lines_that_go_nowhere_do_not_count(
    handlers: tuple[MemoryHandler, logging.FileHandler], lost: str
) -> None:
    match lost:
        case "no handler":
            OURS.handlers = []
        case "level":
            OURS.setLevel(logging.WARNING)
        case "file":
            Path(handlers[1].baseFilename).unlink()
    assert not LogHeartbeat(lambda _: None).beat()
