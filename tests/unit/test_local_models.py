"""Models that are being prepared: what clients get until they serve, and how they appear."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.contracts.errors import AttestationRefused, EngineFailure, ModelPreparing
from serving.contracts.model_status import ModelStatus, Progress
from serving.contracts.task_spec import TaskSpec
from serving.gateway.local_models import ConnectedModel, LocalModels
from serving.local.status_file import read_statuses, write_statuses
from serving.pipeline.runner import BoundTask
from serving.tasks.grant import Grant
from serving.tasks.task import bind

from .patience import until
from .scripted import MODEL, WINDOW, CharacterTokenizer, ScriptedEngine, Server

TESTING = Progress("testing it", 0.4, 75.2)


class Preparing:
    """A gateway whose only model is made while it serves; the file is the real one."""

    def __init__(self, specs: dict[str, TaskSpec], file: Path) -> None:
        self.file = file
        self.engine = ScriptedEngine()
        self.connected: list[str] = []
        self.refuses = False
        self.specs = specs
        self.write(ModelStatus("preparing", TESTING))
        self.models = LocalModels(
            {MODEL: list(specs.values())}, lambda: read_statuses(file), self._connect
        )
        self.server = Server(specs, models=self.models)

    def write(self, status: ModelStatus) -> None:
        write_statuses(self.file, {MODEL: status})

    async def _connect(self, model_id: str, application: str) -> ConnectedModel:
        if self.refuses:
            raise AttestationRefused("its files were changed")
        self.connected.append(application)
        tasks = {
            name: BoundTask(
                bind(spec, CharacterTokenizer(), WINDOW), self.engine, Grant(None, None, None)
            )
            for name, spec in self.specs.items()
        }
        return ConnectedModel(self.engine, tasks, 4 * WINDOW)  # type: ignore[arg-type]


@pytest.fixture
async def preparing(
    specs: dict[str, TaskSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setattr("serving.gateway.local_models._REFRESH_S", 0.01)
    found = Preparing(specs, tmp_path / "models.json")
    watch = asyncio.create_task(found.models.watch())
    await until(lambda: found.models.status(MODEL) == ModelStatus("preparing", TESTING))
    await asyncio.sleep(0.05)
    yield found
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


async def topic(preparing: Preparing, **body: Any) -> httpx.Response:
    return await preparing.server.client.post("/v1/tasks/topic", json={"input": "a text", **body})


async def test_a_task_answers_503_with_progress_until_its_model_serves(
    preparing: Preparing,
) -> None:
    answer = await topic(preparing)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "60"
    error = answer.json()["error"]
    assert error["code"] == "model_preparing"
    assert error["progress"] == {"step": "testing it", "share": 0.4, "left_s": 75.2}
    assert "testing it, 40% of all steps done, about 75 s left" in error["message"]
    several = await preparing.server.client.post("/v1/tasks/topic", json={"inputs": ["a", "b"]})
    assert several.status_code == 503

    preparing.write(ModelStatus("deployed", Progress("loading", 0.9, 4.0), "engine:it"))
    await until(lambda: preparing.models.status(MODEL) is None)
    assert preparing.connected == ["engine:it"]
    answer = await topic(preparing)
    assert answer.status_code == 200
    assert answer.json()["model"] == MODEL


async def test_chats_with_the_model_and_tasks_by_chat_wait_too(preparing: Preparing) -> None:
    for model in (MODEL, "task/topic"):
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        answer = await preparing.server.client.post("/v1/chat/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "model_preparing")


async def test_readiness_and_lists_tell_the_state(preparing: Preparing) -> None:
    client = preparing.server.client
    ready = await client.get("/readyz")
    assert ready.status_code == 503
    model = ready.json()["models"][MODEL]
    assert model["state"] == "preparing"
    assert model["progress"] == {"step": "testing it", "share": 0.4, "left_s": 75.2}
    assert not model["tasks"]["topic"]["served"]
    assert (await client.get("/healthz")).status_code == 200
    cards = {card["id"]: card for card in (await client.get("/v1/models")).json()["data"]}
    assert cards[MODEL]["state"] == "preparing"
    assert cards["task/topic"]["state"] == "preparing"
    tasks = {card["name"]: card for card in (await client.get("/v1/tasks")).json()["data"]}
    assert "is being prepared" in tasks["topic"]["attested"]["reason"]
    metrics = (await client.get("/metrics")).text
    assert f'narrowgate_model_ready{{model="{MODEL}"}} 0.0' in metrics


async def test_a_failed_model_has_its_reason_and_delays_no_other(preparing: Preparing) -> None:
    preparing.write(ModelStatus("failed", reason="the disk is full"))
    await until(lambda: preparing.models.state(MODEL) == "failed")
    answer = await topic(preparing)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "model_failed")
    assert "the disk is full" in error["message"]
    assert answer.headers["x-should-retry"] == "false"
    ready = await preparing.server.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["models"][MODEL]["reason"] == "the disk is full"


async def test_a_model_whose_attestation_is_refused_has_failed(preparing: Preparing) -> None:
    preparing.refuses = True
    preparing.write(ModelStatus("deployed", application="engine:it"))
    await until(lambda: preparing.models.state(MODEL) == "failed")
    assert "its files were changed" in (await topic(preparing)).json()["error"]["message"]


async def test_an_unreadable_file_changes_nothing(preparing: Preparing) -> None:
    preparing.file.write_text("{", encoding="utf-8")
    await asyncio.sleep(0.05)
    assert (await topic(preparing)).json()["error"]["code"] == "model_preparing"


def test_statuses_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "models.json"
    statuses = {
        "a": ModelStatus("preparing", TESTING),
        "b/c": ModelStatus("deployed", None, "engine:b:c"),
        "d": ModelStatus("failed", reason="no"),
    }
    write_statuses(file, statuses)
    assert read_statuses(file) == statuses


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', json.dumps({"a": {"state": "failed"}})])
def test_a_file_of_another_shape_is_an_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "models.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(EngineFailure, match="cannot be read"):
        read_statuses(file)


def test_the_progress_survives_a_process_border() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(ModelPreparing("x", progress=TESTING)))  # noqa: S301
    assert error.progress == TESTING


async def test_without_any_local_model_frontier_models_answer(specs: dict[str, TaskSpec]) -> None:
    models = LocalModels({}, dict, _never_connected, alone=list(specs.values()))
    server = Server(specs, models=models)
    refused = await server.client.post("/v1/tasks/topic", json={"input": "a text"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "task_not_attested")
    assert "no local model is configured" in refused.json()["error"]["message"]
    server.frontier.reply = lambda call: json.dumps({"label": "Sports"})
    answered = await server.client.post("/v1/tasks/topic", json={"input": "a text"})
    assert (answered.json()["route"], answered.json()["reason"]) == ("frontier", "not_attested")
    ready = await server.client.get("/readyz")
    assert (ready.status_code, ready.json()["models"]) == (200, {})
    watch = asyncio.create_task(models.watch())
    await asyncio.sleep(0.05)
    # A background task that ends is a defect.
    assert not watch.done()
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


async def _never_connected(model_id: str, application: str) -> ConnectedModel:
    raise AssertionError(model_id)
