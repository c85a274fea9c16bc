"""The engine deployment: ray.serve.llm's server with label scoring and batched generation.

Runs inside a replica. The gateway reaches it through serving.local.client.
"""

import asyncio
import json
import os
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing
from typing import Any

import vllm
from prometheus_client import REGISTRY, generate_latest
from ray.serve.llm import LLMServer
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from vllm import SamplingParams
from vllm.inputs import TokensPrompt

from serving.artifacts.load_check import (
    CONFIG_KEY,
    METRICS_PORT_KEY,
    LoadCheck,
    RunningEngine,
    VerifiedModel,
)
from serving.artifacts.probes import probe_works
from serving.artifacts.verified_tokenizer import load_tokenizer
from serving.contracts.engine import (
    EngineInfo,
    GenerateOutput,
    GenerateWork,
    ScoreOutput,
    ScoreWork,
    ScoringPoint,
)
from serving.contracts.errors import AttestationRefused, EngineFailure, NarrowgateError
from serving.contracts.openai import OpenAIReply
from serving.local.engine_work import (
    generate_output,
    generation_params,
    score_output,
    scoring_params,
)
from serving.local.json_schema import refuse_broken_schema
from serving.local.metrics_server import metrics_served
from serving.local.request_errors import (
    engine_failure,
    field_at_fault,
    grammar_refusal,
    invalid,
    is_about_request,
    is_dead,
    is_failed_generation,
    refusal,
    refused_item,
    translates_errors,
    translates_stream_errors,
)
from serving.local.step_separation import StepSeparation

_SCORING = "label scoring"
_ALTERNATIVES = "top alternatives"
_ERROR_EVENT = 'data: {"error"'


class EngineServer(LLMServer):  # type: ignore[misc]  # untyped upstream
    """vLLM in a Ray Serve replica. Every method may be called over a handle."""

    # Ray Serve awaits constructors.
    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]
        self._steps = StepSeparation()
        config = args[0] if args else kwargs["llm_config"]
        check = config.experimental_configs[CONFIG_KEY]
        running = RunningEngine("vllm", vllm.__version__, config.engine_kwargs, dict(os.environ))
        # Before the weights are loaded, in a thread: reading gigabytes must not hold the loop.
        verified = await asyncio.to_thread(check.verify, running)
        await super().__init__(*args, **kwargs)
        self._attestation = await self._prove(check, verified)
        await self._warm_up()
        # Until the process ends.
        self._scraped = ExitStack()
        port = config.experimental_configs.get(METRICS_PORT_KEY)
        self._scraped.enter_context(metrics_served(port, REGISTRY))

    @translates_errors
    async def check_health(self) -> None:
        """Return when the engine lives. Called by Ray Serve's controller."""
        await super().check_health()

    @translates_errors
    async def describe(self) -> EngineInfo:
        """Return the loaded model's facts. Raises ModelUnavailable if the engine is dead."""
        await self.check_health()
        config = self._client.vllm_config
        return EngineInfo(
            model_id=self._llm_config.model_id,
            engine="vllm",
            engine_version=vllm.__version__,
            max_model_len=config.model_config.max_model_len,
            quantization=config.model_config.quantization,
            dtype=str(config.model_config.dtype).removeprefix("torch."),
            attestation=self._attestation,
        )

    @translates_errors
    async def score(self, works: Sequence[ScoreWork]) -> list[ScoreOutput | NarrowgateError]:
        """Score every input's labels in one pass; outputs are in the works' order.

        A failed input becomes an error in its place. Raises ModelUnavailable for a dead engine.
        """
        async with self._steps.hold(_SCORING):
            return await asyncio.gather(*(self._score(work) for work in works))

    @translates_stream_errors
    async def generate(
        self, works: Sequence[GenerateWork]
    ) -> AsyncGenerator[list[GenerateOutput | NarrowgateError], None]:
        """Generate for every input at once; yields one list, in the order of the works.

        A failed input becomes an error in its place. Raises ModelUnavailable for a dead engine.
        A generator because Ray Serve cancels those in the replica when the caller leaves; over gRPC
        it does not cancel a plain call, and the engine would continue without a caller.
        """
        yield await asyncio.gather(*(self._generate(work) for work in works))

    @translates_stream_errors
    async def openai(
        self, endpoint: str, body: dict[str, Any], request_id: str
    ) -> AsyncGenerator[OpenAIReply | str, None]:
        """Answer a chat completion or completion in vLLM's own OpenAI layer.

        Yields one OpenAIReply, then, for a stream, server-sent events as text.
        """
        request = _built(endpoint, body, request_id)
        if isinstance(request, OpenAIReply):
            yield request
            return
        run = self.engine.chat if endpoint == "chat" else self.engine.completions
        async with AsyncExitStack() as held:
            if _asks_alternatives(request):
                await held.enter_async_context(self._steps.hold(_ALTERNATIVES))
            items = await held.enter_async_context(aclosing(run(request)))
            first = await _first(items, body)
            if isinstance(first, OpenAIReply):
                yield first
                return
            yield OpenAIReply(200, None)
            yield first
            async for event in items:
                yield _translated_event(event, body)

    @translates_errors
    async def metrics(self) -> str:
        """Return this replica's engine metrics in Prometheus text format."""
        return generate_latest(REGISTRY).decode()

    async def _prove(self, check: LoadCheck, verified: VerifiedModel | None) -> str | None:
        """Check the loaded engine against the attested probes; return the attestation's digest."""
        if verified is None:
            return None
        tokenizer = await asyncio.to_thread(load_tokenizer, check)
        predicate = verified.attestation.predicate
        try:
            works = probe_works(predicate.probes, tokenizer, predicate.engine.max_model_len)
        except AttestationRefused as error:
            check.refused(error)
            return None
        kernels = await self._client.collective_rpc("narrowgate_kernels")
        outputs = await self.score(works) if works else []
        digest: str | None = await asyncio.to_thread(check.accept, verified, kernels[0], outputs)
        return digest

    async def _warm_up(self) -> None:
        # The first scoring, the first grammar and the first alternatives each set something up
        # that takes up to seconds. A replica is ready when no client waits for that.
        prompt = (0, 1, 2, 3)
        await self.score([ScoreWork(prompt, (ScoringPoint((), (0, 1)),))])
        await self._generate(GenerateWork(prompt, max_tokens=2, json_schema={"type": "array"}))
        message = {"role": "user", "content": "Hello"}
        body = {"model": self._llm_config.model_id, "messages": [message], "max_tokens": 2,
                "logprobs": True, "top_logprobs": 2}  # fmt: skip
        async for _ in self.openai("chat", body, "warm-up"):
            pass

    @property
    def _client(self) -> Any:
        # ray.serve.llm has no public access to the engine client that it wraps.
        return self.engine._engine_client

    async def _score(self, work: ScoreWork) -> ScoreOutput | NarrowgateError:
        try:
            outputs = await asyncio.gather(
                *(
                    self._run((*work.prompt_token_ids, *point.suffix), scoring_params(point))
                    for point in work.points
                )
            )
        except EngineFailure as error:
            return error
        return score_output(work, outputs)

    async def _generate(self, work: GenerateWork) -> GenerateOutput | NarrowgateError:
        try:
            output = await self._run(work.prompt_token_ids, generation_params(work))
        except EngineFailure as error:
            return error
        return generate_output(output)

    async def _run(self, prompt: tuple[int, ...], params: SamplingParams) -> Any:
        # Leaving the generator early, cancelled or not, aborts the request in the engine.
        final = None
        try:
            async for output in self._client.generate(
                TokensPrompt(prompt_token_ids=list(prompt)), params, uuid.uuid4().hex
            ):
                final = output
        except Exception as error:  # noqa: BLE001  # every error of vLLM is translated
            failure: NarrowgateError | None = engine_failure(error)
        else:
            failure = None
        if failure is not None:
            # Not chained: the text of vLLM's error may contain the client's, and Ray logs chains.
            raise failure
        if final is None or not final.finished or not final.outputs[0].token_ids:
            raise EngineFailure("the engine ended the request without an output")
        return final


