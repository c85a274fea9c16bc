"""Runs the process that fits, from the event loop: bounded in time, ended with its caller."""

import asyncio
import os
import sys
import tempfile
from dataclasses import dataclass

from serving.contracts.errors import FitFailed, HeadRefused
from serving.contracts.head_settings import HeadSettings
from serving.evidence.heads.arrays import DamagedArrays, unpack
from serving.evidence.heads.candidate import Candidate, content_digest, parse_candidate
from serving.evidence.heads.examples import FitRows
from serving.evidence.heads.fit_process import FAILED, NO_MEMORY

_MODULE = "serving.evidence.heads.fit_process"
_SHOWN = 300
# One thread: equal rows must give equal bits, and the fit must not take cores from the engine.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True)
class _Ended:
    status: int
    output: bytes
    error: str


async def fit_in_process(rows: FitRows, settings: HeadSettings) -> list[Candidate]:
    """Return the fitted candidates.

    Cancelling ends the process. Raises FitFailed where rows or labels are too few, and where the
    fit needs more time than max_fit_s or more memory than max_fit_mib.
    """
    data = await asyncio.to_thread(rows.packed)
    try:
        async with asyncio.timeout(settings.max_fit_s):
            ended = await _run(data, settings)
    except TimeoutError as error:
        raise FitFailed(
            f"the fit of {len(rows)} examples took more than {settings.max_fit_s} s",
            field="evidence.head.max_fit_s",
            fix="raise it, or lower max_rows",
        ) from error
    if ended.status != 0:
        raise _failure(ended, rows, settings)
    return await asyncio.to_thread(_read, ended.output, rows)


async def _run(data: bytes, settings: HeadSettings) -> _Ended:
    # Nothing of this process's environment: it may hold keys.
    environment = {"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                   **_ONE_THREAD}  # fmt: skip
    # The working directory may hold a module that shadows one of ours.
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", _MODULE, str(settings.max_fit_s), str(settings.max_fit_mib),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        cwd=tempfile.gettempdir(),
    )  # fmt: skip
    try:
        output, error = await process.communicate(data)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return _Ended(process.returncode, output, error.decode("utf-8", "replace").strip())


def _failure(ended: _Ended, rows: FitRows, settings: HeadSettings) -> FitFailed:
    last = ended.error.rpartition("\n")[2][-_SHOWN:]
    if ended.status == FAILED:
        return FitFailed(last, fix="wait for more examples")
    # A library that cannot allocate may end in another error than MemoryError, or be killed.
    # The loader says of a library that does not fit that it cannot map a segment of it.
    signs = ("MemoryError", "memory", "Memory", "failed to map segment")
    memory = ended.status == NO_MEMORY or any(sign in last for sign in signs)
    if memory:
        return FitFailed(
            f"the fit of {len(rows)} examples needs more than {settings.max_fit_mib} MiB",
            field="evidence.head.max_fit_mib",
            fix="raise it, or lower max_rows",
        )
    return FitFailed(f"the fit of {len(rows)} examples ended with status {ended.status}: {last!r}")


def _read(output: bytes, rows: FitRows) -> list[Candidate]:
    try:
        found = [array.tobytes() for array in unpack(output).arrays.values()]
        candidates = [parse_candidate(content, content_digest(content)) for content in found]
    except (DamagedArrays, HeadRefused) as error:
        raise FitFailed(f"the fit returned an unreadable head: {error}") from error
    for candidate in candidates:
        if candidate.provenance.scope != rows.scope.id or candidate.labels != rows.labels:
            raise FitFailed("the fit returned a head of another scope or of other labels")
    return candidates
