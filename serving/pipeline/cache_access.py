"""Which requests use the cache, under which keys, and which answers may be shared and stored."""

import asyncio
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from serving.cache.cacheable import Reason, unfit_chat
from serving.cache.entry import Content, Entry, Kind, PackedEntry, Question
from serving.cache.flight import Flight
from serving.cache.key import chat_fingerprint, chat_key, task_key
from serving.cache.service import CacheService, Looked
from serving.contracts.answer import CacheKind
from serving.contracts.context import RequestContext
from serving.contracts.deadline import deadline_exceeded
from serving.contracts.errors import (
    BudgetExceeded,
    DeadlineExceeded,
    FrontierTimeout,
    NarrowgateError,
)
from serving.contracts.requests import TASK_PREFIX, ChatRequest, TaskBatch
from serving.contracts.task_spec import TaskSpec
from serving.pipeline.exit_recorder import RequestRecord, Served
from serving.pipeline.in_force import InForce

_OF_THE_LEADER = (DeadlineExceeded, FrontierTimeout, BudgetExceeded)
"""Errors that come from the leader's own limits; a request that waits may have others."""

_LONG_TEXT = 100_000
"""Keys of texts with more characters are made in a thread: that takes longer than 1 ms."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that may be kept.

    task, text: of the task that it answers, None without one. unfit: why it must not be kept.
    question: by whose meaning it may be found; None where its key alone finds it. chat: that was
    read as the task; None for others.
    """

    content: Content
    served: Served
    task: str | None = None
    text: str | None = None
    unfit: Reason | None = None
    question: Question | None = None
    chat: str | None = None


