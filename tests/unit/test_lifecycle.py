"""Ports, signals, processes and deadlines of a stack on one machine."""

import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serving.contracts.errors import EngineFailure, InvalidSettings
from serving.lifecycle.environment import ray_environment
from serving.lifecycle.haproxy import Listeners
from serving.lifecycle.ports import free_ports, next_free_port, refuse_taken_port
from serving.lifecycle.signals import StopRequested, signals_raise
from serving.lifecycle.stack import engine_application, wait_until

LISTENERS = Listeners("127.0.0.1", 1, 400, 20, 1.0, 1.0)


def test_waiting_ends_with_the_missing_part() -> None:
    tries: list[int] = []

    def third() -> bool:
        tries.append(1)
        return len(tries) == 3

    wait_until(third, 10.0, lambda: "nothing")
    assert len(tries) == 3
    with pytest.raises(EngineFailure, match="the gateway does not answer after 0 s") as caught:
        wait_until(lambda: False, 0.0, lambda: "the gateway does not answer")
    assert caught.value.fix
    assert "logs" in caught.value.fix


def test_a_taken_port_is_refused_by_its_setting_and_skipped_where_any_will_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSettings, match=f"cannot listen on 127.0.0.1:{port}") as caught:
            refuse_taken_port("127.0.0.1", port, "gateway.health_port")
        assert caught.value.field == "gateway.health_port"
        assert next_free_port("127.0.0.1", port - 1) != port
    refuse_taken_port("127.0.0.1", port)


def test_ports_that_are_found_together_differ() -> None:
    # Found one by one, two of so many are nearly always the same.
    assert len(set(free_ports(500))) == 500


def test_the_first_signal_raises_and_later_ones_are_ignored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals_raise():
        with pytest.raises(StopRequested, match="SIGTERM"):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before


STUBBORN = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('up', flush=True)\ntime.sleep(60)"
)
# An orphan: its parent ends at once, and this process must have become its parent.
TREE = f"""
import subprocess, sys, time, psutil
from serving.lifecycle.processes import adopt_orphans, end_descendants
adopt_orphans()
child = r'''import subprocess, sys
grandchild = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], stdout=subprocess.PIPE)
grandchild.stdout.readline()
print(grandchild.pid, flush=True)'''
pid = int(subprocess.run([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True).stdout)
assert psutil.pid_exists(pid)
end_descendants()
print(pid)
"""


def test_processes_are_ended_also_orphans_that_ignore_the_signal() -> None:
    done = subprocess.run(
        [sys.executable, "-c", TREE], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    pid = int(done.stdout)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_ray_asks_for_a_token_that_only_its_owner_can_read(tmp_path: Path) -> None:
    found = ray_environment(tmp_path, LISTENERS)
    assert "PYTHONHASHSEED" not in found
    assert found["RAY_AUTH_MODE"] == "token"
    token = Path(found["RAY_AUTH_TOKEN_PATH"])
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    (tmp_path / "second").mkdir()
    other = Path(ray_environment(tmp_path / "second", LISTENERS)["RAY_AUTH_TOKEN_PATH"])
    assert len(token.read_text(encoding="ascii")) == 64
    assert token.read_text(encoding="ascii") != other.read_text(encoding="ascii")
    assert found["RAY_SERVE_HAPROXY_MAXCONN"] == str(LISTENERS.max_connections_in_all)
    assert Listeners.read(tmp_path / "listeners.json") == LISTENERS


def test_distinct_models_are_distinct_applications() -> None:
    names = {engine_application(name) for name in ("a/b", "a-b", "a.b", "a--b", "b")}
    assert len(names) == 5
    assert all("/" not in name for name in names)
