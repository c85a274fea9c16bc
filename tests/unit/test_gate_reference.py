"""`narrowgate gate --reference --batch`: a frontier model's labels from a running gateway.

The gateway and its provider are real HTTP servers. The models under test are not run: their answers
are written down here.
"""

# ruff: noqa: ASYNC110  # it waits for what another process says

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

import evals.gate
from evals import label_orders
from evals.answers import Answered
from evals.assessment import Certified, Rules, assess
from evals.commands import gate
from evals.findings import Findings
from evals.gate import Request
from evals.label_orders import Pacing
from evals.report import html
from evals.suite import Suite
from serving.artifacts.manifest import file_manifest
from serving.artifacts.signing_key import KeyPair
from serving.cli import run_program
from serving.contracts.answer import Prediction
from serving.contracts.attestation import Artifact, Engine, GatePredicate, Pair
from serving.tasks.prompt import CheckpointTokenizer

from ..provider.script import BatchPlan, Fault, Reply, Seen
from ..provider.server import ProviderServer
from . import checkpoints
from .batch_gateway import KEY_VALUE, KEY_VARIABLE, Running, running
from .character_tokenizer import CharacterTokenizer
from .patience import GUARD_S
from .test_batch_scheduler import questions, settled_rows

MODEL = "openai/gpt-4.1"
SPEC = {
    "name": "tone", "kind": "classification", "instruction": "Is the tone kind or rude?",
    "labels": ["kind", "rude"], "examples": [], "metric": "accuracy", "floor": 0.5,
    "target_error": 0.2,
}  # fmt: skip
WORDS = ("thanks", "nonsense")
DATE = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
ENGINE = Engine(
    name="vllm", version="0.29.0", max_model_len=2048, hardware="none", arguments={},
    environment={},
)  # fmt: skip


@dataclass
class Gate:
    """A gate with its folders, and what it was asked to run."""

    url: str
    state: Path
    folder: Path
    key: Path
    provider: ProviderServer
    requests: list[Request] = field(default_factory=list)

    def words(self, *more: object) -> list[str]:
        config = self.folder / "settings.yaml"
        config.write_text(yaml.safe_dump({"state": str(self.state / "gate")}), encoding="utf-8")
        return [
            "gate", "--baseline", str(self.folder / "old"), "--candidate",
            str(self.folder / "new"), "--suite", str(self.folder / "tone"), "--key",
            str(self.key), "--config", str(config), "--reference", MODEL, "--batch", self.url,
            *map(str, more),
        ]  # fmt: skip

    async def run(self, *more: object) -> tuple[int, str, str]:
        """Run the command beside the gateway; return the status and both outputs."""
        out, err = io.StringIO(), io.StringIO()

        def run() -> int:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                return run_program("narrowgate", "", {"gate": gate}, self.words(*more))

        status = await asyncio.to_thread(run)
        return status, out.getvalue(), err.getvalue()

    async def failed(self, *more: object) -> dict[str, Any]:
        status, out, _ = await self.run(*more, "--json")
        assert status == 2
        error: dict[str, Any] = json.loads(out)["error"]
        assert error["fix"]
        return error

    def suite(self, count: int, *, labelled: bool = True, wrong: int = 0) -> None:
        folder = self.folder / "tone"
        folder.mkdir(exist_ok=True)
        (folder / "task.yaml").write_text(yaml.safe_dump(SPEC), encoding="utf-8")
        rows = []
        for n in range(count):
            row = {"id": f"e{n}", "text": f"{WORDS[n % 2]} {n}"}
            if labelled:
                row["label"] = ("kind", "rude")[(n + (n < wrong)) % 2]
            rows.append(json.dumps(row))
        (folder / "test.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")

    @property
    def labels(self) -> dict[str, str]:
        (suite,) = self.requests[-1].suites
        return {example.id: str(example.expected) for example in suite.examples}


def tone(seen: Seen) -> str:
    text = seen.body["messages"][-1]["content"]
    return json.dumps({"label": "kind" if text.startswith("thanks") else "rude"})


def asked(provider: ProviderServer) -> Counter[str]:
    return Counter(
        seen.body["messages"][-1]["content"]
        for seen in provider.script.seen
        if seen.billed is not None
    )


