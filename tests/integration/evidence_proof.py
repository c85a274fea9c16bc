"""A task of 20 labels from one YAML file to a held claim, a shift, and a kill -9, over real HTTP.

python -m tests.integration.evidence_proof [--inputs N] [--data FILE] [--plot FILE] [--json FILE]

The stack is the real one without a local model. The reference is the fake provider over HTTP.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from sqlalchemy import func, select

from serving.contracts.head_settings import HeadSettings
from serving.evidence.heads.fit_queue import next_fit
from serving.evidence.heads.schema import head_examples, head_scopes
from serving.ledger.database import Database, database_url

from ..provider.script import Fault, Seen
from ..provider.server import ProviderServer
from ..unit.head_server import SUBJECTS, inputs

ROOT = Path(__file__).parents[2]
TASK = "desk"
TARGET = 0.15
REFERENCE = "openai/gpt-6-luna"
KEY = "sk-test-0123456789-never-logged"
AT_ONCE = 4
START_S = 600.0
_FIT_S = 600.0


@dataclass(frozen=True)
class Plan:
    """What is sent. rows: texts with labels. shift_at: accepted inputs until the labels change.

    kill_at: accepted inputs until the gateway is killed. first_fit: labels of the first head.
    """

    rows: Sequence[tuple[str, str]]
    shift_at: int
    kill_at: int
    first_fit: int = 100
    earn_again: bool = True


@dataclass
class Sent:
    """One answered input. phase: `before` or `after` the shift. state: of the claim then."""

    number: int
    phase: str
    is_local: bool
    is_wrong: bool
    seconds: float


@dataclass
class Reference:
    """Knows the label of every text. wrong: share of its answers that are wrong, evenly spread.

    is_shifted: new rules hold. asked, erred: answers so far, and the wrong ones among them.
    """

    labels: dict[str, str]
    order: tuple[str, ...]
    is_shifted: bool = False
    wrong: float = 0.03
    asked: int = 0
    erred: int = 0

    def right(self, text: str) -> str:
        """Return the label of a text under the rules that hold now.

        The shift: the teams of the first half of the labels were renamed in a circle.
        """
        label = self.labels[text]
        half = self.order[: len(self.order) // 2]
        if not self.is_shifted or label not in half:
            return label
        return half[(half.index(label) + 1) % len(half)]

    def answer(self, seen: Seen) -> str:
        content = seen.body["messages"][-1]["content"]
        written = content if isinstance(content, str) else content[-1]["text"]
        text = written if written in self.labels else _longest(written, self.labels)
        self.asked += 1
        label = self.right(text)
        if int(self.asked * self.wrong) > self.erred:
            self.erred += 1
            label = self.order[(self.order.index(label) + 1) % len(self.order)]
        return json.dumps({"label": label})


@dataclass
class Gateway:
    """`narrowgate serve` without a local model, in a process of its own."""

    folder: Path
    provider_url: str
    first_fit: int
    labels: Sequence[str]
    with_ray: bool = True
    url: str = ""
    process: "subprocess.Popen[bytes] | None" = None
    log: Path = field(init=False)
    _words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.log = self.folder / "serve.log"

    def start(self) -> None:
        """Start and wait until it is ready."""
        tasks = self.folder / "tasks"
        tasks.mkdir(exist_ok=True)
        (tasks / f"{TASK}.yaml").write_text(yaml.safe_dump({
            "name": TASK, "kind": "classification", "floor": 0.5, "target_error": TARGET,
            "instruction": "Say what the message is about. Answer with one label.",
            "labels": list(self.labels),
        }))  # fmt: skip
        config = self.folder / "settings.yaml"
        config.write_text(yaml.safe_dump({
            "models": [],
            "state": str(self.folder / "state"),
            "tasks_dir": str(tasks),
            "frontier": {"providers": {
                "openai": {"api": "openai", "base_url": f"{self.provider_url}/v1"},
                "anthropic": {"api": "anthropic", "base_url": self.provider_url},
            }},
            # One client sends everything within minutes: as many clients would within hours.
            "evidence": {
                "reference": REFERENCE, "group_window_s": 0.0, "min_span_h": 0.0,
                "max_usd_a_day": 1000, "head": {"first_fit": self.first_fit, "check_s": 1.0},
            },
        }))  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        program = [sys.executable, "-m", "serving.cli", "serve", "--auth", "off"]
        if not self.with_ray:
            program = [sys.executable, "-m", "tests.integration.gateway_process"]
        self._words = [*program, "--config", str(config), "--port", str(port)]
        self._begin()
        self.wait()

    def _begin(self) -> None:
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self._words,
                cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                # A cached answer is no evidence: every text must be answered anew.
                env={**os.environ, "OPENAI_API_KEY": KEY, "NARROWGATE_CACHE__ENABLED": "false"},
            )  # fmt: skip

    def wait(self) -> None:
        """Return when the gateway answers. Raises RuntimeError with the log's end."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            time.sleep(0.5)
        raise RuntimeError(f"the gateway is not ready:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> int:
        """Kill the gateway's replica with SIGKILL; return its process id."""
        assert self.process is not None
        if not self.with_ray:
            killed = self.process.pid
            self.process.kill()
            self.process.wait(timeout=30)
            # What Ray Serve does otherwise.
            self._begin()
            return killed
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ServeReplica:narrowgate:Gateway" in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGKILL)
                    return process.pid
        raise RuntimeError("no gateway replica was found")

    def stop(self) -> None:
        """Stop the stack, by process id."""
        process = self.process
        if process is None or process.poll() is not None:
            return
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=60)
        for one in [*below, *([psutil.Process(process.pid)] if process.poll() is None else [])]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()

    def command(self, *words: str) -> str:
        """Return what a subcommand prints."""
        done = subprocess.run(
            [sys.executable, "-m", "serving.cli", *words, "--state", self.folder / "state"],
            cwd=ROOT,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout


class Proof:
    """Sends the inputs of a plan and notes what came back."""

    def __init__(self, plan: Plan, gateway: Gateway, reference: Reference) -> None:
        self.plan = plan
        self.gateway = gateway
        self.reference = reference
        self.sent: list[Sent] = []
        self.marks: dict[str, int] = {}
        self.retried = 0
        self._states: list[str] = []
        self._database = Database(database_url(None, gateway.folder / "state"))

    async def run(self) -> None:
        """Send everything, a few inputs at once."""
        async with httpx.AsyncClient(base_url=self.gateway.url, timeout=120) as client:
            for begin in range(0, len(self.plan.rows), AT_ONCE):
                part = self.plan.rows[begin : begin + AT_ONCE]
                await asyncio.gather(
                    *(self._send(client, begin + n, text) for n, (text, _) in enumerate(part))
                )
                await self._act(client)
                if self._is_done():
                    return

    async def _send(self, client: httpx.AsyncClient, number: int, text: str) -> None:
        phase = "after" if self.reference.is_shifted else "before"
        while True:
            began = time.perf_counter()
            try:
                response = await client.post(f"/v1/tasks/{TASK}", json={"input": text})
            except httpx.HTTPError:
                response = None
            if response is not None and response.status_code == 200:
                break
            # The gateway was killed: a client tries again.
            self.retried += 1
            await asyncio.sleep(0.5)
        answer = response.json()
        is_local = answer["route"] == "local"
        is_wrong = answer["value"] != self.reference.right(text)
        seconds = time.perf_counter() - began
        self.sent.append(Sent(number, phase, is_local, is_local and is_wrong, seconds))

    async def _act(self, client: httpx.AsyncClient) -> None:
        """Follow the claim's state; kill the gateway and change the labels when it is due."""
        state = await self._state(client)
        if not self._states or state != self._states[-1]:
            self._states.append(state)
            self.marks.setdefault(f"{state}_{self._states.count(state)}", len(self.sent))
        await self._wait_for_fits()
        accepted = sum(one.is_local for one in self.sent)
        if accepted >= self.plan.kill_at and "killed" not in self.marks:
            self.marks["killed"] = len(self.sent)
            self.marks["killed_pid"] = self.gateway.kill()
        if accepted >= self.plan.shift_at and not self.reference.is_shifted:
            self.marks["shifted"] = len(self.sent)
            self.reference.is_shifted = True

    def _is_fitting(self) -> bool:
        """Return whether a head is being fitted or due."""
        settings = HeadSettings(first_fit=self.plan.first_fit)
        counted = (
            select(head_examples.c.scope, func.count().label("n")).group_by("scope").subquery()
        )
        rows = select(head_scopes, counted.c.n).join(counted, counted.c.scope == head_scopes.c.id)
        with self._database.read() as connection:
            return any(
                row.holder is not None
                or row.requested_at is not None
                or row.n >= next_fit(row.fitted_examples, settings)
                for row in connection.execute(rows)
            )

    async def _wait_for_fits(self) -> None:
        """Return when no fit is due.

        What is proven counts inputs. A fit runs at a low priority: on a busy machine all inputs
        would be over before it ends, which users' inputs are not.
        """
        deadline = time.monotonic() + _FIT_S
        while await asyncio.to_thread(self._is_fitting):
            if time.monotonic() > deadline:
                raise RuntimeError(f"a head was not fitted within {_FIT_S:g} s")
            await asyncio.sleep(0.5)

    async def _state(self, client: httpx.AsyncClient) -> str:
        for _ in range(240):
            with contextlib.suppress(httpx.HTTPError):
                response = await client.get("/v1/admin/claims")
                if response.status_code == 200:
                    claims = response.json()["data"]
                    return str(claims[0]["state"]) if claims else "none"
            await asyncio.sleep(0.5)
        raise RuntimeError("the gateway does not come back")

    def _is_done(self) -> bool:
        return not self.plan.earn_again and "suspended_1" in self.marks

    def close(self) -> None:
        """Close the connections to the ledger's database."""
        self._database.close()

    def figures(self) -> dict[str, Any]:
        """Return what was measured."""
        marks = self.marks
        shifted, suspended = marks.get("shifted"), marks.get("suspended_1")
        before = [one for one in self.sent if one.phase == "before" and one.is_local]
        late = [one for one in self.sent[suspended:] if one.is_local] if suspended else []
        between = self.sent[shifted:suspended] if shifted and suspended else []
        shadow = [one.seconds for one in self.sent[: marks.get("held_1")]]
        held = [one.seconds for one in before]
        again = marks.get("held_2")
        return {
            "inputs": len(self.sent),
            "earned_after": marks.get("held_1"),
            "covered": len(before),
            "coverage": _share(len(before), len(self.sent[marks.get("held_1", 0) : shifted])),
            "error_covered": _share(sum(one.is_wrong for one in before), len(before)),
            "killed_after": marks.get("killed"),
            "retried": self.retried,
            "shifted_after": shifted,
            "accepted_until_suspended": sum(one.is_local for one in between),
            "wrong_until_suspended": sum(one.is_wrong for one in between),
            "suspended_after": suspended,
            "earned_again_after": again,
            "covered_again": len(late),
            "coverage_again": _share(len(late), len(self.sent[again:])) if again else None,
            "error_covered_again": _share(sum(one.is_wrong for one in late), len(late)),
            "p50_shadow_ms": 1000 * statistics.median(shadow) if shadow else None,
            "p50_held_ms": 1000 * statistics.median(held) if held else None,
            "reference_calls": self.reference.asked,
            "reference_wrong": self.reference.erred,
        }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _longest(written: str, labels: dict[str, str]) -> str:
    return max((text for text in labels if text in written), key=len)


def rows_of(count: int, data: Path | None) -> list[tuple[str, str]]:
    """Return distinct texts with labels: of a file, else of the shipped grammar."""
    if data is None:
        found = list(inputs(7))
    else:
        lines = map(json.loads, data.read_text(encoding="utf-8").splitlines())
        found = list({row["text"]: row["label"] for row in lines}.items())
    return found[:count]


@contextlib.contextmanager
def running(
    plan: Plan,
    folder: Path,
    *,
    with_ray: bool = True,
    reference_s: float = 0.0,
    wrong: float = 0.03,
) -> Iterator[Proof]:
    """Yield a proof whose stack runs, and stop everything.

    reference_s: before each answer of the reference. wrong: share of its answers that are wrong.
    """
    labels = dict(plan.rows)
    order = (
        tuple(SUBJECTS)
        if set(labels.values()) <= set(SUBJECTS)
        else tuple(sorted(set(labels.values())))
    )
    reference = Reference(labels, order, wrong=wrong)
    with ProviderServer(keys=[KEY]) as provider:
        provider.script.answer = reference.answer
        if reference_s:
            provider.script.on("*", Fault("slow", delay_s=reference_s))
        gateway = Gateway(folder, provider.url, plan.first_fit, order, with_ray=with_ray)
        try:
            gateway.start()
            proof = Proof(plan, gateway, reference)
            yield proof
            proof.close()
        finally:
            gateway.stop()


def main() -> int:
    """Run the proof and print its figures; return 0 where every promise was kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=4000, metavar="N")
    parser.add_argument("--data", type=Path, metavar="FILE", help="JSON Lines with text and label")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the course as SVG")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the claim's page")
    parser.add_argument("--no-ray", action="store_true", help="the gateway alone, in one process")
    parser.add_argument(
        "--reference-s", type=float, default=0.0, metavar="S", help="the reference's latency (0)"
    )
    parser.add_argument(
        "--wrong", type=_wrong, default=0.03, metavar="SHARE",
        help="share of the reference's answers that are wrong (0.03)",
    )  # fmt: skip
    args = parser.parse_args()
    plan = Plan(rows_of(args.inputs, args.data), shift_at=400, kill_at=200)
    with (
        tempfile.TemporaryDirectory() as folder,
        running(
            plan, Path(folder), with_ray=not args.no_ray, reference_s=args.reference_s,
            wrong=args.wrong,
        ) as proof,
    ):  # fmt: skip
        asyncio.run(proof.run())
        figures = proof.figures()
        print(json.dumps(figures, indent=1))
        print(proof.gateway.command("report"))
        if args.plot is not None or args.page is not None:
            _write(proof.gateway, args.plot, args.page)
    kept = is_kept(figures)
    print("kept" if kept else "NOT KEPT", file=sys.stderr)
    return 0 if kept else 1


def _wrong(text: str) -> float:
    share = float(text)
    if not 0.0 <= share < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share in [0, 1)")
    return share


def is_kept(figures: dict[str, Any]) -> bool:
    """Return whether the claim was earned, kept its target, and ended within 500 accepted."""
    errors = (figures["error_covered"], figures["error_covered_again"])
    return (
        figures["earned_after"] is not None
        and all(error is None or error <= TARGET for error in errors)
        and figures["suspended_after"] is not None
        and figures["accepted_until_suspended"] <= 500
    )


def _write(gateway: Gateway, plot: Path | None, page: Path | None) -> None:
    """Write the claim's course as SVG that needs no page, and its page."""
    from serving.evidence.administration import shown
    from serving.evidence.page import render_claim
    from serving.evidence.plots import VARIABLES, course_plot
    from serving.evidence.store import EvidenceStore

    database = Database(database_url(None, gateway.folder / "state"))
    try:
        store = EvidenceStore(database)
        (name,) = store.states().claims
        found = shown(store, name, "proof")
        if plot is not None:
            title = "A claim earned, broken by a shift, suspended and earned again"
            svg = course_plot(title, found.periods, found.claim.target_error)
            plot.write_text(_standalone(svg, VARIABLES), encoding="utf-8")
        if page is not None:
            page.write_text(render_claim(found), encoding="utf-8")
    finally:
        database.close()


def _standalone(svg: str, variables: Mapping[str, str]) -> str:
    """Return a plot as a file of its own: with the colours that a page would set."""
    light = "--ink:#1f2328;--muted:#59636f;--line:#d1d9e0"
    dark = "--ink:#e6edf3;--muted:#9198a1;--line:#3d444d"
    colours = ";".join(f"--{name}:{colour}" for colour, name in variables.items())
    style = (
        f"<style>svg{{{light};{colours};font-family:sans-serif}}"
        f"@media(prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    )
    head, _, rest = svg.partition(">")
    return f"{head}>{style}{rest}"


if __name__ == "__main__":
    sys.exit(main())
