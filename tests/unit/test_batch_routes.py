"""A line takes the cheapest way that may answer it: cache, local model, provider's batch."""

# ruff: noqa: ASYNC110  # it waits for what another thread says

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from serving.batch.store import LeaseLost, LineEnd
from serving.batch.submission_store import SubmissionStore
from serving.batch.submissions import Submissions
from serving.contracts.deadline import Deadline
from serving.contracts.engine import EngineOutput, EngineWork, ScoreOutput, ScoreWork
from serving.contracts.errors import NarrowgateError
from serving.contracts.settings import Replicas
from serving.contracts.task_spec import TaskSpec
from serving.ledger.reports.reconcile import reconcile
from serving.ledger.schema import calls, evidence_audits, exits
from serving.pipeline.claimed import Claimed
from serving.pipeline.escalating import Escalating
from serving.pipeline.plan import TaskPlan
from serving.pipeline.replica_meter import ReplicaMeter
from serving.pipeline.runner import BoundTask
from serving.tasks.grant import Grant
from serving.tasks.task import bind

from ..provider.script import BatchPlan, Seen
from ..provider.server import ProviderServer
from .attested import result
from .batch_gateway import KEY_VALUE, KEY_VARIABLE, Running, running
from .batch_kit import chat_line, jsonl, task_line
from .character_tokenizer import CharacterTokenizer
from .patience import GUARD_S
from .scripted import MODEL, WINDOW, ScriptedEngine
from .test_batch_scheduler import settled_rows
from .test_batch_submissions import FAST, answers, asked

TASK = "/v1/tasks/sentiment"
CACHE = {"cache": {"enabled": True, "lookup_timeout_s": 10.0}}


def answer(seen: Seen) -> str:
    """Return a label where the task's prompt asks for one, an echo elsewhere."""
    text = str(seen.body["messages"][-1]["content"])
    return '{"label": "negative"}' if "response_format" in seen.body else f"answer to {text}"


@asynccontextmanager
async def started(
    provider: ProviderServer, state: Path, url: SecretStr | None = None, **more: Any
) -> AsyncIterator[Running]:
    provider.script.answer = answer
    more = {"has_batches": True, "batch": FAST, **more}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY_VALUE)
        async with running(provider, state, url, **more) as found:
            yield found


async def exits_of(gateway: Running) -> list[Any]:
    """Return the exits in the lane `batch`, once those with calls are written."""
    await settled_rows(gateway.database)

    def read() -> list[Any]:
        with gateway.database.read() as connection:
            query = select(exits).where(exits.c.lane == "batch").order_by(exits.c.request_id)
            return list(connection.execute(query))

    return await asyncio.to_thread(read)


def batches_of(provider: ProviderServer) -> list[str | None]:
    return [seen.batch_id for seen in provider.script.seen]


async def test_auto_and_tasks_go_into_the_batch_of_their_tiers_provider_at_half_price(
    provider: ProviderServer, state: Path, ledger_url: SecretStr | None
) -> None:
    lines = [
        *(chat_line(f"auto{n}", f"Tell me about gate {n}.", model="auto") for n in range(5)),
        *(chat_line(f"task{n}", f"The day {n} was bad.", model="task/sentiment") for n in range(5)),
        *(chat_line(f"named{n}", f"Tell me about wall {n}.") for n in range(5)),
    ]
    async with started(provider, state, ledger_url) as gateway:
        batch = await gateway.ended(await gateway.submit(jsonl(*lines)))
        assert batch.status == "completed"
        found = await gateway.results(batch)
        bodies = {name: line["response"]["body"] for name, line in found.items()}
        rows = await exits_of(gateway)
        assert await asyncio.to_thread(reconcile, gateway.database) == []
    texts = {name: body["choices"][0]["message"]["content"] for name, body in bodies.items()}
    assert texts["auto3"] == "answer to Tell me about gate 3."
    assert texts["named3"] == "answer to Tell me about wall 3."
    assert {texts[f"task{n}"] for n in range(5)} == {"negative"}
    assert None not in batches_of(provider)
    # The named ones at once; the others once no more could come.
    assert [name for name, _ in provider.script.batch_requests].count("create") <= 2
    assert len(rows) == 15
    assert {(row.route, row.service_tier, row.outcome) for row in rows} == {
        ("frontier", "batch", "answered")
    }
    assert {row.task for row in rows} == {None, "sentiment"}
    details = [body["narrowgate"] for body in bodies.values()]
    assert {one["lane"] for one in details} == {"batch"}
    assert sum(Decimal(one["cost_usd"]) for one in details) == sum(row.cost_usd for row in rows)
    assert {bodies[name]["narrowgate"]["reason"] for name in ("auto0", "named0")} == {
        "out_of_scope", "requested",
    }  # fmt: skip