def judged(request: Request) -> Findings:
    """Return what a gate finds where both models answer as the labels say."""

    def answered(suite: Suite) -> Answered:
        return Answered(
            tuple(
                Prediction(
                    value=str(example.expected),
                    confidence=0.9,
                    label_probabilities={"kind": 0.9, "rude": 0.1},
                )
                for example in suite.examples
            ),
            None,
        )

    tasks = {}
    for suite in request.suites:
        own = request.own_inputs.get(suite.name)
        tasks[suite.name] = assess(
            suite, answered(suite), answered(suite), [],
            Rules(0.05, 0.0, resamples=200, reference=request.references.get(suite.name)),
            None if own is None else Certified(own, answered(own.suite)),
        )  # fmt: skip
    manifest = file_manifest(request.candidate)
    artifact = Artifact(
        files=manifest.files, precision="16-bit", recipe=None,
        weight_bytes=Pair(baseline=1.0, candidate=1.0),
    )  # fmt: skip
    predicate = GatePredicate(
        narrowgate="1", date=DATE, artifact=artifact, baseline="0" * 64,
        engine=ENGINE, tools={}, seed=0,
        tasks={name: found.result for name, found in tasks.items()},
    )  # fmt: skip
    return Findings("new", manifest.root, predicate, tasks)


@pytest.fixture
async def gateway(
    provider: ProviderServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)
    provider.script.answer = tone
    more: Any = {"batch": {"provider_poll_s": 0.2, "max_concurrent_lines": 2}}
    async with running(provider, state, None, has_batches=True, **more) as found:
        yield found


@pytest.fixture
def command(
    gateway: Running,
    provider: ProviderServer,
    state: Path,
    tmp_path: Path,
    key: KeyPair,
    monkeypatch: pytest.MonkeyPatch,
) -> Gate:
    monkeypatch.setenv("NARROWGATE_KEY", gateway.acme.api_key)
    monkeypatch.setattr(label_orders, "Pacing", partial(Pacing, 0.05, 0.1, 2.0))
    monkeypatch.setattr(CheckpointTokenizer, "load", lambda folder: CharacterTokenizer())
    # Handlers of signals are for the main thread.
    monkeypatch.setattr(gate, "run_until_stopped", lambda run, consequence: run())
    for name in ("old", "new"):
        checkpoints.write(tmp_path / name)
    found = Gate(gateway.url, state, tmp_path, key.private, provider)

    def run_gate(request: Request, progress: object) -> Findings:
        found.requests.append(request)
        return judged(request)

    monkeypatch.setattr(evals.gate, "run_gate", run_gate)
    # Half of a run's processor time; test_report.py draws them.
    monkeypatch.setattr(html, "_summary_plots", lambda _: ())
    monkeypatch.setattr(html, "_task_plots", lambda *_: ())
    return found


async def test_labels_come_from_the_providers_batch_and_are_stated_in_report_and_attestation(
    gateway: Running, provider: ProviderServer, command: Gate
) -> None:
    command.suite(40, wrong=2)
    status, out, _ = await command.run("--json")
    document = json.loads(out)
    assert "verdict" in document, document
    assert status == {"pass": 0, "fail": 1, "inconclusive": 3}[document["verdict"]]
    assert command.labels == {f"e{n}": ("kind", "rude")[n % 2] for n in range(40)}
    assert len({seen.batch_id for seen in provider.script.seen}) == 1
    assert set(asked(provider).values()) == {1}
    rows = await settled_rows(gateway.database)
    assert {(row.lane, row.service_tier) for row in rows} == {("batch", "batch")}
    paid = sum((row.paid_usd for row in rows), Decimal(0))
    labels = document["labels"]
    assert (labels["reference"], labels["labels"], labels["reused"]) == (MODEL, 40, 0)
    assert Decimal(labels["paid_usd"]) == paid > 0
    task = document["predicate"]["tasks"]["tone"]
    assert task["reference"] == {
        "model": MODEL, "n": 40, "left_out": 0, "compared": 40, "agreeing": 38,
    }  # fmt: skip
    assert task["population"]["sentence"] == f"40 inputs of suite tone, labelled by {MODEL}"
    for name in ("report.md", "report.html"):
        report = (command.folder / "new" / name).read_text(encoding="utf-8")
        assert "agree with the inputs" in report
        assert "38 of 40" in report
        assert "paid in this run" in report
    # The same labels are not paid for again.
    seen = len(provider.script.seen)
    _, out, _ = await command.run("--json")
    again = json.loads(out)["labels"]
    assert (again["reused"], again["paid_usd"], again["batches"]) == (40, "0", [])
    assert len(provider.script.seen) == seen


