"""A gateway process with a scripted local model, which can kill itself at a named step.

KILL_AT in the environment is `before STEP` or `after STEP`: the process gets SIGKILL from itself
at that step of an audit's way, once the file ARMED exists. The steps are the writes of the database
and the provider's calls.
"""

import inspect
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from serving.batch import openai_batches
from serving.batch.audit_store import AuditStore
from serving.batch.openai_batches import OpenAIBatches
from serving.batch.store import BatchStore
from serving.batch.submission_store import SubmissionStore
from serving.evidence.pending_audits import PendingAudits
from serving.ledger.ledger import DatabaseEntry

from ..unit.audit_gateway import serve_scripted
from . import gateway_process

_Does = Callable[[Any], bool]


def _always(found: Any) -> bool:
    return True


STEPS: dict[str, tuple[type, str, _Does]] = {
    "defer": (PendingAudits, "defer", _always),
    # Only calls that collect something.
    "collect": (AuditStore, "collect", bool),
    "claim": (SubmissionStore, "claim", lambda found: bool(found[1])),
    "hold": (DatabaseEntry, "open_call", _always),
    "intend": (SubmissionStore, "intend", _always),
    "submit": (OpenAIBatches, "submit", _always),
    "mark": (SubmissionStore, "mark", _always),
    "state": (OpenAIBatches, "state", _always),
    "settle": (PendingAudits, "settle", _always),
    "end_lines": (SubmissionStore, "end_lines", _always),
    "finish": (AuditStore, "finish", _always),
    "clear": (BatchStore, "clear_lines", _always),
}
"""By name: the class, its method, and whether a result means that the step was taken."""


def _kill() -> None:
    if Path(os.environ["ARMED"]).exists():
        os.kill(os.getpid(), signal.SIGKILL)


def _install(when: str, step: str) -> None:
    """Kill the process before or after a call of a step."""
    owner, name, is_taken = STEPS[step]
    method = getattr(owner, name)

    def blocking(*arguments: Any, **more: Any) -> Any:
        if when == "before":
            _kill()
        found = method(*arguments, **more)
        if is_taken(found):
            _kill()
        return found

    async def awaited(*arguments: Any, **more: Any) -> Any:
        if when == "before":
            _kill()
        found = await method(*arguments, **more)
        _kill()
        return found

    made = awaited if inspect.iscoroutinefunction(method) else blocking
    setattr(owner, name, made)


def main() -> None:
    """Serve until killed."""
    patch = pytest.MonkeyPatch()
    serve_scripted(patch)
    # The fake provider's list shows a batch at once: what a kill left is searched for at once.
    patch.setattr(openai_batches, "LIST_LAG", timedelta(seconds=1))
    when, _, step = os.environ.get("KILL_AT", "").partition(" ")
    if step:
        _install(when, step)
    gateway_process.main()


if __name__ == "__main__":
    main()