async def test_the_answer_to_a_task_is_read_as_online(
    provider: ProviderServer, state: Path
) -> None:
    data = jsonl(*(task_line(f"c{n}", "sentiment", f"Day {n} was bad.") for n in range(3)))
    async with started(provider, state) as gateway:
        batch = await gateway.ended(await gateway.submit(data, endpoint=TASK))
        found = await gateway.results(batch)
        rows = await exits_of(gateway)
        provider.script.answer = lambda _: "I cannot say."
        unread = await gateway.ended(await gateway.submit(data, endpoint=TASK))
        (first, *_) = (await gateway.results(unread)).values()
    assert [line["response"]["body"]["value"] for line in found.values()] == ["negative"] * 3
    assert {(row.endpoint, row.task, row.service_tier) for row in rows} == {
        ("task", "sentiment", "batch")
    }
    assert None not in batches_of(provider)
    assert first["response"]["status_code"] == 502
    cost = Decimal(unread.model_extra["narrowgate"]["cost_usd"])  # type: ignore[index]
    assert cost > 0


async def test_a_short_deadline_asks_at_once(provider: ProviderServer, state: Path) -> None:
    data = jsonl(chat_line("a", "Tell me about gates.", model="auto"))
    async with started(provider, state) as gateway:
        metadata = {"deadline": "1h"}
        batch = await gateway.ended(await gateway.submit(data, metadata=metadata))
        assert len(answers(await gateway.results(batch))) == 1
    assert batches_of(provider) == [None]


async def test_a_request_of_several_inputs_is_asked_at_once(
    provider: ProviderServer, state: Path
) -> None:
    line = task_line("a", "sentiment")
    line["body"] = {"inputs": ["Day one was bad.", "Day two was bad."]}
    async with started(provider, state) as gateway:
        batch = await gateway.ended(await gateway.submit(jsonl(line), endpoint=TASK))
        (found,) = (await gateway.results(batch)).values()
    values = [one["answer"]["value"] for one in found["response"]["body"]["results"]]
    assert values == ["negative", "negative"]
    assert batches_of(provider) == [None, None]


async def test_lines_that_the_cache_answers_are_not_sent(
    provider: ProviderServer, state: Path
) -> None:
    async with started(provider, state, **CACHE) as gateway:
        for text in ("Tell me about gate 1.", "Tell me about gate 2."):
            await gateway.acme.chat.completions.create(
                model="openai/gpt-4.1", messages=[{"role": "user", "content": text}]
            )
        data = jsonl(*(chat_line(f"c{n}", f"Tell me about gate {n}.") for n in range(4)))
        batch = await gateway.ended(await gateway.submit(data))
        found = await gateway.results(batch)
        assert len(answers(found)) == 4
        assert set(asked(provider).values()) == {1}
        rows = await exits_of(gateway)
        assert sorted(row.route for row in rows) == ["cache", "cache", "frontier", "frontier"]
        assert {row.cost_usd for row in rows if row.route == "cache"} == {Decimal(0)}
        # What the provider's batch answered is in the cache, also for clients.
        again = await gateway.ended(await gateway.submit(data))
        assert len(answers(await gateway.results(again))) == 4
        one = await gateway.acme.chat.completions.with_raw_response.create(
            model="openai/gpt-4.1", messages=[{"role": "user", "content": "Tell me about gate 3."}]
        )
    assert one.headers["x-narrowgate-cache"] == "hit"
    assert set(asked(provider).values()) == {1}


async def test_a_limit_of_cost_does_not_hide_what_is_cached(
    provider: ProviderServer, state: Path
) -> None:
    data = jsonl(*(chat_line(f"c{n}", f"Tell me about gate {n}.", max_tokens=20) for n in range(3)))
    metadata = {"max_cost_usd": "1", "deadline": "1h"}
    async with started(provider, state, **CACHE) as gateway:
        for _ in range(2):
            batch = await gateway.ended(await gateway.submit(data, metadata=metadata))
            assert len(answers(await gateway.results(batch))) == 3
    assert set(asked(provider).values()) == {1}


