"""The request path: read, look up, plan, run, write.

Each step is entered once. The record is open from the plan to the last byte of the reply: it
closes every input's ledger entry, however the request ends.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from serving.contracts.context import RequestContext
from serving.contracts.routing import Router
from serving.pipeline.cache_access import CacheAccess
from serving.pipeline.cached_chat import CachedChat
from serving.pipeline.cached_task import CachedTask
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.known_vectors import KnownVectors
from serving.pipeline.plan import Plan, Planner, Policy
from serving.pipeline.read import read_chat, read_completion, read_tasks
from serving.pipeline.runner import Runner
from serving.pipeline.similar_chat import SimilarChats
from serving.pipeline.write import Reply, TaskReply, write_reply, write_tasks


@dataclass(frozen=True, slots=True)
class RequestPath:
    """The steps, wired in serving.app.

    runners: by kind of plan. max_inputs: of one request. known: vectors of instructions, for the
    router. cache: None where nothing is cached; else
    it comes between reading and planning. similar: looks chats up by meaning; None where nothing
    is.
    """

    policy: Policy
    router: Router
    recorder: ExitRecorder
    runners: Mapping[type[Plan], Runner[Any, Any]]
    max_inputs: int
    known: KnownVectors
    cache: CacheAccess | None = None
    similar: SimilarChats | None = None

    @asynccontextmanager
    async def chat(self, body: Any, context: RequestContext) -> AsyncIterator[Reply]:
        """Answer a chat completion; send the reply inside the context. Raises NarrowgateError."""
        request = read_chat(body, self.max_inputs)
        async with self.recorder.open(context, "chat") as record:
            if self.cache is not None:
                cached = CachedChat(self.cache, self._planner, self.runners, self.similar)
                async with cached.answered(request, record) as reply:
                    yield reply
                return
            ran = await record.run(self._planner, self.runners, request)
            yield write_reply(request, ran.plan, ran.outcome, context)

    @asynccontextmanager
    async def completion(self, body: Any, context: RequestContext) -> AsyncIterator[Reply]:
        """Continue a prompt on the local model that the body names. As `chat`."""
        request = read_completion(body, self.max_inputs)
        async with self.recorder.open(context, "completions") as record:
            ran = await record.run(self._planner, self.runners, request)
            yield write_reply(request, ran.plan, ran.outcome, context)

    @asynccontextmanager
    async def tasks(
        self, task: str, body: Any, context: RequestContext
    ) -> AsyncIterator[TaskReply]:
        """Answer the inputs of one task, each with an answer or an error. As `chat`."""
        batch = read_tasks(task, body, self.policy.specs, self.max_inputs)
        async with self.recorder.open(context, "task", batch.units) as record:
            if self.cache is not None:
                cached = CachedTask(self.cache, self._planner, self.runners)
                async with cached.answered(batch, record) as reply:
                    yield reply
                return
            outcomes = await record.run_batch(self._planner, self.runners, batch)
            yield write_tasks(batch, outcomes)

    @property
    def _planner(self) -> Planner:
        return Planner(self.policy, self.router, self.known)
