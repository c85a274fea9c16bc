"""Answers chats from the cache, or has equal ones asked once and stores the answer."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from serving.cache.cacheable import unfit_answer, unfit_document
from serving.cache.entry import Content, Entry
from serving.cache.flight import Flight
from serving.contracts.answer import Answer
from serving.contracts.deadline import Deadline
from serving.contracts.errors import NarrowgateError
from serving.contracts.requests import ChatRequest
from serving.pipeline.cache_access import Answered, CacheAccess, served_from
from serving.pipeline.compared_text import question_of
from serving.pipeline.exit_recorder import (
    Outcome,
    OutcomeStream,
    PlannedOutcome,
    RequestRecord,
)
from serving.pipeline.hit_auditor import Fresh, FreshAnswer
from serving.pipeline.led_work import lead, leading, own_wait, taking_part
from serving.pipeline.plan import Plan, Planner, TaskPlan
from serving.pipeline.runner import Runner
from serving.pipeline.similar_chat import NOTHING, Similar, SimilarChats
from serving.pipeline.stream_document import StreamedDocument
from serving.pipeline.write import (
    Reply,
    cached_document,
    whole_document,
    write_events,
    write_hit,
    write_reply,
)

_Events = asyncio.Queue[dict[str, Any] | NarrowgateError | None]
"""None: the stream has ended."""


class CachedChat:
    """Comes between reading a chat and planning it.

    runners: by kind of plan. similar: looks up by meaning what has no equal; None where nothing is.
    """

    def __init__(
        self,
        access: CacheAccess,
        planner: Planner,
        runners: Mapping[type[Plan], Runner[Any, Any]],
        similar: SimilarChats | None = None,
    ) -> None:
        self._access = access
        self._planner = planner
        self._runners = runners
        self._similar = similar

    @asynccontextmanager
    async def answered(self, request: ChatRequest, record: RequestRecord) -> AsyncIterator[Reply]:
        """Answer a chat; send the reply inside the context. Raises NarrowgateError."""
        access, context = self._access, record.context
        key = await access.chat_key(request, context)
        if key is None:
            yield replace(await self._unshared(request, record), cache="bypass")
            return
        if self._similar is not None:
            self._similar.follow(request, record, self.fresh)
        entry = (await access.find([key], record, "chat")).get(key)
        if entry is not None:
            yield self._remembered(request, key, await self._hit(request, entry, record))
            return
        similar = NOTHING
        if self._similar is not None:
            similar = await self._similar.look(request, key, record)
        if similar.serves:
            reply = await self._similar_hit(request, similar, record)
            yield self._remembered(request, key, reply, similar)
        elif not access.stores(context):
            yield self._remembered(request, key, await self._unshared(request, record))
        else:
            async with self._taken_off(key, request, record, similar) as reply:
                yield self._remembered(request, key, reply)

    async def ask(self, request: ChatRequest, record: RequestRecord) -> PlannedOutcome:
        """Plan and run a chat. Raises NarrowgateError."""
        return await record.run(self._planner, self._runners, request)

    def fresh(self, request: ChatRequest) -> Fresh:
        """Return a function that asks a model about a chat, without the cache."""

        async def ask(audit: RequestRecord) -> FreshAnswer:
            asked = await self.ask(replace(request, stream=False), audit)
            assert isinstance(asked.outcome, Outcome)
            document = whole_document(asked.plan, asked.outcome, audit.context)
            return FreshAnswer(document, asked.outcome.cost_usd)

        return ask

    def _remembered(
        self, request: ChatRequest, key: str, reply: Reply, similar: Similar = NOTHING
    ) -> Reply:
        if self._similar is not None:
            self._similar.remember(request, key, reply.route, reply.hit, similar)
        return reply

    async def _similar_hit(
        self, request: ChatRequest, similar: Similar, record: RequestRecord
    ) -> Reply:
        assert self._similar is not None
        assert similar.hit is not None
        reply = await self._hit(request, similar.hit.entry, record, similar)
        self._similar.served(similar, self.fresh(request))
        return reply

    @asynccontextmanager
    async def _taken_off(
        self, key: str, request: ChatRequest, record: RequestRecord, similar: Similar
    ) -> AsyncIterator[Reply]:
        """Lead the flight of a key, or wait for its answer."""
        access = self._access
        flight, leads = access.join(key, record.context)
        own = record.detached((0,)) if leads else record
        led = [flight] if leads else []
        async with taking_part(access.cache.flights, [flight], led, own):
            if leads:
                led_chat = _LedChat(
                    self, access, flight, request, own, record.context.deadline,
                    self._similar, similar,
                )  # fmt: skip
                yield await led_chat.opened()
                return
            shared = await access.shared(flight, record, "chat")
            if shared is not None:
                yield await self._hit(request, shared, record)
            else:
                yield await self._unshared(request, record)

    async def _unshared(self, request: ChatRequest, record: RequestRecord) -> Reply:
        asked = await self.ask(request, record)
        reply = write_reply(request, asked.plan, asked.outcome, record.context)
        return replace(reply, cache="miss")

    async def _hit(
        self,
        request: ChatRequest,
        entry: Entry,
        record: RequestRecord,
        similar: Similar = NOTHING,
    ) -> Reply:
        cache, found = self._access.cache, similar.hit
        cache.hit(entry)
        if found is None:
            hit, guarantee = entry.hit(cache.now()), None
            served = served_from(entry)
        else:
            hit = entry.hit(cache.now(), found.kind, found.similarity)
            guarantee = similar.guarantee
            served = replace(
                served_from(entry, found.kind),
                guaranteed=guarantee.evidence == "traffic",
                evidence=guarantee.evidence,
                claim=guarantee.claim,
            )
        content = entry.content
        document = cached_document(content.document, hit, record.context.request_id, guarantee)
        record.belongs_to(entry.origin.task)
        outcome = Outcome(document, served, attestation=content.attestation)
        (outcome,) = await record.finish([outcome])
        header = content.guarantee if guarantee is None else guarantee.header()
        return write_hit(request, outcome, hit, header)


class _LedChat:
    """A chat whose answer others may wait for: it is made in a task, with a record of its own."""

    def __init__(
        self,
        chats: CachedChat,
        access: CacheAccess,
        flight: Flight,
        request: ChatRequest,
        record: RequestRecord,
        deadline: Deadline,
        similar_chats: SimilarChats | None,
        similar: Similar,
    ) -> None:
        self._chats = chats
        self._access = access
        self._flight = flight
        self._request = request
        self._record = record
        self._deadline = deadline
        self._similar_chats = similar_chats
        self._similar = similar
        self._reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._task = lead([flight], record, self._answer())

    async def opened(self) -> Reply:
        """Return the reply once it has begun. Raises what asking raises."""
        await own_wait([self._reply, self._task], self._record, self._deadline)
        if not self._reply.done():
            self._task.result()
        return self._reply.result()

    async def _answer(self) -> None:
        async with leading(self._access, [self._flight], self._record):
            asked = await self._chats.ask(self._request, self._record)
            if isinstance(asked.outcome, OutcomeStream):
                await self._stream(asked, asked.outcome)
            else:
                self._whole(asked, asked.outcome)

    def _whole(self, asked: PlannedOutcome, outcome: Outcome) -> None:
        context = self._record.context
        reply = write_reply(self._request, asked.plan, outcome, context)
        document = whole_document(asked.plan, outcome, context)
        assert outcome.served is not None
        unfit = unfit_document(document)
        if unfit is None and isinstance(outcome.content, Answer):
            unfit = unfit_answer(outcome.content, outcome.finish_reason)
        content = Content(
            document, outcome.served.usage, outcome.cost_usd, outcome.finish_reason,
            outcome.attestation, reply.guarantee,
        )  # fmt: skip
        chat = question_of(self._request) if _is_read(asked.plan) else None
        self._keep(Answered(content, outcome.served, *_input(asked.plan), unfit, chat=chat))
        self._reply.set_result(replace(reply, cache="miss"))

    async def _stream(self, asked: PlannedOutcome, stream: OutcomeStream) -> None:
        """Read the answer as fast as it comes, for the client and for those who wait."""
        events: _Events = asyncio.Queue()
        sent = write_events(self._taken(events), include_usage=self._request.include_usage)
        self._reply.set_result(
            Reply(stream.route, stream.reason, stream.model, events=sent, cache="miss")
        )
        streamed = StreamedDocument()
        try:
            async for event in stream.events:
                events.put_nowait(event)
                streamed.add(event)
        except NarrowgateError as error:
            self._access.fail(self._flight, error)
            events.put_nowait(error)
            return
        served = stream.served()
        document = streamed.document(served.model)
        content = Content(document, served.usage, self._record.inputs[0].cost_usd)
        unfit = streamed.unfit or unfit_document(document)
        self._keep(Answered(content, served, *_input(asked.plan), unfit))
        events.put_nowait(None)

    async def _taken(self, events: _Events) -> AsyncIterator[dict[str, Any]]:
        """Yield the events for the leader's client until its own deadline."""
        while True:
            if events.empty():
                following = asyncio.ensure_future(events.get())
                try:
                    await own_wait([following], self._record, self._deadline)
                finally:
                    following.cancel()
                event = following.result()
            else:
                event = events.get_nowait()
            if event is None:
                return
            if isinstance(event, NarrowgateError):
                raise event
            yield event

    def _keep(self, answered: Answered) -> None:
        answered = replace(answered, question=self._similar.question)
        self._access.keep(self._flight, "chat", answered, self._record.context)
        if self._similar_chats is not None:
            content = answered.content
            fresh = FreshAnswer(content.document, content.cost_usd)
            ask = self._chats.fresh(self._request)
            self._similar_chats.answered(self._similar, fresh, ask)


def _is_read(plan: Plan) -> bool:
    """Return whether the router read the chat as a task."""
    return isinstance(plan, TaskPlan) and plan.decision is not None


def _input(plan: Plan) -> tuple[str | None, str | None]:
    """Return the task that a plan answers and its input."""
    if not isinstance(plan, TaskPlan):
        return None, None
    return plan.batch.task, plan.batch.requests[0].text