# With a local model.


class UnsureEngine(ScriptedEngine):
    """Is sure of every text but hard ones."""

    def __init__(self) -> None:
        super().__init__()
        self.works = 0

    async def run(
        self, works: Sequence[EngineWork], deadline: Deadline
    ) -> list[EngineOutput | NarrowgateError]:
        self.works += len(works)
        return await super().run(works, deadline)

    def _output(self, work: EngineWork) -> EngineOutput | NarrowgateError:
        found = super()._output(work)
        if isinstance(work, ScoreWork) and isinstance(found, ScoreOutput):
            text = "".join(map(chr, work.prompt_token_ids))
            if "hard" in text.rpartition("Day")[2]:
                flat = tuple(tuple(0.0 for _ in point) for point in found.logprobs)
                return replace(found, logprobs=flat)
        return found


async def served_locally(gateway: Running, specs: dict[str, TaskSpec]) -> UnsureEngine:
    """Have a local model answer the task `topic`; return it."""
    engine = UnsureEngine()
    await engine.health.confirm()
    context = gateway.gateway._context
    grant = Grant(result(specs["topic"]), "sha256:abc", None)
    bound = bind(specs["topic"], CharacterTokenizer(), WINDOW)
    context.models.tasks["topic"] = BoundTask(bound, engine, grant)
    runner = context.path.runners[TaskPlan]
    if isinstance(runner, Claimed):
        local = runner._auditor._runners.local
    else:
        assert isinstance(runner, Escalating)
        local = runner._local
    local._runner._meters[MODEL] = ReplicaMeter(Replicas())  # type: ignore[attr-defined]
    return engine


async def test_sure_lines_are_answered_locally_and_the_others_in_the_next_provider_batch(
    provider: ProviderServer, state: Path, specs: dict[str, TaskSpec]
) -> None:
    provider.script.next_batch(BatchPlan(duplicated=2))
    lines = [
        task_line(f"c{n}", "topic", f"Day {n} was {'hard' if n % 3 == 0 else 'fine'}.")
        for n in range(9)
    ]
    async with started(provider, state) as gateway:
        provider.script.answer = lambda _: '{"label": "sports"}'
        engine = await served_locally(gateway, specs)
        batch = await gateway.ended(await gateway.submit(jsonl(*lines), endpoint="/v1/tasks/topic"))
        found = await gateway.results(batch)
        rows = await exits_of(gateway)
    bodies = {name: line["response"]["body"] for name, line in found.items()}
    assert [body["error"] for body in bodies.values() if "error" in body] == []
    routes = {name: body["route"] for name, body in bodies.items()}
    assert {name for name, route in routes.items() if route == "frontier"} == {"c0", "c3", "c6"}
    assert {routes[name] for name in routes if name not in ("c0", "c3", "c6")} == {"local"}
    reasons = {found[name]["response"]["body"]["reason"] for name in ("c0", "c3", "c6")}
    assert reasons == {"below_threshold"}
    assert [name for name, _ in provider.script.batch_requests].count("create") == 1
    assert len(provider.script.seen) == 3
    assert None not in batches_of(provider)
    # What the local model took for the lines that it was not sure of is recorded, and no failure.
    outcomes = [row.outcome for row in rows]
    assert (outcomes.count("answered"), outcomes.count("deferred")) == (9, 3)
    escalated = [row for row in rows if row.route == "frontier"]
    assert {(row.escalated, row.service_tier) for row in escalated} == {(True, "batch")}
    assert engine.works == 12


async def test_the_references_answers_in_its_batch_are_evidence(
    provider: ProviderServer, state: Path, specs: dict[str, TaskSpec]
) -> None:
    lines = [task_line(f"c{n}", "topic", f"Day {n} was fine.") for n in range(8)]
    evidence = {"evidence": {"enabled": True, "heads": False}}
    async with started(provider, state, **evidence) as gateway:
        provider.script.answer = lambda _: '{"label": "sports"}'
        engine = await served_locally(gateway, specs)
        batch = await gateway.ended(await gateway.submit(jsonl(*lines), endpoint="/v1/tasks/topic"))
        found = await gateway.results(batch)

        def audits() -> list[Any]:
            with gateway.database.read() as connection:
                return list(connection.execute(select(evidence_audits)))

        async with asyncio.timeout(GUARD_S):
            while len(rows := await asyncio.to_thread(audits)) < 8:
                await asyncio.sleep(0.05)
    bodies = [line["response"]["body"] for line in found.values()]
    assert {(body["value"], body["route"], body["reason"]) for body in bodies} == {
        ("Sports", "frontier", "shadow")
    }
    # All of it in the reference's batch: the audits ask only the local model.
    assert len(provider.script.seen) == 8
    assert None not in batches_of(provider)
    assert {(row.origin, row.reference) for row in rows} == {("shadow", "openai/gpt-4.1")}
    assert engine.works == 8


