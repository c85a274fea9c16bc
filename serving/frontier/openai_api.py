"""OpenAI's chat completions, and of every server that speaks like it."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import openai
from pydantic import SecretStr

from serving.contracts.answer import Usage
from serving.contracts.errors import FrontierStreamBroken
from serving.contracts.frontier_settings import ProviderSettings
from serving.contracts.openai import usage_from_openai
from serving.frontier.failures import with_usage
from serving.frontier.http_errors import unsendable
from serving.frontier.openai_errors import ERRORS, translate
from serving.frontier.provider_api import CachePlan, StreamPart, WholeAnswer
from serving.frontier.transport_errors import read_document, unreadable
from serving.frontier.usage import tier_in

OPENAI_URL = "https://api.openai.com/v1"
_OWN_HOSTS = (".openai.com", ".openai.azure.com")
_SET_BY_US = ("model", "stream", "stream_options")


class OpenAIApi:
    """One OpenAI-compatible server.

    OpenAI itself wants `max_completion_tokens` and takes `prompt_cache_key`; other servers know
    `max_tokens`, and some refuse fields that they do not know.
    """

    # Its current models do not; older ones refuse to be told.
    thinks_by_default = False

    def __init__(self, name: str, settings: ProviderSettings, key: SecretStr | None) -> None:
        self._name = name
        url = settings.base_url or OPENAI_URL
        self._is_openai = settings.base_url is None or f".{urlsplit(url).hostname}".endswith(
            _OWN_HOSTS
        )
        self._secret = key.get_secret_value() if key else None
        self._client = openai.AsyncOpenAI(
            # Given explicitly, so that the SDK reads neither key nor address from the environment.
            api_key=self._secret or "keyless",
            base_url=url,
            max_retries=0,
            timeout=openai.Timeout(
                settings.first_byte_timeout_s, connect=settings.connect_timeout_s, pool=None
            ),
        )

    def request(self, body: Mapping[str, Any], model: str, plan: CachePlan) -> dict[str, Any]:
        """Return the body with what OpenAI or its likes want of it; all else passes unchanged."""
        request = {name: value for name, value in body.items() if name not in _SET_BY_US}
        request["model"] = model
        if self._is_openai:
            request["max_completion_tokens"] = request.pop("max_tokens")
            if plan.routing_digest:
                request.setdefault("prompt_cache_key", f"narrowgate-{plan.routing_digest[:32]}")
        return request

    async def whole(self, request: dict[str, Any]) -> WholeAnswer:
        """Send a request and read its answer."""
        model, messages, rest = _arguments(request)
        try:
            async with self._client.chat.completions.with_streaming_response.create(
                model=model, messages=messages, extra_body=rest
            ) as response:
                return self._read(await read_document(response, self._name, ERRORS), model)
        except ERRORS as error:
            # Not `from error`: it holds the request, key included, and words that may quote it.
            raise translate(error, self._name, self._secret) from None
        except (TypeError, ValueError) as error:
            raise unsendable(self._name, error) from None

    async def stream(self, request: dict[str, Any]) -> AsyncGenerator[StreamPart, None]:
        """Send a request and yield its chunks, the last with usage where the server tells it."""
        model, messages, rest = _arguments(request)
        try:
            stream = await self._client.chat.completions.create(
                model=model,
                messages=messages,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=rest,
            )
        except ERRORS as error:
            raise translate(error, self._name, self._secret) from None
        except (TypeError, ValueError) as error:
            raise unsendable(self._name, error) from None
        try:
            async with aclosing(self._parts(stream, f"{self._name}/{model}")) as parts:
                async for part in parts:
                    yield part
        finally:
            await stream.close()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.close()

    def _read(self, body: dict[str, Any], model: str) -> WholeAnswer:
        usage = usage_from_openai(body.get("usage"))
        choices = body.get("choices")
        if not isinstance(choices, list) or not choices or not all(map(_is_choice, choices)):
            raise with_usage(unreadable(self._name, "it has no choice with a message"), usage)
        body["model"] = f"{self._name}/{model}"
        body.setdefault("object", "chat.completion")
        body.setdefault("created", int(time.time()))
        return WholeAnswer(body, usage, tier_in(body))

    async def _parts(self, stream: Any, model: str) -> AsyncGenerator[StreamPart, None]:
        state = _StreamState()
        try:
            async for event in stream:
                chunk = event.to_dict(mode="json", exclude_unset=True)
                if not _is_chunk(chunk):
                    raise unreadable(self._name, "an event is no chunk of an answer")
                state.take(chunk)
                chunk["model"] = model
                if not chunk["choices"] and "usage" not in chunk:
                    continue
                yield StreamPart(chunk, state.usage, state.service_tier)
        except ERRORS as error:
            # The text was complete: only what it used is missing.
            if state.finished:
                return
            raise self._broken(translate(error, self._name, self._secret), state) from None
        except (ValueError, TypeError, AttributeError, RecursionError):
            # The SDK lets the JSON parser's errors through, and builds models without validation.
            raise self._broken(unreadable(self._name, "an event is no JSON"), state) from None
        if not state.started:
            raise unreadable(self._name, "the stream held no event")
        if not state.finished:
            raise with_usage(
                FrontierStreamBroken(f"the answer of provider {self._name!r} ended unfinished"),
                state.usage,
            )

    def _broken(self, error: Any, state: "_StreamState") -> Any:
        if not state.started:
            return error
        broken = FrontierStreamBroken(
            f"the answer of provider {self._name!r} broke off: {error.message}"
        )
        return with_usage(broken, state.usage)


class _StreamState:
    """What a stream told so far."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.service_tier: str | None = None
        self.started = False
        self._open: set[int] = set()
        self._done: set[int] = set()

    @property
    def finished(self) -> bool:
        return bool(self._done) and self._open <= self._done

    def take(self, chunk: dict[str, Any]) -> None:
        self.started = True
        self.service_tier = tier_in(chunk) or self.service_tier
        if "usage" in chunk:
            usage = usage_from_openai(chunk["usage"])
            self.usage = usage or self.usage
            if usage is None:
                del chunk["usage"]
        for choice in chunk["choices"]:
            self._open.add(choice.get("index", 0))
            if choice.get("finish_reason"):
                self._done.add(choice.get("index", 0))


def _arguments(request: Mapping[str, Any]) -> tuple[str, list[Any], dict[str, Any]]:
    # The messages go with the fields that replace those given by name: the SDK walks through what
    # is given by name, against its types, which takes as long as the whole call otherwise.
    return request["model"], [], {name: v for name, v in request.items() if name != "model"}


def _is_choice(choice: object) -> bool:
    return isinstance(choice, dict) and isinstance(choice.get("message"), dict)


def _is_chunk(chunk: object) -> bool:
    if not isinstance(chunk, dict) or not isinstance(chunk.get("choices"), list):
        return False
    return all(isinstance(c, dict) and isinstance(c.get("delta"), dict) for c in chunk["choices"])
