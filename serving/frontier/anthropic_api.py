"""Anthropic's Messages API, called through its SDK."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import anthropic
import httpx2
from pydantic import SecretStr

from serving.contracts.errors import FrontierError, FrontierRejected, FrontierStreamBroken
from serving.contracts.frontier_settings import ProviderSettings
from serving.frontier.anthropic_answer import AnthropicStream, whole_answer
from serving.frontier.anthropic_errors import ERRORS, translate
from serving.frontier.anthropic_request import anthropic_request, cache_control
from serving.frontier.failures import with_usage
from serving.frontier.http_errors import (
    error_of,
    names_error,
    refusal_from,
    unreadable,
    unsendable,
)
from serving.frontier.prompt_cache import with_breakpoints
from serving.frontier.provider_api import KEEP_ALIVE, CachePlan, StreamPart, WholeAnswer
from serving.frontier.provider_data import (
    longest_stream,
    read_events,
    read_json,
    read_rest,
    stream_fault,
    within,
)
from serving.frontier.transport import ProviderClient, posted, read_document
from serving.frontier.usage import usage_from_anthropic

ANTHROPIC_URL = "https://api.anthropic.com"
_PATH = "/v1/messages"


class AnthropicApi:
    """Anthropic, or a server that speaks its Messages API."""

    thinks_by_default = True

    def __init__(self, name: str, settings: ProviderSettings, key: SecretStr | None) -> None:
        self._name = name
        self._secret = key.get_secret_value() if key else None
        url = settings.base_url or ANTHROPIC_URL
        timeout = anthropic.Timeout(
            settings.first_byte_timeout_s, connect=settings.connect_timeout_s, pool=None
        )
        self.client = anthropic.AsyncAnthropic(
            # Given explicitly, so that the SDK reads neither key nor address from the environment.
            api_key=self._secret or "keyless",
            base_url=url,
            max_retries=0,
            timeout=timeout,
            http_client=ProviderClient(url, timeout, settings.headers, settings.key_header),
        )

    def request(self, body: Mapping[str, Any], model: str, plan: CachePlan) -> dict[str, Any]:
        """Return the body in Anthropic's format, with breakpoints for the prefixes to cache."""
        placed = [(prefix, cache_control(ttl)) for prefix, ttl in plan.breakpoints]
        try:
            return anthropic_request(with_breakpoints(body, placed), model)
        except (AttributeError, KeyError, TypeError) as error:
            raise FrontierRejected(
                f"the request is not a chat completion request ({type(error).__name__})",
                field="messages",
                fix="send messages and tools as OpenAI's chat completions describe them",
            ) from error

    async def whole(self, request: dict[str, Any]) -> WholeAnswer:
        """Send a request and read its answer."""
        try:
            async with posted(self.client, _PATH, request) as response:
                document = await read_document(response.aiter_bytes(), self._name, ERRORS)
                return self.read(document, request["model"])
        except ERRORS as error:
            # Not `from error`: it holds the request, key included, and text that may quote it.
            raise translate(error, self._name, self._secret) from None
        except (TypeError, ValueError) as error:
            raise unsendable(self._name, error) from None

    async def stream(self, request: dict[str, Any]) -> AsyncGenerator[StreamPart, None]:
        """Send a request and yield its parts."""
        reader = AnthropicStream(f"{self._name}/{request['model']}")
        try:
            async with (
                posted(self.client, _PATH, {**request, "stream": True}) as response,
                aclosing(self._parts(response, reader, longest_stream(request))) as parts,
            ):
                async for part in parts:
                    yield part
        except ERRORS as error:
            if not reader.is_finished:
                raise self._broken(translate(error, self._name, self._secret), reader) from None
            # A complete answer stays complete; only its usage may be missing.
            yield StreamPart(None, is_finished=True, is_cut=True)
        except (TypeError, ValueError) as error:
            if not reader.has_response:
                raise unsendable(self._name, error) from None
            if not reader.is_finished:
                raise self._broken(unreadable(self._name, stream_fault(error)), reader) from None
            yield StreamPart(None, is_finished=True, is_cut=True)

    async def aclose(self) -> None:
        """Close all connections."""
        await self.client.close()

    def read(self, message: dict[str, Any], model: str) -> WholeAnswer:
        """Return an answer that has arrived. Raises FrontierError where it is none."""
        has_content = message.get("content") is not None
        if message.get("error") or (not has_content and names_error(message, is_whole=True)):
            error = error_of(refusal_from(self._name, 200, message), self._secret)
            raise with_usage(error, usage_from_anthropic(message.get("usage")))
        answer = whole_answer(message, f"{self._name}/{model}")
        if answer is None:
            usage = usage_from_anthropic(message.get("usage"))
            raise with_usage(unreadable(self._name, "it is not a message"), usage)
        return answer

    async def _parts(
        self, response: httpx2.Response, reader: AnthropicStream, most_bytes: int
    ) -> AsyncGenerator[StreamPart, None]:
        reader.has_response = True
        skipped: dict[str, Any] = {}
        body = within(response.aiter_bytes(), most_bytes)
        async with aclosing(read_events(body)) as events:
            async for data in events:
                if not data:
                    yield KEEP_ALIVE
                    continue
                event = read_json(data) if data != "[DONE]" else {"type": "message_stop"}
                if isinstance(event, dict) and event.get("type") == "message_stop":
                    await read_rest(events)
                    break
                if isinstance(event, dict) and names_error(event):
                    if reader.is_finished:
                        yield StreamPart(None, is_finished=True, is_cut=True)
                        break
                    refusal = refusal_from(self._name, 200, event)
                    raise self._broken(error_of(refusal, self._secret), reader)
                part = reader.read(event)
                yield part or KEEP_ALIVE
                if part is None and isinstance(event, dict):
                    skipped = event
        self._require_answer(reader, skipped)

    def _require_answer(self, reader: AnthropicStream, skipped: dict[str, Any]) -> None:
        """Raise unless a whole answer was read. skipped: the last event without content."""
        if not reader.has_begun and names_error(skipped, is_whole=True):
            raise error_of(refusal_from(self._name, 200, skipped), self._secret)
        if not reader.has_begun:
            raise unreadable(self._name, "the stream has no event of a message")
        if not reader.is_finished:
            raise self._broken(unreadable(self._name, "it ended unfinished"), reader)

    def _broken(self, error: FrontierError, reader: AnthropicStream) -> FrontierError:
        if not reader.has_begun:
            return error
        return FrontierStreamBroken(
            f"the answer of provider {self._name!r} broke off: {error.message}", fix=error.fix
        )
