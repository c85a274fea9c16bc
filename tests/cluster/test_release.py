"""The rendered cpu-dev release on pods of this machine, through what its operator does.

One release in INT8 answers every endpoint, loses the node of its engine, and then gives way to a
release in 16 bits and takes the traffic back, under load.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from .conftest import MODEL, Ledger, Models
from .pods import Pods
from .release import Release, status_of, wait
from .switch import Switch, switch

pytestmark = pytest.mark.timeout(2400)

TEXT = "The striker signed a new contract before the cup final on Saturday."
# What `rayClusterDeletionDelaySeconds` gives requests that are in progress, scaled down: no
# request of the load takes longer.
DELETION_DELAY_S = 20.0
GRACE_S = 40.0


@pytest.fixture(scope="module")
def releases(models: Models, ledger: Ledger, machine_pods: tuple[Pods, Path]) -> "Releases":
    return Releases(models, ledger, *machine_pods)


class Releases:
    """Makes generations, each at addresses of its own."""

    def __init__(self, models: Models, ledger: Ledger, pods: Pods, folder: Path) -> None:
        self.models, self.ledger = models, ledger
        self._pods, self._folder, self._made = pods, folder, 0

    def make(self, artifact: str) -> Release:
        self._made += 1
        name = f"g{self._made}"
        return Release(
            name, artifact, self.models.store, self.models.key, self.ledger.socket,
            self.ledger.url, 10 * self._made, self._folder / name, self._pods,
        )  # fmt: skip


@pytest.fixture(scope="module")
def first(releases: Releases) -> Release:
    release = releases.make(releases.models.int8)
    release.start()
    release.wait_ready()
    return release


@pytest.fixture
def client(ledger: Ledger, first: Release) -> Iterator[httpx.Client]:
    # Repeated texts must reach the engine.
    headers = {"authorization": f"Bearer {ledger.key}", "x-narrowgate-cache": "bypass"}
    with httpx.Client(base_url=first.gateway, headers=headers, timeout=120) as client:
        yield client


def test_every_endpoint_answers(client: httpx.Client, first: Release) -> None:
    assert client.get("/healthz").status_code == 200
    ready = client.get("/readyz").json()
    assert ready["models"][MODEL]["state"] == "ready"
    assert [model["id"] for model in client.get("/v1/models").json()["data"]][:1] == [MODEL]
    answer = client.post("/v1/tasks/topic", json={"input": TEXT})
    assert answer.status_code == 200, answer.text
    assert answer.json()["value"] == "Sports"
    assert answer.json()["guarantee"] is not None
    # Signed and refused: the gate's verdict holds here too.
    assert client.post("/v1/tasks/sentiment", json={"input": TEXT}).status_code == 409
    messages = [{"role": "user", "content": "Name a colour."}]
    chat = {"model": MODEL, "messages": messages, "max_tokens": 4}
    assert client.post("/v1/chat/completions", json=chat).status_code == 200
    completion = {"model": MODEL, "prompt": "Red, green and", "max_tokens": 4}
    assert client.post("/v1/completions", json=completion).status_code == 200
    assert client.get("/v1/tasks").status_code == 200
    assert client.get("/v1/usage").status_code == 200
    assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]
    with client.stream("POST", "/v1/chat/completions", json={**chat, "stream": True}) as stream:
        assert [line for line in stream.iter_lines() if line][-1] == "data: [DONE]"
    assert "narrowgate_build_info" in client.get("/metrics").text


def test_nobody_is_served_without_a_key(first: Release) -> None:
    url = f"{first.gateway}/v1/tasks/topic"
    assert httpx.post(url, json={"input": TEXT}, timeout=60).status_code == 401


def test_each_pod_has_metrics_of_its_own(first: Release) -> None:
    found = {
        name: httpx.get(f"http://{first.running[name].spec.ip}:9464/metrics", timeout=30).text
        for name in ("gateway", "engine")
    }
    assert f'artifact="{first.artifact.removeprefix("sha256-")}"' in found["gateway"]
    assert "vllm:num_requests_running" in found["engine"]


def test_the_controllers_store_holds_no_secret(first: Release, ledger: Ledger) -> None:
    # What Serve logs and shows of an application.
    assert ledger.url not in str(first.applications())
    assert "postgresql" not in str(first.applications())


def test_a_lost_engine_node_is_replaced_and_the_gateway_answers_meanwhile(
    first: Release, client: httpx.Client
) -> None:
    first.running["engine"].kill()
    during = [status_of(f"{first.gateway}/healthz") for _ in range(5)]
    assert during == [200] * 5
    # What the operator does for a lost pod of a group.
    first.start_group("engine", first.group("engine"))
    wait(
        lambda: client.post("/v1/tasks/topic", json={"input": TEXT}).status_code == 200,
        lambda: f"no answer: {first.running['engine'].tail()}", 600,
    )  # fmt: skip


class Load:
    """Requests one after another, on connections of their own, until it is stopped."""

    def __init__(self, port: int, key: str) -> None:
        self._url = f"http://127.0.0.1:{port}/v1/tasks/topic"
        self._headers = {"authorization": f"Bearer {key}", "x-narrowgate-cache": "bypass"}
        self._stopped = threading.Event()
        self.outcomes: Counter[str] = Counter()

    def run(self) -> None:
        while not self._stopped.is_set():
            try:
                answer = httpx.post(
                    self._url, headers=self._headers, json={"input": TEXT}, timeout=120
                )
            except httpx.HTTPError as error:
                self.outcomes[repr(error)] += 1
            else:
                self.outcomes[str(answer.status_code)] += 1
            time.sleep(0.2)

    def stop(self) -> None:
        self._stopped.set()


@contextmanager
def load(selector: Switch, key: str) -> Iterator[Load]:
    """Yield a load of two clients through the switch."""
    made = Load(selector.port, key)
    threads = [threading.Thread(target=made.run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        made.stop()
        for thread in threads:
            thread.join(150)


def rolled(selector: Switch, old: Release, new: Release) -> None:
    """Do what the operator does: new one ready, switch, delay, old one deleted."""
    new.start()
    new.wait_ready()
    selector.select(new.running["gateway"].spec.ip)
    time.sleep(DELETION_DELAY_S)
    old.stop(GRACE_S)


def test_a_model_goes_forward_and_back_under_load_and_one_without_attestation_never(
    releases: Releases, first: Release, ledger: Ledger
) -> None:
    with switch() as selector:
        selector.select(first.running["gateway"].spec.ip)
        with load(selector, ledger.key) as running:
            refused = releases.make(releases.models.changed)
            refused.start()
            # Its init container ends with an error, so the pod never runs Ray.
            pod = refused.running["engine"]
            wait(lambda: pod.process.poll() is not None, pod.tail, 180)
            assert pod.process.returncode != 0
            assert "attest" in pod.tail()
            assert not refused.is_ready()
            refused.stop(GRACE_S)

            second = releases.make(releases.models.bits16)
            rolled(selector, first, second)
            forward = sum(running.outcomes.values())
            third = releases.make(releases.models.int8)
            rolled(selector, second, third)
        assert set(running.outcomes) == {"200"}, running.outcomes
        assert sum(running.outcomes.values()) > forward > 0
        # The last generation alone is left, with the model of the first.
        text = httpx.get(f"{third.gateway}/metrics", timeout=60).text
        assert releases.models.int8.removeprefix("sha256-") in text
