"""The engine deployment: ray.serve.llm's server with label scoring and batched generation.

Runs inside a replica. The gateway reaches it through serving.local.client.
"""

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import vllm
from prometheus_client import REGISTRY, generate_latest
from pydantic import ValidationError
from ray.serve.llm import LLMServer
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from vllm import SamplingParams
from vllm.inputs import TokensPrompt
from vllm.v1.engine.exceptions import EngineDeadError

from serving.artifacts.load_check import CONFIG_KEY, RunningEngine
from serving.contracts.engine import (
    EngineInfo,
    GenerateOutput,
    GenerateWork,
    ScoreOutput,
    ScoreWork,
    ScoringPoint,
)
from serving.contracts.errors import EngineFailure, ModelUnavailable, NarrowgateError
from serving.contracts.openai import OpenAIReply
from serving.local.engine_output import generate_output, score_output
from serving.local.exclusion import ExclusiveKinds
from serving.local.sampling import generation_params, scoring_params

_SCORING = "label scoring"
_ALTERNATIVES = "top alternatives"


class EngineServer(LLMServer):  # type: ignore[misc]  # untyped upstream
    """vLLM in a Ray Serve replica. Every method may be called over a handle."""

    # Ray Serve awaits constructors.
    async def __init__(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[misc]
        self._kinds = ExclusiveKinds()
        config = args[0] if args else kwargs["llm_config"]
        check = config.experimental_configs[CONFIG_KEY]
        running = RunningEngine("vllm", vllm.__version__, config.engine_kwargs, dict(os.environ))
        # Before the weights are loaded, in a thread: reading gigabytes must not hold the loop.
        self._attestation = await asyncio.to_thread(check.verify, running)
        await super().__init__(*args, **kwargs)
        await self._warm_up()

    async def describe(self) -> EngineInfo:
        """Return what is loaded. Raises ModelUnavailable when the engine is dead."""
        try:
            await self.check_health()
        except EngineDeadError as error:
            raise _dead() from error
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

    async def score(self, works: Sequence[ScoreWork]) -> list[ScoreOutput | NarrowgateError]:
        """Score every input's labels in one pass; outputs are in the order of the works.

        A failed input becomes an error in its place. Raises ModelUnavailable for a dead engine.
        """
        async with self._kinds.hold(_SCORING):
            return await asyncio.gather(*(self._score(work) for work in works))

    async def generate(
        self, works: Sequence[GenerateWork]
    ) -> AsyncIterator[list[GenerateOutput | NarrowgateError]]:
        """Generate for every input at once; yields one list, in the order of the works.

        A failed input becomes an error in its place. Raises ModelUnavailable for a dead engine.
        A generator because Ray Serve cancels those in the replica when the caller leaves; over
        gRPC it does not cancel a plain call, and the engine would go on for nobody.
        """
        yield await asyncio.gather(*(self._generate(work) for work in works))

    async def openai(
        self, endpoint: str, body: dict[str, Any], request_id: str
    ) -> AsyncIterator[OpenAIReply | str]:
        """Answer a chat completion or completion in vLLM's own OpenAI layer.

        Yields one OpenAIReply, then, for a stream, server-sent events as text.
        """
        request_class = ChatCompletionRequest if endpoint == "chat" else CompletionRequest
        try:
            request = request_class(**body, request_id=request_id)
        except ValidationError as error:
            yield _invalid(error)
            return
        run = self.engine.chat if endpoint == "chat" else self.engine.completions
        async with AsyncExitStack() as held:
            if _asks_alternatives(body):
                await held.enter_async_context(self._kinds.hold(_ALTERNATIVES))
            started = False
            try:
                async for item in run(request):
                    # By its attribute: the engine yields a base class of the public ErrorResponse.
                    if (refused := getattr(item, "error", None)) is not None:
                        yield OpenAIReply(int(refused.code), {"error": refused.model_dump()})
                        return
                    if not isinstance(item, str):
                        yield OpenAIReply(200, item.model_dump(exclude_none=False))
                        return
                    if not started:
                        started = True
                        if (reply := _refusal(item)) is not None:
                            yield reply
                            return
                        yield OpenAIReply(200, None)
                    yield item
            except EngineDeadError as error:
                raise _dead() from error

    async def metrics(self) -> str:
        """Return this replica's engine metrics in Prometheus text format."""
        return generate_latest(REGISTRY).decode()

    async def _warm_up(self) -> None:
        # The first scoring, the first grammar and the first alternatives each set something up
        # that takes up to seconds. A replica is ready when no client has to wait for that.
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
        # ray.serve.llm offers no public way to the engine client that it wraps.
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
        except EngineDeadError as error:
            raise _dead() from error
        except ValueError as error:
            raise EngineFailure(f"the engine refused the work: {error}") from error
        if final is None or not final.finished or not final.outputs[0].token_ids:
            raise EngineFailure("the engine ended the request without an output")
        return final


def _asks_alternatives(body: dict[str, Any]) -> bool:
    # top_logprobs in a chat completion, logprobs in a completion; 0 asks for sampled tokens alone.
    top = body.get("top_logprobs") if "messages" in body else body.get("logprobs")
    return isinstance(top, int) and top > 0


def _refusal(event: str) -> OpenAIReply | None:
    # What vLLM finds wrong once a stream is set up comes as its first event; nothing has been sent
    # by then, so the client can still have a proper status.
    if not event.startswith('data: {"error"'):
        return None
    error = json.loads(event.removeprefix("data: "))["error"]
    return OpenAIReply(int(error["code"]), {"error": error})


def _dead() -> ModelUnavailable:
    return ModelUnavailable("the model's engine has died and is being restarted", retry_after_s=30)


def _invalid(error: ValidationError) -> OpenAIReply:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in problem["loc"]) or None
    message = problem["msg"] if field is None else f"{field}: {problem['msg']}"
    return OpenAIReply(
        400,
        {
            "error": {
                "message": message,
                "type": "invalid_request_error",
                "param": field,
                "code": "invalid_request",
            }
        },
    )