async def test_a_dry_run_shows_what_labels_may_cost_and_orders_nothing(
    gateway: Running, provider: ProviderServer, command: Gate
) -> None:
    command.suite(40)
    status, out, _ = await command.run("--dry-run", "--json")
    document = json.loads(out)
    assert (status, document["inputs"]) == (0, 40)
    labels = document["labels"]
    assert (labels["asked"], labels["ordered"], labels["reused"]) == (40, 0, 0)
    assert Decimal(labels["batch_usd"]) * 2 == Decimal(labels["max_usd"]) > 0
    assert provider.script.seen == []
    assert command.requests == []
    assert [one async for one in gateway.acme.batches.list()] == []
    assert [one async for one in gateway.acme.files.list()] == []
    _, out, _ = await command.run("--json")
    assert Decimal(json.loads(out)["labels"]["paid_usd"]) <= Decimal(labels["batch_usd"])
    command.suite(50)
    status, out, _ = await command.run("--dry-run")
    assert (status, "10 would be asked for, 0 are ordered, 40 are there" in out) == (0, True)
    error = await command.failed("--dry-run", "--reference", "nobody/none")
    assert "would refuse the batch: line 1 (tone, 'e0')" in error["message"]


async def test_results_that_the_gateway_has_deleted_are_not_paid_for_again_by_themselves(
    gateway: Running, provider: ProviderServer, command: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.host.batch_client import BatchClient

    command.suite(10)

    def interrupted(*_: object) -> int:
        raise OSError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(BatchClient, "download", interrupted)
        assert (await command.run("--json"))[0] == 74
    for file in [one async for one in gateway.acme.files.list(purpose="batch_output")]:
        await gateway.acme.files.delete(file.id)
    error = await command.failed()
    assert "no longer has the results of the batch " in error["message"]
    assert "order-" in error["fix"]
    assert set(asked(provider).values()) == {1}


async def test_inputs_without_labels_get_them(
    provider: ProviderServer, command: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    import evals.population_comparison

    compared: list[Any] = []

    def noted(own: Any, suite: Suite, state: Path, seed: int) -> Any:
        compared.append(own)
        return own

    monkeypatch.setattr(evals.population_comparison, "compared", noted)
    command.suite(30, labelled=False)
    mine = command.folder / "mine.jsonl"
    texts = [f"{WORDS[n % 2]} of mine {n}" for n in range(30)]
    mine.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    status, out, _ = await command.run("--examples", mine, "--json")
    assert status != 2
    task = json.loads(out)["predicate"]["tasks"]["tone"]
    assert task["reference"] == {
        "model": MODEL, "n": 60, "left_out": 0, "compared": 0, "agreeing": 0,
    }  # fmt: skip
    assert task["population"]["sentence"] == f"30 inputs of mine.jsonl, labelled by {MODEL}"
    own = command.requests[0].own_inputs["tone"].suite
    assert {example.expected for example in own.examples} == {"kind", "rude"}
    # The shares of labels are compared: only with labels.
    assert [one.suite for one in compared] == [own]
    assert sum(asked(provider).values()) == 60


async def test_without_a_reference_a_label_is_required(command: Gate) -> None:
    command.suite(10, labelled=False)
    words = command.words("--json")
    place = words.index("--reference")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = run_program(
            "narrowgate", "", {"gate": gate}, [*words[:place], *words[place + 4 :]]
        )
    assert status == 2
    assert "field 'label' is missing" in json.loads(out.getvalue())["error"]["message"]


async def test_wrong_arguments_are_refused_before_anything_is_sent(
    provider: ProviderServer, command: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.suite(10)
    for name in ("gpt-4.1", "task/tone", ""):
        error = await command.failed("--reference", name)
        assert (error["field"], repr(name) in error["message"]) == ("--reference", True)
    assert (await command.failed("--max-cost-usd", "much"))["field"] == "--max-cost-usd"
    assert (await command.failed("--batch", "localhost"))["field"] == "--batch"
    assert (await command.failed("--margin", "other=0.1"))["field"] == "margin"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        error = await command.failed("--batch", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert (error["field"], error["code"]) == ("--batch", "unavailable")
    monkeypatch.delenv("NARROWGATE_KEY")
    error = await command.failed()
    assert "NARROWGATE_KEY" in error["fix"]
    assert provider.script.seen == []
    assert list((command.state / "gate").rglob("order-*")) == []


async def test_a_refused_batch_names_the_inputs(provider: ProviderServer, command: Gate) -> None:
    command.suite(10)
    error = await command.failed("--reference", "nobody/none")
    assert "line 1 (tone, 'e0')" in error["message"]
    assert "and 5 more" in error["message"]
    assert provider.script.seen == []
    assert list((command.state / "gate").rglob("order-*")) == []


async def test_a_refused_creation_leaves_no_order(
    gateway: Running, command: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.suite(10)
    with monkeypatch.context() as patch:
        patch.setattr(label_orders, "_WINDOW", "soon")
        assert "completion_window" in (await command.failed())["message"]
    assert list((command.state / "gate").rglob("order-*")) == []
    assert [file async for file in gateway.acme.files.list()] == []


async def test_failed_lines_are_named_and_only_they_are_asked_again(
    provider: ProviderServer, command: Gate
) -> None:
    command.suite(20)
    provider.script.line_fault = lambda seen: (
        Fault("status", 400, "invalid_request_error", "not this one")
        if seen.body["messages"][-1]["content"] == "thanks 4"
        else None
    )
    error = await command.failed()
    assert error["message"].startswith(f"1 of 20 inputs have no label of {MODEL}: tone, 'e4': ")
    assert "not this one" in error["message"]
    assert "--skip-unlabelled" in error["fix"]
    provider.script.line_fault = lambda seen: None
    _, out, _ = await command.run("--json")
    assert json.loads(out)["labels"]["reused"] == 19
    assert asked(provider) == Counter({f"{WORDS[n % 2]} {n}": 1 for n in range(20)})


async def test_an_answer_that_is_no_label_is_left_out_only_where_that_is_said(
    provider: ProviderServer, command: Gate
) -> None:
    command.suite(20)

    def answer(seen: Seen) -> str | Reply:
        text = seen.body["messages"][-1]["content"]
        if text == "thanks 4":
            return "I would rather not say."
        return Reply(tone(seen), finish="length") if text == "thanks 6" else tone(seen)

    provider.script.answer = answer
    error = await command.failed()
    assert error["message"].startswith("2 of 20 inputs have no label")
    assert "holds no label: 'I would rather not say.', finish_reason 'stop'" in error["message"]
    seen = len(provider.script.seen)
    _, out, _ = await command.run("--skip-unlabelled", "--json")
    task = json.loads(out)["predicate"]["tasks"]["tone"]
    assert (task["reference"]["n"], task["reference"]["left_out"]) == (18, 2)
    assert "e4" not in command.labels
    assert len(provider.script.seen) == seen, "a paid answer is not asked for again"
    report = (command.folder / "new" / "report.md").read_text(encoding="utf-8")
    assert "2 more had no usable answer and were not tested" in report


async def test_a_reference_that_never_says_a_label_cannot_test_the_task(
    provider: ProviderServer, command: Gate
) -> None:
    command.suite(20)
    provider.script.answer = lambda seen: json.dumps({"label": "kind"})
    error = await command.failed()
    assert "no example of label rude" in error["message"]


async def test_a_limit_of_cost_stops_the_batch_and_what_was_paid_is_kept(
    gateway: Running, provider: ProviderServer, command: Gate
) -> None:
    command.suite(20)
    error = await command.failed("--max-cost-usd", "0.0001")
    assert "is cancelled: 0 of 20 inputs have labels" in error["message"]
    assert "max_cost_exceeded" in error["message"]
    assert "max_cost_usd" in error["message"]
    status, _, _ = await command.run()
    assert status != 2
    assert set(asked(provider).values()) == {1}
    assert await settled_rows(gateway.database)


async def test_a_batch_that_somebody_cancels_is_reported_and_the_rest_is_ordered_later(
    gateway: Running, provider: ProviderServer, command: Gate
) -> None:
    command.suite(20)
    provider.script.next_batch(BatchPlan(answered=0.5, polls=1000))
    running_gate = asyncio.create_task(command.run("--json"))
    batch = await first_batch(gateway, provider)
    await gateway.acme.batches.cancel(batch)
    status, out, _ = await running_gate
    message = json.loads(out)["error"]["message"]
    assert status == 2
    assert f"the batch {batch} is cancelled: " in message
    assert "which are kept" in message
    kept = sum(asked(provider).values())
    _, out, _ = await command.run("--json")
    assert json.loads(out)["labels"]["reused"] == kept
    assert asked(provider) == Counter({f"{WORDS[n % 2]} {n}": 1 for n in range(20)})


async def test_a_batch_that_expires_keeps_what_was_answered(
    provider: ProviderServer, command: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.suite(12)
    # So short a window is met synchronously, two lines at once.
    monkeypatch.setattr(label_orders, "_WINDOW", "4s")
    provider.script.always["*"] = Fault("slow", delay_s=1.5)
    error = await command.failed()
    assert "is expired: " in error["message"]
    assert "batch_expired" in error["message"]
    provider.script.always.clear()
    monkeypatch.setattr(label_orders, "_WINDOW", "24h")
    status, _, _ = await command.run()
    assert status != 2
    assert len(command.labels) == 12


async def test_a_gate_that_was_killed_takes_its_batch_over(
    gateway: Running, provider: ProviderServer, command: Gate
) -> None:
    command.suite(20)
    provider.script.next_batch(BatchPlan(seconds=3.0))
    script = (
        "import sys; from tests.unit.character_tokenizer import CharacterTokenizer as T; "
        "from serving.tasks.prompt import CheckpointTokenizer as C; C.load = lambda folder: T(); "
        "from serving.cli import main; main(sys.argv[1:])"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, *command.words("--json"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    batch = await first_batch(gateway, provider)
    async with asyncio.timeout(GUARD_S):
        while not any(
            batch in path.read_text() for path in (command.state / "gate").rglob("order-*.json")
        ):
            await asyncio.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    assert [one.id async for one in gateway.acme.batches.list()] == [batch]
    status, out, _ = await command.run("--json")
    assert status != 2
    assert json.loads(out)["labels"]["batches"] == [batch]
    assert set(asked(provider).values()) == {1}
    assert len(asked(provider)) == 20
    assert [one.id async for one in gateway.acme.batches.list()] == [batch]


async def test_a_lost_answer_to_the_creation_orders_nothing_twice(
    gateway: Running,
    provider: ProviderServer,
    command: Gate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from serving.contracts.errors import Unavailable
    from serving.host.batch_client import BatchClient

    command.suite(10)
    create = BatchClient.create

    def lost(client: BatchClient, order: dict[str, Any]) -> dict[str, Any]:
        create(client, order)
        raise Unavailable("gave no answer", field="--batch", fix="try again")

    with monkeypatch.context() as patch:
        patch.setattr(BatchClient, "create", lost)
        assert (await command.failed())["code"] == "unavailable"
    # A batch of somebody else is not taken for it.
    await gateway.submit(questions(1))
    status, _, _ = await command.run()
    assert status != 2
    assert len([one async for one in gateway.acme.batches.list()]) == 2
    assert set(asked(provider).values()) == {1}


async def test_a_batch_that_the_gateway_does_not_know_is_not_paid_for_again_by_itself(
    provider: ProviderServer, command: Gate
) -> None:
    command.suite(10)
    folder = command.state / "gate" / "labels" / MODEL.replace("/", "_")
    folder.mkdir(parents=True)
    _, _, _ = await command.run("--skip-unlabelled")
    (folder / "answers.jsonl").unlink()
    keys = [seen.custom_id for seen in provider.script.seen]
    assert keys
    order = folder / "order-x.json"
    known = await questions_of(command)
    order.write_text(json.dumps({
        "name": "x", "url": "http://other:8000", "keys": known, "batch": "batch_other",
    }))  # fmt: skip
    seen = len(provider.script.seen)
    error = await command.failed()
    assert (
        "does not know the batch batch_other, which was ordered from http://other:8000"
        in (error["message"])
    )
    assert str(order) in error["fix"]
    assert len(provider.script.seen) == seen
    order.unlink()
    status, _, _ = await command.run()
    assert status != 2


async def test_two_gates_do_not_order_the_same_labels(command: Gate) -> None:
    command.suite(10)
    folder = label_orders.AnswerFolder(command.state / "gate" / "labels" / "openai_gpt-4.1")
    with folder.locked():
        error = await command.failed()
    assert (error["code"], error["field"]) == ("output_in_use", "reference")


async def first_batch(gateway: Running, provider: ProviderServer) -> str:
    """Return the gateway's only batch once its provider was asked for the state of its own."""
    async with asyncio.timeout(90):
        while "state" not in [name for name, _ in provider.script.batch_requests]:
            await asyncio.sleep(0.05)
    (batch,) = [one.id async for one in gateway.acme.batches.list()]
    return batch


async def questions_of(command: Gate) -> list[str]:
    """Return the keys of the suite's questions."""
    from evals.reference_labels import Labeller
    from evals.subject import Subject
    from serving.contracts.settings import Settings

    subject = Subject("candidate", command.folder / "new", Settings().models[0])
    try:
        (suite,) = command.requests[-1].suites
        labeller = Labeller(MODEL, subject.task(suite.spec))
        return [question.key for question in labeller.questions(suite)]
    finally:
        subject.close()
