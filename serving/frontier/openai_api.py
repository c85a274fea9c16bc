"""OpenAI's chat completions, and servers that speak the same wire format."""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import httpx2
import openai
from pydantic import SecretStr

from serving.contracts.errors import FrontierError, FrontierStreamBroken
from serving.contracts.frontier_settings import ProviderSettings
from serving.contracts.openai import usage_from_openai
from serving.frontier.failures import with_partial_answer, with_usage
from serving.frontier.http_errors import (
    error_of,
    names_error,
    refusal_from,
    unreadable,
    unsendable,
)
from serving.frontier.openai_errors import ERRORS, translate
from serving.frontier.openai_stream import OpenAIStream, ends_in_error, is_reason
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
from serving.frontier.usage import tier_in

OPENAI_URL = "https://api.openai.com/v1"
_PATH = "/chat/completions"
_OWN_HOSTS = (".openai.com", ".openai.azure.com")
_SET_BY_US = ("model", "stream", "stream_options")


class OpenAIApi:
    """One OpenAI-compatible server.

    OpenAI itself expects `max_completion_tokens` and accepts `prompt_cache_key`; other servers know
    `max_tokens`, and some refuse unknown fields.
    """

    # Its current models do not; older ones refuse the field.
    thinks_by_default = False

    def __init__(self, name: str, settings: ProviderSettings, key: SecretStr | None) -> None:
        self._name = name
        url = settings.base_url or OPENAI_URL
        self._is_openai = settings.base_url is None or f".{urlsplit(url).hostname}".endswith(
            _OWN_HOSTS
        )
        self._secret = key.get_secret_value() if key else None
        timeout = openai.Timeout(
            settings.first_byte_timeout_s, connect=settings.connect_timeout_s, pool=None
        )
        self.client = openai.AsyncOpenAI(
            # Given explicitly, so that the SDK reads neither key nor address from the environment.
            api_key=self._secret or "keyless",
            base_url=url,
            max_retries=0,
            timeout=timeout,
            http_client=ProviderClient(url, timeout, settings.headers, settings.key_header),
        )

    def request(self, body: Mapping[str, Any], model: str, plan: CachePlan) -> dict[str, Any]:
        """Return the body with the fields that OpenAI or compatible servers expect."""
        request = {name: value for name, value in body.items() if name not in _SET_BY_US}
        request["model"] = model
        if self._is_openai:
            request["max_completion_tokens"] = request.pop("max_tokens")
            if plan.routing_digest:
                request.setdefault("prompt_cache_key", f"narrowgate-{plan.routing_digest[:32]}")
        return request

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
        streamed = {**request, "stream": True, "stream_options": {"include_usage": True}}
        reader = OpenAIStream(f"{self._name}/{request['model']}")
        try:
            async with (
                posted(self.client, _PATH, streamed) as response,
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

    def read(self, body: dict[str, Any], model: str) -> WholeAnswer:
        """Return an answer that has arrived. Raises FrontierError where it is none."""
        usage = usage_from_openai(body.get("usage"))
        choices = body.get("choices")
        choices = [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
        failed = [c for c in choices if c.get("error") or ends_in_error(c)]
        is_refused = body.get("error") or (not choices and names_error(body, is_whole=True))
        if is_refused or failed:
            document = body if is_refused else failed[0]
            raise self._failed(document, choices, usage)
        if not choices or not all(isinstance(c.get("message"), dict) for c in choices):
            raise with_usage(unreadable(self._name, "it has no choice with a message"), usage)
        for choice in choices:
            if not is_reason(choice.get("finish_reason")):
                choice["finish_reason"] = "length"
        answer = {**body, "choices": choices, "model": f"{self._name}/{model}"}
        answer.setdefault("object", "chat.completion")
        answer.setdefault("created", int(time.time()))
        return WholeAnswer(answer, usage, tier_in(body))

    def _failed(self, document: dict[str, Any], choices: list[Any], usage: Any) -> FrontierError:
        """Return the error that an answer with status 200 names."""
        error = error_of(refusal_from(self._name, 200, document), self._secret)
        has_text = any(
            isinstance(c.get("message"), dict) and c["message"].get("content") for c in choices
        )
        if usage is None and has_text:
            return with_partial_answer(error)
        return with_usage(error, usage)

    async def _parts(
        self, response: httpx2.Response, reader: OpenAIStream, most_bytes: int
    ) -> AsyncGenerator[StreamPart, None]:
        reader.has_response = True
        skipped: dict[str, Any] = {}
        body = within(response.aiter_bytes(), most_bytes)
        async with aclosing(read_events(body)) as events:
            async for data in events:
                if not data:
                    yield KEEP_ALIVE
                    continue
                if data.startswith("[DONE]"):
                    await read_rest(events)
                    break
                event = read_json(data)
                if isinstance(event, dict) and reader.names_error(event):
                    if reader.is_finished:
                        yield StreamPart(None, is_finished=True, is_cut=True)
                        break
                    refusal = error_of(refusal_from(self._name, 200, event), self._secret)
                    raise self._broken(reader.failed(event, refusal), reader)
                part = reader.read(event)
                yield part or KEEP_ALIVE
                if part is None and isinstance(event, dict):
                    skipped = event
        self._require_answer(reader, skipped)

    def _require_answer(self, reader: OpenAIStream, skipped: dict[str, Any]) -> None:
        """Raise unless a whole answer was read. skipped: the last event without content."""
        if not reader.has_begun and names_error(skipped, is_whole=True):
            refusal = error_of(refusal_from(self._name, 200, skipped), self._secret)
            raise reader.failed(skipped, refusal)
        if not reader.has_begun:
            raise unreadable(self._name, "the stream has no event with a choice")
        if not reader.is_finished:
            raise self._broken(unreadable(self._name, "it ended unfinished"), reader)

    def _broken(self, error: FrontierError, reader: OpenAIStream) -> FrontierError:
        if not reader.has_begun:
            return error
        return FrontierStreamBroken(
            f"the answer of provider {self._name!r} broke off: {error.message}", fix=error.fix
        )
