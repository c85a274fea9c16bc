"""Prints the files that one chat and one task enter: python -m tests.unit.request_stops.

The application is that of `narrowgate serve` without Ray and without a local model, with a provider
on a socket; NARROWGATE_* variables set it.

A stop is a call from one file into another: of a coroutine, of a context manager that may wait, or
of a function in HANDOVERS, which take the request over without waiting. Counted once each:

- a call back into a file that the request was in before, such as the second use of the ledger;
- the first step of a task, which nothing calls.

Calls into the same file in a row are one stop. Not counted: a function that calls another one of
its own file, a coroutine or context manager that continues after what it waited for, other
functions that return at once, and what LEFT_OUT, BEHIND and BACKGROUND name: middleware, frozen
types, and what runs behind the answer.
"""

# ruff: noqa: ASYNC110  # it waits for a reading that tells nothing

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import httpx

from serving.app import Gateway
from serving.commands.ledger import prepare_ledger
from serving.contracts.settings_sources import load_settings
from serving.tasks.catalog import load_specs

from ..provider.server import ProviderServer

ROOT = str(Path(__file__).parents[2] / "serving") + os.sep
KEY = "sk-test-0123456789-never-logged"
HANDOVERS = (
    "read_chat", "read_tasks", "choose_plan", "ExitRecorder.open", "DatabaseEntry.close",
    "DatabaseCall.close", "Writer.submit", "write_reply", "write_tasks",
)  # fmt: skip
LEFT_OUT = (
    "contracts/", "gateway/middleware", "gateway/messages_errors", "gateway/auth", "gateway/limits",
    "gateway/page_origin",
)  # fmt: skip
BEHIND = (
    "evidence/worker", "evidence/appender", "evidence/heads/", "cache/writer", "pipeline/auditor",
    "pipeline/audit_work",
)  # fmt: skip
"""With all that they call: they run behind the answer."""

BACKGROUND = (
    "Writer._watch_connection", "CacheService._run", "_repeat", "EvidenceService.watch",
    "EvidenceService._count_spending", "Scheduler.watch", "BatchService.watch", "Directory.watch",
)  # fmt: skip
ASKED = {
    "a chat on a provider": (
        "/v1/chat/completions",
        {"model": "openai/gpt-4.1", "messages": [{"role": "user", "content": "A poem of the sea"}]},
    ),
    "a task": ("/v1/tasks/topic", {"input": "The vote in parliament was postponed."}),
}


@contextlib.contextmanager
def traced() -> Iterator[list[tuple[str, str]]]:
    """Yield the list to which each entered file is added, with the function; once in a row."""
    found: list[tuple[str, str]] = []
    kept: list[FrameType] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        code: CodeType = frame.f_code
        if event != "call" or not code.co_filename.startswith(ROOT):
            return
        file, name = code.co_filename[len(ROOT) :], code.co_qualname
        is_stop = bool(code.co_flags & 0x280) or name in HANDOVERS or "ledger/worker" in file
        if not is_stop or file.startswith(LEFT_OUT) or name in BACKGROUND:
            return
        if any(frame is one for one in kept):  # resumed, not entered
            return
        kept.append(frame)
        callers = list(_callers(frame))
        if any(caller.startswith(BEHIND) for caller in (file, *callers)):
            return
        if callers[:1] != [file] and (not found or found[-1][0] != file):
            found.append((file, name))

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]


def _callers(frame: FrameType) -> Iterator[str]:
    """Yield the files of ours that called a frame, the nearest first."""
    above = frame.f_back
    while above is not None:
        if above.f_code.co_filename.startswith(ROOT):
            yield above.f_code.co_filename[len(ROOT) :]
        above = above.f_back


async def stops(folder: Path, url: str) -> dict[str, list[tuple[str, str]]]:
    """Ask for each answer twice in other words, and return the stops of the second request."""
    tiers = {tier: ["openai/gpt-4.1"] for tier in ("economy", "standard", "frontier")}
    providers = {"openai": {"api": "openai", "base_url": f"{url}/v1"}}
    config = folder / "settings.yaml"
    config.write_text(
        json.dumps({
            "models": [], "state": str(folder / "state"),
            "frontier": {"providers": providers, "tiers": tiers},
        }),
        encoding="utf-8",
    )  # fmt: skip
    settings = load_settings(config, {"auth": {"mode": "off"}})
    prepare_ledger(settings, os.environ)
    specs = dict(load_specs(None))
    app: Any = Gateway(settings, specs, settings.state / "models.json").__serve_build_asgi_app__()
    found = {}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as client,
    ):
        while (await client.get("/v1/models")).status_code != 200:
            await asyncio.sleep(0.1)  # the keys are read
        for name, (path, body) in ASKED.items():
            other = json.dumps(body).replace("sea", "wind").replace("vote", "law")
            await client.post(path, json=json.loads(other))
            await asyncio.sleep(1)
            with traced() as entered:
                answer = await client.post(path, json=body)
                await asyncio.sleep(0.2)
            assert answer.status_code == 200, answer.text
            found[name] = entered
    return found


def main() -> None:
    """Print the stops of each request, and how many there are in how many files."""
    os.environ["OPENAI_API_KEY"] = KEY
    with tempfile.TemporaryDirectory() as folder, ProviderServer(keys=[KEY]) as provider:
        provider.script.answer = lambda _: "World"
        for name, entered in asyncio.run(stops(Path(folder), provider.url)).items():
            files = {file for file, _ in entered}
            print(f"{name}: {len(entered)} stops in {len(files)} files")
            for file, function in entered:
                print(f"  {file} {function}")


if __name__ == "__main__":
    main()
