"""A RayService as KubeRay runs it: rendered manifests become pods, and Serve gets its config."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from .pods import ROOT, Pod, Pods, PodSpec

BINARIES = Path(sys.executable).parent
OVERLAY = ROOT / "k8s" / "overlays" / "cpu-dev"
LAUNCHER = "/opt/narrowgate/bin/haproxy"
DEPLOYED_WITHIN_S = 240.0
RUNNING_WITHIN_S = 900.0
_POLL_S = 1.0


@dataclass
class Release:
    """One generation of a RayService.

    store: folder with sha256-HEX of each model. key: public key file. database: folder of
    PostgreSQL's socket. url: of the ledger. first_address: its pods get this and the next ones.
    """

    name: str
    artifact: str
    store: Path
    key: Path
    database: Path
    url: str
    first_address: int
    folder: Path
    pods: Pods
    running: dict[str, Pod] = field(default_factory=dict)
    token: str = field(default_factory=lambda: secrets.token_hex(32))

    def __post_init__(self) -> None:
        self.folder.mkdir()
        overlay = self.folder / "overlay"
        overlay.mkdir()
        settings = (OVERLAY / "settings.yaml").read_text(encoding="utf-8")
        (overlay / "settings.yaml").write_text(settings, encoding="utf-8")
        (overlay / "gate.pub").write_bytes(self.key.read_bytes())
        narrowgate(
            "k8s", "render", "--settings", str(overlay / "settings.yaml"),
            "--artifact", self.artifact, "--out", str(overlay),
        )  # fmt: skip
        service = yaml.safe_load((overlay / "rayservice.yaml").read_text(encoding="utf-8"))
        self.spec: dict[str, Any] = service["spec"]
        config = yaml.safe_load((overlay / "config.yaml").read_text(encoding="utf-8"))
        self._mount_config(config["data"])
        ledger = self.folder / "ledger"
        ledger.mkdir()
        (ledger / "url").write_text(self.url, encoding="utf-8")

    def _mount_config(self, data: dict[str, str]) -> None:
        template = self.spec["rayClusterConfig"]["headGroupSpec"]["template"]
        (volume,) = [each for each in template["spec"]["volumes"] if each["name"] == "config"]
        for item in volume["configMap"]["items"]:
            path = self.folder / "config" / item["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(data[item["key"]], encoding="utf-8")

    @property
    def head_ip(self) -> str:
        return self.running["head"].spec.ip

    @property
    def gateway(self) -> str:
        """Return the base URL of the gateway's pod."""
        return f"http://{self.running['gateway'].spec.ip}:8000"

    def start(self) -> None:
        """Start the pods and give Serve its config. Does not wait until the models have loaded."""
        cluster = self.spec["rayClusterConfig"]
        self.start_group("head", cluster["headGroupSpec"])
        wait(self.head_answers, lambda: f"no head: {self.running['head'].tail()}", 180)
        for group in cluster["workerGroupSpecs"]:
            self.start_group(group["groupName"], group)
        config = self.folder / "serve.yaml"
        config.write_text(self.spec["serveConfigV2"], encoding="utf-8")
        self._messages = ""
        wait(lambda: self._deployed(config), lambda: self._messages, DEPLOYED_WITHIN_S)

    def _deployed(self, config: Path) -> bool:
        """Send Serve its config. The operator, too, sends it again where the head is too busy."""
        done = subprocess.run(
            [*program("serve"), "deploy", str(config), "--address", f"http://{self.head_ip}:8265"],
            env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        self._messages = done.stdout + done.stderr
        return done.returncode == 0

    def start_group(self, name: str, group: dict[str, Any]) -> Pod:
        """Start the pod of a group, anew where an earlier one has ended."""
        pod = self.pods.start(self._pod_spec(name, group))
        self.running[name] = pod
        return pod

    def group(self, name: str) -> dict[str, Any]:
        groups = self.spec["rayClusterConfig"]["workerGroupSpecs"]
        (found,) = [group for group in groups if group["groupName"] == name]
        return dict(found)

    def _pod_spec(self, name: str, group: dict[str, Any]) -> PodSpec:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        order = ["head", "gateway", "engine"]
        address = self.first_address + order.index(name)
        # As while the image is built, where the variable is not set.
        unset = ["env", "-u", "RAY_SERVE_HAPROXY_BINARY_PATH"]
        before = [[*unset, sys.executable, "-m", "serving.lifecycle.pod", LAUNCHER]]
        inits = [each["command"] for each in pod.get("initContainers", [])]
        before += [[*program(first), *arguments] for first, *arguments in inits]
        mounts = {"/etc/narrowgate": self.folder / "config"}
        if name != "head":
            mounts |= {"/store": self.store, "/etc/narrowgate-ledger": self.folder / "ledger",
                       str(self.database): self.database}  # fmt: skip
        environment = {
            each["name"]: each["value"] for each in container["env"] if "value" in each
        } | {
            "PATH": f"{BINARIES}:/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(ROOT),
            # The operator's: authOptions.mode is token.
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }
        made = [["mkdir", "-p", "/var/lib/narrowgate", "/models", environment["HOME"]]]
        spec = PodSpec(f"{self.name}-{name}", address, environment, (), [*made, *before], mounts)
        return PodSpec(
            spec.name, address, environment, self._ray_start(name, group, spec.ip),
            spec.before, mounts,
        )  # fmt: skip

    def _ray_start(self, name: str, group: dict[str, Any], ip: str) -> list[str]:
        """Return the command that the operator makes of a group."""
        resources = dict(group.get("resources", {}))
        where = (
            ["--head", "--port", "6379", "--dashboard-host", ip]
            if name == "head"
            else ["--address", f"{self.head_ip}:6379"]
        )
        labels = ",".join(f"{key}={value}" for key, value in group.get("labels", {}).items())
        parameters = [f"--{key}={value}" for key, value in group["rayStartParams"].items()]
        return [
            *program("ray"), "start", *where, "--num-cpus", str(resources.get("CPU", 0)),
            *(["--labels", labels] if labels else []), *parameters, "--node-ip-address", ip,
            "--metrics-export-port", "8080", "--disable-usage-stats", "--block",
        ]  # fmt: skip

    def head_answers(self) -> bool:
        head = self.running["head"]
        assert head.process.poll() is None, f"the head ended: {head.tail()}"
        return status_of(f"http://{self.head_ip}:8265/api/version", self._headers) == 200

    @property
    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    def applications(self) -> dict[str, Any]:
        """Return Serve's own account of its applications, as the operator reads it."""
        answer = httpx.get(
            f"http://{self.head_ip}:8265/api/serve/applications/", headers=self._headers, timeout=30
        )
        found: dict[str, Any] = answer.raise_for_status().json()["applications"]
        return found

    def is_ready(self) -> bool:
        """Return whether the operator would move the traffic: every application runs."""
        try:
            found = self.applications()
        except httpx.HTTPError:
            return False
        for application in found.values():
            assert application["status"] != "DEPLOY_FAILED", self._missing()
        return bool(found) and all(each["status"] == "RUNNING" for each in found.values())

    def wait_ready(self) -> None:
        """Wait until the traffic may move. Fails at once where a pod ends or Serve gives up."""

        def runs() -> bool:
            ended = [name for name, pod in self.running.items() if pod.process.poll() is not None]
            assert not ended, f"ended: {ended}\n{self._missing()}"
            return self.is_ready()

        wait(runs, self._missing, RUNNING_WITHIN_S)
        # The readiness probe of the gateway's pod.
        wait(
            lambda: status_of(f"{self.gateway}/-/healthz") == 200
            and status_of(f"{self.gateway}/readyz") == 200,
            self._missing, 120,
        )  # fmt: skip

    def _missing(self) -> str:
        tails = "\n".join(f"== {name}\n{pod.tail()}" for name, pod in self.running.items())
        try:
            tails += json.dumps(self.applications(), indent=1)[-3000:]
        except httpx.HTTPError as error:
            tails += repr(error)
        return f"{self.name} is not ready\n{tails}"

    def stop(self, grace_s: float) -> None:
        """End the pods as the operator does when it deletes a cluster: all at once."""
        for pod in self.running.values():
            for child in _children(pod):
                child.terminate()
        deadline = time.monotonic() + grace_s
        for pod in self.running.values():
            try:
                pod.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pod.kill()


def _children(pod: Pod) -> list[Any]:
    import psutil

    try:
        return list(psutil.Process(pod.process.pid).children())
    except psutil.NoSuchProcess:
        return []


def program(name: str) -> list[str]:
    """Return how to run a program of this environment in a pod.

    By its interpreter: the first line of an installed script may name one that the pod lacks, where
    the environment was made by another checkout.
    """
    return [sys.executable, str(BINARIES / name)]


def narrowgate(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def status_of(url: str, headers: dict[str, str] | None = None) -> int | None:
    try:
        return httpx.get(url, headers=headers, timeout=10).status_code
    except httpx.HTTPError:
        return None


def wait(holds: Callable[[], bool], missing: Callable[[], str], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, missing()
        time.sleep(_POLL_S)
