"""Loads a gateway with interactive requests and with batches, and watches its memory."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from benchmarks.gateway_processes import MODEL

if TYPE_CHECKING:
    import aiohttp

    from benchmarks.gateway_processes import GatewayProcess

Arm = Literal["alone", "lines", "checking"]

_CHAT = "/v1/chat/completions"
_FINAL = ("completed", "failed", "expired", "cancelled")
_POLL_S = 0.1
_LINES_OF_A_WINDOW = 8000
_LINES_CHECKED = 10_000
_LINES_ALONE = 5000
_SETTLE_S = 6.0
"""After this time without an interactive request lines run at full speed."""


@dataclass(frozen=True, slots=True)
class Interactive:
    """Latencies of interactive requests, seconds, from their planned starts; a list a window.

    rate: requests a second. lines_per_s: ended in the windows of an arm with lines.
    """

    rate: float
    windows: Mapping[Arm, list[list[float]]]
    lines_per_s: dict[Arm, float] = field(default_factory=dict)


async def time_interactive(url: str, rate: float, rounds: int, seconds: float) -> Interactive:
    """Time interactive requests in windows of each arm, in turn. rate: a second.

    Windows have at least 8 requests.
    """
    seconds = max(seconds, 8 / rate)
    windows: dict[Arm, list[list[float]]] = {arm: [] for arm in get_args(Arm)}
    ended, numbers = 0, count()
    async with _Lane.opened(url) as lane:
        running = await lane.upload(chat_lines(_LINES_OF_A_WINDOW, 300))
        checked = await lane.upload(chat_lines(_LINES_CHECKED, 300))
        # Round 0 warms connections and is not counted.
        for number in range(rounds + 1):
            for arm in get_args(Arm):
                async with _busy(lane, arm, running, checked) as progress:
                    before = await progress()
                    found = await _window(lane.session, url, rate, seconds, numbers)
                    after = await progress()
                if number:
                    windows[arm].append(found)
                    ended += after - before
    return Interactive(rate, windows, {"lines": ended / (rounds * seconds)})


async def time_lines(url: str) -> float:
    """Return how many lines a second a gateway runs while nothing else is asked."""
    async with _Lane.opened(url) as lane:
        await asyncio.sleep(_SETTLE_S)
        batch = await lane.create(await lane.upload(chat_lines(_LINES_ALONE, 300)))
        started = time.perf_counter()
        found = await lane.ended(batch)
        _require(found)
        return _LINES_ALONE / (time.perf_counter() - started)


async def time_memory(process: "GatewayProcess", number: int, path: Path) -> dict[str, Any]:
    """Return the most memory of a gateway while it receives, checks, runs and returns a file.

    number: of the file's lines.
    """
    phases: list[dict[str, Any]] = []

    async with _Lane.opened(process.url) as lane:
        # What the first batch loads belongs to no file.
        await lane.ended(await lane.create(await lane.upload(chat_lines(200, 300))))
        before_mib = process.process.memory_info().rss / 2**20

        @asynccontextmanager
        async def phase(name: str) -> AsyncIterator[None]:
            _forget_peak(process.process.pid)
            started = time.perf_counter()
            yield
            phases.append({
                "name": name, "seconds": time.perf_counter() - started,
                "most_mib": _peak_mib(process.process.pid),
            })  # fmt: skip

        async with phase("upload"):
            uploaded = await lane.upload_file(path)
        async with phase("check"):
            batch = await lane.create(uploaded)
            found = await lane.polled(batch, lambda one: one["status"] != "validating")
        async with phase("run"):
            found = await lane.polled(
                batch, lambda one: one["status"] in ("finalizing", *_FINAL), 0.5
            )
        async with phase("output"):
            found = await lane.ended(batch)
            returned = await lane.download(found["output_file_id"])
    _require(found)
    assert found["request_counts"]["total"] == number
    return {"before_mib": before_mib, "output_mb": returned / 1e6, "phases": phases}


def chat_lines(number: int, line_bytes: int) -> Iterator[bytes]:
    """Yield that many lines of about that many bytes, all different."""
    for one in range(number):
        body = {"model": MODEL, "messages": [{"role": "user", "content": f"Question {one}. "}]}
        line = {"custom_id": f"c{one}", "method": "POST", "url": _CHAT, "body": body}
        short = line_bytes - len(json.dumps(line)) - 1
        body["messages"][0]["content"] += "It is about a gate. " * max(0, short // 20)  # type: ignore[index]
        yield json.dumps(line).encode() + b"\n"


class _Lane:
    """The endpoints of files and batches."""

    def __init__(self, session: "aiohttp.ClientSession", url: str) -> None:
        self.session = session
        self._url = url

    @classmethod
    @asynccontextmanager
    async def opened(cls, url: str) -> AsyncIterator["_Lane"]:
        """Open a session; close it at the end."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=1800)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            yield cls(session, f"{url}/v1")

    async def upload(self, lines: Iterator[bytes]) -> str:
        """Upload lines; return the file's id."""
        return await self._upload(b"".join(lines))

    async def upload_file(self, path: Path) -> str:
        """Upload a file; return its id."""
        with path.open("rb") as file:
            return await self._upload(file)

    async def _upload(self, content: Any) -> str:
        import aiohttp

        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", content, filename="lines.jsonl")
        return str((await self._json("POST", "/files", data=form))["id"])

    async def create(self, file: str) -> str:
        """Create a batch; return its id."""
        return str((await self._json("POST", "/batches", json=_order(file)))["id"])

    async def check(self, file: str) -> None:
        """Check a file."""
        await self._json("POST", "/batches/check", json=_order(file))

    async def batch(self, name: str) -> dict[str, Any]:
        """Return a batch."""
        return await self._json("GET", f"/batches/{name}")

    async def cancel(self, name: str) -> None:
        """Cancel a batch and wait for its end."""
        async with self.session.post(f"{self._url}/batches/{name}/cancel") as response:
            await response.read()
        await self.ended(name)

    async def ended(self, name: str) -> dict[str, Any]:
        """Return a batch that has ended."""
        return await self.polled(name, lambda one: one["status"] in _FINAL)

    async def polled(
        self, name: str, is_there: Callable[[dict[str, Any]], bool], pause_s: float = _POLL_S
    ) -> dict[str, Any]:
        """Return a batch once it is there."""
        found = await self.batch(name)
        while not is_there(found):
            await asyncio.sleep(pause_s)
            found = await self.batch(name)
        return found

    async def download(self, file: str) -> int:
        """Read a file's content; return how many bytes it has."""
        size = 0
        async with self.session.get(f"{self._url}/files/{file}/content") as response:
            response.raise_for_status()
            async for piece in response.content.iter_any():
                size += len(piece)
        return size

    async def _json(self, method: str, path: str, **body: Any) -> dict[str, Any]:
        async with self.session.request(method, self._url + path, **body) as response:
            document: dict[str, Any] = await response.json()
            if response.status != 200:
                raise RuntimeError(f"{path} answered {response.status}: {document}")
            return document


