"""The processes below this one: adopted, reaped and ended."""

import ctypes
import os
import signal
import time

import psutil

from serving.lifecycle.signals import StopRequested

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_TERMINATE_S = 2.0
_REAP_PERIOD_S = 5.0


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so that none outlives this process.

    An engine core whose replica was killed would otherwise belong to init and keep its memory.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def wait_for_signal() -> str:
    """Wait for SIGINT or SIGTERM and return its name. Only inside signals_raise.

    Reaps adopted processes meanwhile: an engine core whose replica was killed would stay a zombie.
    """
    own = {child.pid for child in psutil.Process().children()}
    try:
        while True:
            time.sleep(_REAP_PERIOD_S)
            _reap_adopted(own)
    except StopRequested as stop:
        return str(stop)


def _reap_adopted(own: set[int]) -> None:
    for child in psutil.Process().children():
        if child.pid not in own and child.status() == psutil.STATUS_ZOMBIE:
            os.waitpid(child.pid, os.WNOHANG)


def end_descendants(running_from: str = "") -> None:
    """Terminate every descendant process; kill those that still run after 2 s.

    running_from: a path; only processes of which the program or an argument begins with it are
    ended.
    """
    descendants = [
        process
        for process in psutil.Process().children(recursive=True)
        if any(word.startswith(running_from) for word in _command(process))
    ]
    for process in descendants:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(descendants, timeout=_TERMINATE_S)
    for process in alive:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=_TERMINATE_S)


def _command(process: psutil.Process) -> list[str]:
    try:
        # A process that has just ended has no command any more.
        return process.cmdline() or [""]
    except psutil.Error:
        return [""]


def _signal(process: psutil.Process, number: int) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
