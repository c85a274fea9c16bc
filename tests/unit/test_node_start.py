"""The start of Ray's node on a machine that is too busy for it."""

import subprocess
import sys

import pytest
from ray.exceptions import ActorDiedError

from serving.contracts.errors import EngineFailure
from serving.lifecycle import stack
from serving.lifecycle.processes import end_descendants

TIMED_OUT = "The current node timed out during startup. This could happen because"


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """The errors of the attempts, in order; an attempt takes the first one away."""
    import ray

    planned: list[Exception | None] = []

    def init(**_: object) -> None:
        if (error := planned.pop(0)) is not None:
            raise error

    monkeypatch.setattr(ray, "init", init)
    return planned


def test_a_node_that_was_late_is_started_again(attempts: list[Exception | None]) -> None:
    attempts += [Exception(TIMED_OUT), None, Exception("not asked for")]
    stack._start_node()
    assert len(attempts) == 1


def test_a_node_that_is_always_late_ends_the_start(attempts: list[Exception | None]) -> None:
    attempts += [Exception(TIMED_OUT)] * 3
    with pytest.raises(EngineFailure, match="3 attempts") as caught:
        stack._start_node()
    assert "free processor time" in (caught.value.fix or "")


def test_another_error_is_not_tried_again(attempts: list[Exception | None]) -> None:
    attempts += [RuntimeError("no such address"), None]
    with pytest.raises(RuntimeError, match="no such address"):
        stack._start_node()
    assert len(attempts) == 1


@pytest.mark.parametrize("error", [ActorDiedError(), TimeoutError("not available after 60 s")])
def test_a_proxy_that_was_late_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from ray import serve

    planned: list[Exception | None] = [error, None]

    def start(**_: object) -> None:
        if (failed := planned.pop(0)) is not None:
            raise failed

    monkeypatch.setattr(serve, "start", start)
    stack._start_serve(None)
    assert not planned
    planned += [error] * 3
    with pytest.raises(EngineFailure, match="proxy did not start in 3 attempts") as caught:
        stack._start_serve(None)
    assert "free processor time" in (caught.value.fix or "")


def test_only_processes_of_a_path_are_ended() -> None:
    wait = "import sys; sys.stdin.read()"
    marked = subprocess.Popen([sys.executable, "-c", wait, "/a/path"], stdin=subprocess.PIPE)
    # Python's forkserver has its search path in its command, Ray's folder included.
    other = subprocess.Popen(
        [sys.executable, "-c", f"{wait}; path = '/a/path'"], stdin=subprocess.PIPE
    )
    with marked, other:
        end_descendants(running_from="/a/path")
        assert marked.poll() is not None
        assert other.poll() is None
        other.kill()