@asynccontextmanager
async def _busy(
    lane: _Lane, arm: Arm, running: str, checked: str
) -> AsyncIterator[Callable[[], Any]]:
    """Have a batch run, or a file checked, until the block ends; yield what counts its lines."""
    batch: str | None = None
    checking: asyncio.Task[None] | None = None

    is_over = False

    async def check() -> None:
        while not is_over:
            await lane.check(checked)

    async def done() -> int:
        if batch is None:
            return 0
        return int((await lane.batch(batch))["request_counts"]["completed"])

    if arm == "lines":
        batch = await lane.create(running)
        await lane.polled(batch, lambda one: one["request_counts"]["completed"] > 0)
    elif arm == "checking":
        checking = asyncio.create_task(check())
        await asyncio.sleep(0.2)
    try:
        yield done
    finally:
        if batch is not None:
            await lane.cancel(batch)
        if checking is not None:
            is_over = True
            await checking


async def _window(
    session: "aiohttp.ClientSession", url: str, rate: float, seconds: float, numbers: "count[int]"
) -> list[float]:
    """Send requests at their times, whatever the answers take; return their latencies, seconds."""
    latencies: list[float] = []

    async def ask(planned: float) -> None:
        text = f"What is gate {next(numbers)}?"
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}]}
        async with session.post(f"{url}{_CHAT}", json=body) as response:
            await response.read()
            response.raise_for_status()
        latencies.append(time.perf_counter() - planned)

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(round(rate * seconds)):
            planned = began + number / rate
            await asyncio.sleep(max(0.0, planned - time.perf_counter()))
            group.create_task(ask(planned))
    return latencies


def _order(file: str) -> dict[str, Any]:
    return {"input_file_id": file, "endpoint": _CHAT, "completion_window": "24h"}


def _require(batch: Mapping[str, Any]) -> None:
    counts = batch["request_counts"]
    if batch["status"] != "completed" or counts["completed"] != counts["total"]:
        raise RuntimeError(f"the batch is {batch['status']}: {counts}, {batch['errors']}")


def _forget_peak(pid: int) -> None:
    """Make the kernel measure a process's peak memory anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def _peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