async def test_lines_that_were_left_to_a_provider_survive_a_crash(
    provider: ProviderServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jsonl(*(chat_line(f"c{n}", f"Tell me about gate {n}.", model="auto") for n in range(6)))

    async def nothing(*_: Any, **__: Any) -> tuple[dict[str, bool], list[str]]:
        return {"openai/gpt-4.1": False}, []

    with monkeypatch.context() as patch:
        patch.setattr(Submissions, "targets", nothing)
        async with started(provider, state) as first:
            batch = await first.submit(data)
            async with asyncio.timeout(GUARD_S):
                while True:
                    waiting = SubmissionStore(first.database)
                    found = await asyncio.to_thread(waiting.requests, batch.id, range(1, 7))
                    if len(found) == 6:
                        break
                    await asyncio.sleep(0.05)
    assert provider.script.seen == []
    async with started(provider, state, again=True) as second:
        batch = await second.ended(batch)
        assert len(answers(await second.results(batch))) == 6
    assert set(asked(provider).values()) == {1}


async def test_answers_that_were_recorded_before_a_crash_are_recorded_once(
    provider: ProviderServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_lines, stopped = SubmissionStore.end_lines, list[str]()

    def stops_once(store: SubmissionStore, submission: str, ends: Sequence[LineEnd]) -> None:
        if not stopped and any(end.state == "succeeded" for end in ends):
            stopped.append(submission)
            raise LeaseLost
        end_lines(store, submission, ends)

    monkeypatch.setattr(SubmissionStore, "end_lines", stops_once)
    data = jsonl(*(chat_line(f"c{n}", f"Tell me about gate {n}.", model="auto") for n in range(6)))
    async with started(provider, state) as gateway:
        batch = await gateway.ended(await gateway.submit(data))
        found = await gateway.results(batch)
        rows = await exits_of(gateway)
        assert await asyncio.to_thread(reconcile, gateway.database) == []
    assert len(stopped) == 1
    assert len(answers(found)) == 6
    assert set(asked(provider).values()) == {1}
    assert [row.outcome for row in rows] == ["answered"] * 6
    cost = Decimal(batch.model_extra["narrowgate"]["cost_usd"])  # type: ignore[index]
    assert cost == sum(row.cost_usd for row in rows) > 0


async def test_requests_that_wait_are_not_shown_as_results(
    provider: ProviderServer, state: Path
) -> None:
    provider.script.next_batch(BatchPlan(answered=0.0, polls=1000))
    data = jsonl(chat_line("a", "Tell me about gates.", model="auto"))
    async with started(provider, state) as gateway:
        batch = await gateway.submit(data)
        async with asyncio.timeout(GUARD_S):
            while "state" not in [name for name, _ in provider.script.batch_requests]:
                await asyncio.sleep(0.05)
        await gateway.acme.batches.cancel(batch.id)
        batch = await gateway.ended(batch)
        (line,) = (await gateway.results(batch)).values()
    assert line["error"]["code"] == "batch_cancelled"
    assert line["response"] is None


async def test_calls_are_closed_at_the_price_of_a_batch(
    provider: ProviderServer, state: Path
) -> None:
    text = "Tell me about gates."
    async with started(provider, state) as gateway:
        await gateway.ended(await gateway.submit(jsonl(chat_line("a", text, model="auto"))))
        await gateway.ended(
            await gateway.submit(
                jsonl(chat_line("a", text, model="auto")), metadata={"deadline": "1h"}
            )
        )
        await settled_rows(gateway.database)
        with gateway.database.read() as connection:
            costs = sorted(connection.execute(select(calls.c.cost_usd)).scalars())
    assert costs[0] * 2 == costs[1]
