"""Anthropic's Messages API, spoken through its SDK."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import anthropic
from pydantic import SecretStr

from serving.contracts.errors import FrontierError, FrontierRejected, FrontierStreamBroken
from serving.contracts.frontier_settings import ProviderSettings
from serving.frontier.anthropic_answer import ChunkTranslator, whole_answer
from serving.frontier.anthropic_errors import ERRORS, translate
from serving.frontier.anthropic_request import anthropic_request, cache_control
from serving.frontier.failures import with_usage
from serving.frontier.http_errors import unsendable
from serving.frontier.prompt_cache import with_breakpoints
from serving.frontier.provider_api import CachePlan, StreamPart, WholeAnswer
from serving.frontier.transport_errors import read_document, unreadable

ANTHROPIC_URL = "https://api.anthropic.com"


class AnthropicApi:
    """Anthropic, or a server that speaks its Messages API."""

    thinks_by_default = True

    def __init__(self, name: str, settings: ProviderSettings, key: SecretStr | None) -> None:
        self._name = name
        self._secret = key.get_secret_value() if key else None
        self._client = anthropic.AsyncAnthropic(
            # Given explicitly, so that the SDK reads neither key nor address from the environment.
            api_key=self._secret or "keyless",
            base_url=settings.base_url or ANTHROPIC_URL,
            max_retries=0,
            timeout=anthropic.Timeout(
                settings.first_byte_timeout_s, connect=settings.connect_timeout_s, pool=None
            ),
        )

    def request(self, body: Mapping[str, Any], model: str, plan: CachePlan) -> dict[str, Any]:
        """Return the body in Anthropic's words, with breakpoints for the prefixes to cache."""
        placed = [(prefix, cache_control(ttl)) for prefix, ttl in plan.breakpoints]
        try:
            return anthropic_request(with_breakpoints(body, placed), model)
        except (AttributeError, KeyError, TypeError) as error:
            raise FrontierRejected(
                f"the request is no chat completion request ({type(error).__name__})",
                field="messages",
                fix="send messages and tools as OpenAI's chat completions describe them",
            ) from error

    async def whole(self, request: dict[str, Any]) -> WholeAnswer:
        """Send a request and read its answer."""
        try:
            async with self._client.messages.with_streaming_response.create(
                **_arguments(request)
            ) as response:
                document = await read_document(response, self._name, ERRORS)
                return self._read(document, request["model"])
        except ERRORS as error:
            # Not `from error`: it holds the request, key included, and words that may quote it.
            raise translate(error, self._name, self._secret) from None
        except (TypeError, ValueError) as error:
            raise unsendable(self._name, error) from None

    async def stream(self, request: dict[str, Any]) -> AsyncGenerator[StreamPart, None]:
        """Send a request and yield its chunks, the last with usage."""
        try:
            stream = await self._client.messages.create(stream=True, **_arguments(request))
        except ERRORS as error:
            raise translate(error, self._name, self._secret) from None
        except (TypeError, ValueError) as error:
            raise unsendable(self._name, error) from None
        try:
            translator = ChunkTranslator(f"{self._name}/{request['model']}")
            async with aclosing(self._parts(stream, translator)) as parts:
                async for part in parts:
                    yield part
        finally:
            await stream.close()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _read(self, message: dict[str, Any], model: str) -> WholeAnswer:
        answer = whole_answer(message, f"{self._name}/{model}")
        if answer is None:
            raise unreadable(self._name, "it is not a message")
        return answer

    async def _parts(
        self, stream: Any, translator: ChunkTranslator
    ) -> AsyncGenerator[StreamPart, None]:
        try:
            async for event in stream:
                for part in translator.feed(event.to_dict(mode="json", exclude_unset=True)):
                    yield part
        except ERRORS as error:
            # The text was complete: only what it used may be missing.
            if translator.finished:
                return
            raise self._broken(translate(error, self._name, self._secret), translator) from None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            # The SDK lets the JSON parser's errors through, and builds models without validation.
            fault = unreadable(self._name, "an event is not what the API describes")
            raise self._broken(fault, translator) from None
        if not translator.started:
            raise unreadable(self._name, "the stream held no event")
        if not translator.finished:
            raise self._broken(unreadable(self._name, "it ended unfinished"), translator)

    def _broken(self, error: FrontierError, translator: ChunkTranslator) -> FrontierError:
        if not translator.started:
            return error
        broken = FrontierStreamBroken(
            f"the answer of provider {self._name!r} broke off: {error.message}"
        )
        return with_usage(broken, translator.usage)


def _arguments(request: Mapping[str, Any]) -> dict[str, Any]:
    # As for OpenAI: what the SDK is given by name it walks through, against its types.
    named = {name: request[name] for name in ("model", "max_tokens")}
    rest = {name: value for name, value in request.items() if name not in named}
    return {**named, "messages": [], "extra_body": rest}