class CacheAccess:
    """The cache for the steps of the request path. specs: tasks by name. policy: see chat_key."""

    def __init__(
        self, cache: CacheService, specs: Mapping[str, TaskSpec], in_force: InForce, policy: str
    ) -> None:
        self.cache = cache
        self._specs = specs
        self._in_force = in_force
        self._policy = policy

    async def chat_key(self, request: ChatRequest, context: RequestContext) -> str | None:
        """Return the key of a chat; None where it is neither looked up nor stored."""
        if request.text_chars > _LONG_TEXT:
            reason, key = await asyncio.to_thread(self.found_key, request, context)
        else:
            reason, key = self.found_key(request, context)
        if reason is not None:
            self.cache.events.cache_bypassed("chat", reason)
        return key

    def found_key(
        self, request: ChatRequest, context: RequestContext
    ) -> tuple[Reason | None, str | None]:
        """Return the key of a chat; or None, with the reason why it may not be cached."""
        task = request.model.removeprefix(TASK_PREFIX)
        reason = self._bypass(context, None if task == request.model else task)
        reason = reason or unfit_chat(request, self.cache.settings.sampled)
        return reason, None if reason is not None else self.key_of(request, context)

    def equal_key(self, request: ChatRequest | TaskBatch, context: RequestContext) -> str | None:
        """Return what equal requests have in common; None where they do not share an answer.

        Its answer is both looked up and stored. Nothing is counted.
        """
        if context.options.cache != "use" or not self.stores(context):
            return None
        if isinstance(request, ChatRequest):
            return self.found_key(request, context)[1]
        if self._bypass(context, request.task) is not None:
            return None
        return " ".join(self._task_keys(request, context))

    async def held(self, keys: Mapping[str, RequestContext]) -> set[str]:
        """Return those keys whose answers may be served now. Nothing is counted."""
        found = dict(await self.cache.find(list(keys)) or {}) if keys else {}
        found |= {key: one for key in keys if (one := self.cache.flights.unwritten(key))}
        return {
            key
            for key, entry in found.items()
            if self.is_servable(entry, keys[key]) and entry.aside is None
        }

    def key_of(self, request: ChatRequest, context: RequestContext) -> str:
        """Return the key of a chat, also of one that may not be cached."""
        return chat_key(request, context.options, self.namespace(context), self._policy)

    def fingerprint(self, request: ChatRequest, context: RequestContext) -> str:
        """Return the digest of all that decides a chat's answer besides its last turn."""
        return chat_fingerprint(request, context.options, self.namespace(context), self._policy)

    async def task_keys(self, batch: TaskBatch, context: RequestContext) -> list[str]:
        """Return the inputs' keys; none where they are neither looked up nor stored."""
        reason = self._bypass(context, batch.task)
        if reason is not None:
            for _ in batch.requests:
                self.cache.events.cache_bypassed("task", reason)
            return []
        if sum(len(one.text) for one in batch.requests) > _LONG_TEXT:
            return await asyncio.to_thread(self._task_keys, batch, context)
        return self._task_keys(batch, context)

    def _task_keys(self, batch: TaskBatch, context: RequestContext) -> list[str]:
        spec, namespace = self._specs[batch.task], self.namespace(context)
        return [
            task_key(one, spec, context.options, namespace, self._policy) for one in batch.requests
        ]

    async def find(
        self, keys: Sequence[str], record: RequestRecord, kind: Kind
    ) -> dict[str, Entry]:
        """Return the entries that may be served now, by key; note the lookup on the record."""
        context = record.context
        if not keys or context.options.cache == "refresh":
            return {}
        started_s = time.monotonic()
        found = await self.cache.find(keys)
        seconds = (time.monotonic() - started_s) / len(keys)
        record.looked_up(seconds)
        entries = {
            key: newest
            for key, entry in (found or {}).items()
            if self.is_servable(newest := self._newest(entry), context) and newest.aside is None
        }
        for key in keys:
            outcome: Looked = "hit" if key in entries else "miss"
            outcome = "unavailable" if found is None else outcome
            self.cache.events.cache_looked_up(kind, outcome, seconds)
        return entries

    def stores(self, context: RequestContext) -> bool:
        """Return whether the answer of a request may be stored and shared."""
        options = context.options
        return options.cache != "no-store" and options.audit != "never"

    def join(self, key: str, context: RequestContext) -> tuple[Flight, bool]:
        """Return the flight of a key, and whether the request leads it. It must leave it."""
        flights = self.cache.flights
        answer = flights.answer(key)
        is_stale = answer is not None and not self.is_servable(answer, context)
        if is_stale or context.options.cache == "refresh":
            return flights.lead(key), True
        return flights.join(key, context.deadline)

    async def shared(self, flight: Flight, record: RequestRecord, kind: Kind) -> Entry | None:
        """Return the answer that another request asks for; None where it cannot be shared.

        Raises that request's error, and DeadlineExceeded at this one's own deadline.
        """
        try:
            async with asyncio.timeout(record.context.deadline.remaining_s()):
                result = await asyncio.shield(flight.result)
        except TimeoutError as error:
            raise deadline_exceeded() from error
        if isinstance(result, NarrowgateError) and not isinstance(result, _OF_THE_LEADER):
            # A copy, because the calls that the original names are the leader's.
            raise copy.copy(result)
        if not isinstance(result, Entry) or not self.is_servable(result, record.context):
            return None
        self.cache.events.cache_looked_up(kind, "shared", None)
        return result

    def keep(self, flight: Flight, kind: Kind, answered: Answered, context: RequestContext) -> None:
        """Share an answer with those who wait and store it, where it may be kept."""
        packed = self._packed(flight.key, kind, answered, context)
        if packed is None:
            self.fail(flight, None)
        else:
            flight.resolve(packed.entry)
            self.cache.store(packed, flight)

    def fail(self, flight: Flight, error: NarrowgateError | None) -> None:
        """Share an error with those who wait; None: they ask themselves."""
        flight.resolve(error)
        self.cache.flights.retire(flight)

    def _bypass(self, context: RequestContext, task: str | None) -> Reason | None:
        caller = context.caller
        if context.options.cache == "bypass":
            return "asked"
        if self.cache.settings.excludes(caller.tenant, caller.key_id, task):
            return "excluded"
        return None

    def _newest(self, entry: Entry) -> Entry:
        """Return the answer that replaces an entry and is not yet written, or the entry."""
        return self.cache.flights.unwritten(entry.key) or entry

    def namespace(self, context: RequestContext) -> str:
        """Return the namespace of a request's caller."""
        return self.cache.settings.namespace_of(context.caller.tenant)

    def is_servable(self, entry: Entry, context: RequestContext) -> bool:
        """Return whether an entry is the caller's, young enough, and still in force.

        Whether it was put aside is not decided here.
        The key holds the namespace; it is compared again because nothing else keeps tenants apart.
        """
        if entry.namespace != self.namespace(context) or not entry.is_live(self.cache.now()):
            return False
        return self._in_force.covers(entry.origin, context)

    def _packed(
        self, key: str, kind: Kind, answered: Answered, context: RequestContext
    ) -> PackedEntry | None:
        cache, reason = self.cache, answered.unfit
        settings, caller = cache.settings, context.caller
        if settings.excludes(caller.tenant, caller.key_id, answered.task):
            # A chat's task is known only now.
            reason = "excluded"
        packed = None
        if reason is None:
            namespace, now = self.namespace(context), cache.now()
            ttl_s = settings.ttl_of(namespace)
            if context.options.cache_ttl_s is not None:
                ttl_s = min(ttl_s, context.options.cache_ttl_s)
            origin = self._in_force.origin(
                answered.served, answered.task, answered.text, answered.chat, context
            )
            packed = PackedEntry.of(
                Entry(
                    key, namespace, caller.tenant, context.request_id, kind, origin,
                    answered.content, now, now + timedelta(seconds=ttl_s),
                    context.options.end_user,
                ),
                context.arrived_at,
                answered.question,
            )  # fmt: skip
            if len(packed.data) <= settings.max_entry_bytes:
                return packed
            reason = "oversized"
        cache.events.cache_not_stored(kind, reason)
        return None


def served_from(entry: Entry, kind: CacheKind = "exact") -> Served:
    """Return what the ledger notes of a hit.

    An answer of a frontier model replaces the same call, so it counts as a saving; that of a local
    model only within its bound.
    """
    origin = entry.origin
    return Served(
        "cache", "cached", origin.model, entry.content.usage,
        guaranteed=True if origin.route == "frontier" else origin.guaranteed,
        evidence=origin.evidence, claim=origin.claim, cache_entry=entry.id,
        avoided_usd=entry.content.cost_usd, cache_kind=kind,
    )  # fmt: skip