def _built(endpoint: str, body: dict[str, Any], request_id: str) -> Any:
    """Return vLLM's request, or the error reply for an invalid body."""
    request_class = ChatCompletionRequest if endpoint == "chat" else CompletionRequest

    def build(fields: Mapping[str, Any]) -> Any:
        return request_class(**fields, request_id=request_id)

    try:
        refuse_broken_schema(body)
        return build(body)
    except Exception as error:  # noqa: BLE001  # a pure function of the body: a client's error
        reply = refusal(error, body)
    assert reply.body is not None
    if reply.body["error"]["param"] is None and (field := field_at_fault(build, body)) is not None:
        return invalid(field, reply.body["error"]["message"])
    return reply


async def _first(items: AsyncIterator[Any], body: dict[str, Any]) -> OpenAIReply | str:
    """Return the whole reply, or the first event of a stream.

    vLLM reports an error as an exception, as an object, or as a stream's first event. Nothing has
    been sent by then, so the client gets the right status.
    """
    try:
        item = await anext(items)
    except Exception as error:  # noqa: BLE001  # classified here as the client's or the engine's
        if is_about_request(error) and not is_dead(error):
            return refusal(error, body)
        refused_schema = grammar_refusal(body) if is_failed_generation(error) else None
        if refused_schema is not None:
            return refused_schema
        failure: NarrowgateError | None = engine_failure(error)
    else:
        failure = None
    if failure is not None:
        raise failure
    # By attribute, because the engine yields a base class of the public ErrorResponse.
    refused = getattr(item, "error", None)
    if refused is None and isinstance(item, str) and item.startswith(_ERROR_EVENT):
        refused = json.loads(item.removeprefix("data: "))["error"]
    if refused is not None:
        return _raised(refused_item(refused, body))
    return item if isinstance(item, str) else OpenAIReply(200, item.model_dump(exclude_none=False))


def _raised(reply: OpenAIReply | EngineFailure) -> OpenAIReply:
    if isinstance(reply, EngineFailure):
        raise reply
    return reply


def _translated_event(event: str, body: dict[str, Any]) -> str:
    """Return a stream's event; an error of vLLM within the stream is translated."""
    if not event.startswith(_ERROR_EVENT):
        return event
    reply = refused_item(json.loads(event.removeprefix("data: "))["error"], body)
    error = (
        {"message": reply.message, "type": "server_error", "param": None, "code": reply.code}
        if isinstance(reply, EngineFailure)
        else (reply.body or {})["error"]
    )
    return f"data: {json.dumps({'error': error})}\n\n"


def _asks_alternatives(request: Any) -> bool:
    # top_logprobs in a chat completion, logprobs in a completion; 0 asks for sampled tokens only.
    top = request.top_logprobs if isinstance(request, ChatCompletionRequest) else request.logprobs
    return bool(top) and top > 0
