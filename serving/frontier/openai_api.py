"""OpenAI's chat completions, and servers that speak the same wire format."""

import time
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import urlsplit

import openai
from pydantic import SecretStr

from serving.contracts.errors import FrontierError
from serving.contracts.frontier_settings import ProviderSettings
from serving.contracts.openai import usage_from_openai
from serving.frontier.failures import with_partial_answer, with_usage
from serving.frontier.http_errors import names_error, unreadable
from serving.frontier.openai_errors import ERRORS, translate
from serving.frontier.openai_stream import OpenAIStream, ends_in_error, is_reason
from serving.frontier.provider_api import CachePlan, WholeAnswer
from serving.frontier.sdk_api import SdkApi
from serving.frontier.transport import ProviderClient
from serving.frontier.usage import tier_in

OPENAI_URL = "https://api.openai.com/v1"
_OWN_HOSTS = (".openai.com", ".openai.azure.com")
_SET_BY_US = ("model", "stream", "stream_options")


class OpenAIApi(SdkApi):
    """One OpenAI-compatible server.

    OpenAI itself expects `max_completion_tokens` and accepts `prompt_cache_key`; other servers know
    `max_tokens`, and some refuse unknown fields.
    """

    # Its current models do not; older ones refuse the field.
    thinks_by_default = False
    client: openai.AsyncOpenAI
    _path = "/chat/completions"
    _errors = ERRORS
    _stream_fields: ClassVar = {"stream": True, "stream_options": {"include_usage": True}}

    def __init__(self, name: str, settings: ProviderSettings, key: SecretStr | None) -> None:
        super().__init__(name, key)
        url = settings.base_url or OPENAI_URL
        self._is_openai = settings.base_url is None or f".{urlsplit(url).hostname}".endswith(
            _OWN_HOSTS
        )
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

    def read(self, document: dict[str, Any], model: str) -> WholeAnswer:
        """Return an answer that has arrived. Raises FrontierError where it is none."""
        usage = usage_from_openai(document.get("usage"))
        choices = document.get("choices")
        choices = [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []
        failed = [c for c in choices if c.get("error") or ends_in_error(c)]
        is_refused = document.get("error") or (not choices and names_error(document, is_whole=True))
        if is_refused or failed:
            raise self._failed(document if is_refused else failed[0], choices, usage)
        if not choices or not all(isinstance(c.get("message"), dict) for c in choices):
            raise with_usage(unreadable(self._name, "it has no choice with a message"), usage)
        for choice in choices:
            if not is_reason(choice.get("finish_reason")):
                choice["finish_reason"] = "length"
        answer = {**document, "choices": choices, "model": f"{self._name}/{model}"}
        answer.setdefault("object", "chat.completion")
        answer.setdefault("created", int(time.time()))
        return WholeAnswer(answer, usage, tier_in(document))

    def _failed(self, document: dict[str, Any], choices: list[Any], usage: Any) -> FrontierError:
        """Return the error that an answer with status 200 names."""
        error = self._refused(document)
        has_text = any(
            isinstance(c.get("message"), dict) and c["message"].get("content") for c in choices
        )
        if usage is None and has_text:
            return with_partial_answer(error)
        return with_usage(error, usage)

    def _reader(self, model: str) -> OpenAIStream:
        return OpenAIStream(model)

    def _translated(self, error: Exception) -> FrontierError:
        return translate(error, self._name, self._secret)
