"""Answers a task's inputs one by one from the cache, and has a model answer the others."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any

from serving.cache.cacheable import unfit_answer
from serving.cache.entry import Content, Entry
from serving.cache.flight import Flight
from serving.contracts.answer import Answer
from serving.contracts.errors import NarrowgateError
from serving.contracts.requests import TaskBatch
from serving.pipeline.cache_access import Answered, CacheAccess, served_from
from serving.pipeline.claimed import Claimed
from serving.pipeline.exit_recorder import Outcome, RequestRecord
from serving.pipeline.led_work import lead, leading, own_wait, taking_part
from serving.pipeline.plan import Plan, Planner, TaskPlan, choose_plan
from serving.pipeline.runner import Runner
from serving.pipeline.write import CacheStatus, TaskReply, write_tasks


class CachedTask:
    """Comes between reading a batch and planning it. runners: by kind of plan."""

    def __init__(
        self,
        access: CacheAccess,
        planner: Planner,
        runners: Mapping[type[Plan], Runner[Any, Any]],
    ) -> None:
        self._access = access
        self._planner = planner
        self._runners = runners

    @asynccontextmanager
    async def answered(self, batch: TaskBatch, record: RequestRecord) -> AsyncIterator[TaskReply]:
        """Answer the inputs; send the reply inside the context. Raises NarrowgateError."""
        record.belongs_to(batch.task)
        keys = await self._access.task_keys(batch, record.context)
        found = await self._access.find(keys, record, "task")
        inputs = _Inputs(self, self._access, batch, record)
        if keys:
            inputs.divide(keys, found)
        async with inputs.taking_part():
            yield await inputs.answered()

    async def ask(self, batch: TaskBatch, record: RequestRecord) -> list[Outcome]:
        """Plan and run inputs; return their outcomes, recorded. Raises NarrowgateError."""
        return await record.run_batch(self._planner, self._runners, batch)

    def note_hit(self, one: TaskBatch, answer: Answer, record: RequestRecord) -> None:
        """Make evidence of a cached answer to the only input that was made under a claim."""
        runner = self._runners[TaskPlan]
        plan = choose_plan(one, record.context, self._planner.policy)
        if isinstance(runner, Claimed) and isinstance(plan, TaskPlan):
            runner.cached(plan, answer, record.context)


class _Inputs:
    """The inputs of one request: found, led, shared with other requests, or asked alone."""

    def __init__(
        self, tasks: CachedTask, access: CacheAccess, batch: TaskBatch, record: RequestRecord
    ) -> None:
        self._tasks = tasks
        self._access = access
        self._batch = batch
        self._record = record
        self._status: list[CacheStatus] = ["bypass"] * batch.units
        self._outcomes: dict[int, Outcome] = {}
        self._hits: dict[int, Entry] = {}
        self._led: dict[int, Flight] = {}
        self._followed: dict[int, Flight] = {}
        self._alone = list(range(batch.units))
        self._joined: list[Flight] = []

    def divide(self, keys: Sequence[str], found: Mapping[str, Entry]) -> None:
        """Decide how each input is answered. keys: of all inputs."""
        context = self._record.context
        self._status = ["miss"] * len(keys)
        self._hits = {index: found[key] for index, key in enumerate(keys) if key in found}
        misses = [index for index, key in enumerate(keys) if key not in found]
        self._alone = []
        if not self._access.stores(context):
            self._alone = misses
            return
        own: dict[str, Flight] = {}
        for index in misses:
            key = keys[index]
            if key in own:
                # The same text twice in one request.
                self._followed[index] = own[key]
                continue
            own[key], leads = self._access.join(key, context)
            self._joined.append(own[key])
            (self._led if leads else self._followed)[index] = own[key]

    def taking_part(self) -> AbstractAsyncContextManager[None]:
        """Return the context in which the request takes part in its flights."""
        led, record = list(self._led.values()), self._record.some(list(self._led))
        return taking_part(self._access.cache.flights, self._joined, led, record)

    async def answered(self) -> TaskReply:
        """Return the reply. Raises what asking raises for the whole request."""
        for index, entry in self._hits.items():
            self._outcomes[index] = self._hit(index, entry)
        if self._led:
            record = self._record.detached(list(self._led))
            task = lead(list(self._led.values()), record, self._answer_led(record))
            await own_wait([task], record, self._record.context.deadline)
            task.result()
        for index, flight in self._followed.items():
            await self._follow(index, flight)
        await self._ask_alone()
        order = range(self._batch.units)
        is_open = [index for index in order if self._record.inputs[index].is_open]
        open_ = [self._outcomes[index] for index in is_open]
        for index, outcome in zip(
            is_open, await self._record.some(is_open).finish(open_), strict=True
        ):
            self._outcomes[index] = outcome
        return write_tasks(self._batch, [self._outcomes[i] for i in order], self._status)

    async def _answer_led(self, record: RequestRecord) -> None:
        """Have a model answer the led inputs, record them, and keep the answers."""
        indices = list(self._led)
        async with leading(self._access, list(self._led.values()), record):
            outcomes = await self._tasks.ask(self._some(indices), record)
            for index, outcome in zip(indices, outcomes, strict=True):
                self._outcomes[index] = outcome
                self._keep(index, self._led[index], outcome)

    async def _follow(self, index: int, flight: Flight) -> None:
        try:
            shared = await self._access.shared(flight, self._record, "task")
        except NarrowgateError as error:
            self._outcomes[index] = Outcome(error)
            return
        if shared is None:
            self._alone.append(index)
        else:
            self._outcomes[index] = self._hit(index, shared)

    async def _ask_alone(self) -> None:
        if not self._alone:
            return
        indices = sorted(self._alone)
        outcomes = await self._tasks.ask(self._some(indices), self._record.some(indices))
        self._outcomes.update(zip(indices, outcomes, strict=True))

    def _some(self, indices: Sequence[int]) -> TaskBatch:
        requests = tuple(self._batch.requests[index] for index in indices)
        return replace(self._batch, requests=requests)

    def _keep(self, index: int, flight: Flight, outcome: Outcome) -> None:
        answer, served = outcome.content, outcome.served
        if isinstance(answer, NarrowgateError):
            self._access.fail(flight, answer)
            return
        assert isinstance(answer, Answer)
        assert served is not None
        content = Content(
            answer.model_dump(mode="json"), served.usage, outcome.cost_usd, outcome.finish_reason,
            outcome.attestation, answer.guarantee.header(),
        )  # fmt: skip
        text = self._batch.requests[index].text
        unfit = unfit_answer(answer, outcome.finish_reason)
        answered = Answered(content, served, answer.task, text, unfit)
        self._access.keep(flight, "task", answered, self._record.context)

    def _hit(self, index: int, entry: Entry) -> Outcome:
        cache = self._access.cache
        cache.hit(entry)
        self._status[index] = "hit"
        answer = entry.answer().model_copy(
            update={
                "route": "cache",
                "reason": "cached",
                "request_id": self._record.context.request_id,
                "cost_usd": Decimal(0),
                "cache": entry.hit(cache.now()),
            }
        )
        if entry.origin.claim is not None:
            self._tasks.note_hit(self._some([index]), answer, self._record)
        content = entry.content
        return Outcome(answer, served_from(entry), content.finish_reason, content.attestation)
