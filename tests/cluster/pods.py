"""Pods on one machine: each a process tree with its own network, files and process ids.

What a container runtime does, by `ip netns` and `unshare`: a root of its own (an overlay of this
machine's), an address on a bridge, and process 1, whose end is the end of the pod. Needs root.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
BRIDGE = "ng-cluster"
NETWORK = "10.89.7"
_STOPPED_WITHIN_S = 60
# Statistics, notes of the daemons in C++, and the autoscaler's table.
_REPEATED = re.compile(
    r"state-dump|memory_monitor|^\t|^[-=]{5}|^- |^ \S|^(Queueing|Execution) time|"
    r"^[A-Z][\w ]+(:|: .*[\d)])$|"
    r"^\[\S+ \S+ I \d|\((monitor|dashboard|dashboard_agent|runtime_env_agent)\)"
)


@dataclass(frozen=True, slots=True)
class PodSpec:
    """What to run.

    address: last number of its IPv4 address. mounts: folder of this machine by path in the pod.
    command: what becomes process 1. before: commands that must succeed first, in order.
    """

    name: str
    address: int
    environment: Mapping[str, str]
    command: Sequence[str]
    before: Sequence[Sequence[str]] = ()
    mounts: Mapping[str, Path] = field(default_factory=dict)

    @property
    def ip(self) -> str:
        return f"{NETWORK}.{self.address}"


@dataclass
class Pod:
    """A running pod."""

    spec: PodSpec
    process: "subprocess.Popen[bytes]"
    log: Path

    def kill(self) -> None:
        """End every process at once, as the loss of a node does."""
        self.process.kill()
        self.process.wait(_STOPPED_WITHIN_S)

    def terminate(self, grace_s: float) -> None:
        """Send SIGTERM to process 1; kill what is left after the grace, as the kubelet does."""
        for first in psutil.Process(self.process.pid).children():
            first.send_signal(signal.SIGTERM)
        try:
            self.process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self) -> str:
        """Return the log's last lines without what Ray's daemons repeat every few seconds."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        told = [line for line in lines if line and not _REPEATED.search(line)]
        return "\n".join([f"(all of it: {self.log})", *(line[:500] for line in told[-60:])])


@contextmanager
def pod_network() -> Iterator[None]:
    """Make the bridge that the pods share; remove it at the end."""
    _ip("link", "add", "name", BRIDGE, "type", "bridge")
    try:
        _ip("addr", "add", f"{NETWORK}.1/24", "dev", BRIDGE)
        _ip("link", "set", BRIDGE, "up")
        yield
    finally:
        _ip("link", "del", BRIDGE)


@contextmanager
def pods(folder: Path) -> Iterator["Pods"]:
    """Yield a place for pods; end all of them at the end. folder: for logs and roots."""
    running = Pods(folder)
    try:
        yield running
    finally:
        for pod in running.started:
            if pod.process.poll() is None:
                pod.kill()
        for pod in running.started:
            _disconnect(pod.spec)


class Pods:
    """Starts pods."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._connected: set[str] = set()
        self.started: list[Pod] = []

    def start(self, spec: PodSpec) -> Pod:
        """Start a pod, at the address of an earlier one that has ended or at a new one."""
        if spec.name not in self._connected:
            # What a run that was killed has left.
            _disconnect(spec)
            _connect(spec)
            self._connected.add(spec.name)
        root = self._folder / f"{spec.name}-root"
        root.mkdir(exist_ok=True)
        script = self._folder / f"{spec.name}.sh"
        script.write_text(_script(spec, root), encoding="utf-8")
        log = self._folder / f"{spec.name}.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [
                    "ip", "netns", "exec", _namespace(spec),
                    "unshare", "--mount", "--pid", "--fork", "--kill-child=KILL",
                    "bash", "-eu", str(script),
                ],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        pod = Pod(spec, process, log)
        self.started.append(pod)
        return pod


def _script(spec: PodSpec, root: Path) -> str:
    """Return the script that makes the pod's root and becomes its process 1."""
    variables = " ".join(
        shlex.quote(f"{name}={value}") for name, value in sorted(spec.environment.items())
    )
    inside = " && ".join(
        ['ulimit -n "$(ulimit -Hn)"', "cd /tmp"]
        + [shlex.join(command) for command in spec.before]
        + [f"exec {shlex.join(spec.command)}"]
    )
    lines = [
        "mount --make-rprivate /",
        # Sources first: /tmp is hidden later.
        f"mount -t tmpfs tmpfs {root}",
        f"mkdir {root}/upper {root}/work {root}/root",
        f"mount -t overlay overlay -o lowerdir=/,upperdir={root}/upper,workdir={root}/work "
        f"{root}/root",
        f"cd {root}/root",
        "mount --rbind /sys sys",
        "mount --rbind /dev dev",
        "mount -t proc proc proc",
        f"mkdir -p {root}/mounted",
        f"mount -t tmpfs tmpfs {root}/mounted",
        "mount -t tmpfs tmpfs dev/shm",
        # Before the checkout: it may lie under /tmp.
        "mount -t tmpfs tmpfs tmp",
    ]
    # A checkout or an environment on a file system of its own is no part of the overlay.
    for path in {ROOT, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}:
        lines.append(f"mkdir -p ./{path} && mount --rbind {path} ./{path}")
    for number, source in enumerate(spec.mounts.values()):
        lines.append(f"mkdir {root}/mounted/{number}")
        lines.append(f"mount --bind {source} {root}/mounted/{number}")
    for number, target in enumerate(spec.mounts):
        lines.append(f"mkdir -p ./{target} && mount --bind {root}/mounted/{number} ./{target}")
    lines.append(f"exec env -i {variables} chroot . bash -c {shlex.quote(inside)}")
    return "\n".join(lines) + "\n"


def _connect(spec: PodSpec) -> None:
    """Make the pod's network."""
    name, outer, inner = _namespace(spec), _outer(spec), f"ng-i{spec.address}"
    _ip("netns", "add", name)
    _ip("link", "add", outer, "type", "veth", "peer", "name", inner)
    _ip("link", "set", outer, "master", BRIDGE, "up")
    _ip("link", "set", inner, "netns", name)
    _ip("-n", name, "addr", "add", f"{spec.ip}/24", "dev", inner)
    _ip("-n", name, "link", "set", inner, "up")
    _ip("-n", name, "link", "set", "lo", "up")
    # Ray finds its own address by the route that a packet to the internet would take.
    _ip("-n", name, "route", "add", "default", "via", f"{NETWORK}.1")


def _disconnect(spec: PodSpec) -> None:
    """Remove the pod's network, if there is one.

    The pair of links goes with one of its ends; the namespace alone would keep it for a while.
    """
    for command in (["link", "del", _outer(spec)], ["netns", "del", _namespace(spec)]):
        subprocess.run(["ip", *command], check=False, capture_output=True)


def _outer(spec: PodSpec) -> str:
    return f"ng-o{spec.address}"


def _namespace(spec: PodSpec) -> str:
    return f"ng-{spec.address}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def usable() -> str | None:
    """Return why this machine cannot run pods, None where it can."""
    if os.geteuid() != 0:
        return "needs root: pods get namespaces of their own"
    made = subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "true"], check=False, capture_output=True
    )
    return None if made.returncode == 0 else "this machine allows no namespaces"
