"""Anthropic's Messages API, called through its SDK."""

from collections.abc import Mapping
from typing import Any

import anthropic
from pydantic import SecretStr

from serving.contracts.errors import FrontierError, FrontierRejected
from serving.contracts.frontier_settings import ProviderSettings
from serving.frontier.anthropic_answer import AnthropicStream, whole_answer
from serving.frontier.anthropic_errors import ERRORS, translate
from serving.frontier.anthropic_request import anthropic_request, cache_control
from serving.frontier.failures import with_usage
from serving.frontier.http_errors import names_error, unreadable
from serving.frontier.prompt_cache import with_breakpoints
from serving.frontier.provider_api import CachePlan, WholeAnswer
from serving.frontier.sdk_api import SdkApi
from serving.frontier.transport import ProviderClient
from serving.frontier.usage import usage_from_anthropic

ANTHROPIC_URL = "https://api.anthropic.com"


class AnthropicApi(SdkApi):
    """Anthropic, or a server that speaks its Messages API."""

    thinks_by_default = True
    client: anthropic.AsyncAnthropic
    _path = "/v1/messages"
    _errors = ERRORS

    def __init__(self, name: str, settings: ProviderSettings, key: SecretStr | None) -> None:
        super().__init__(name, key)
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

    def read(self, document: dict[str, Any], model: str) -> WholeAnswer:
        """Return an answer that has arrived. Raises FrontierError where it is none."""
        has_content = document.get("content") is not None
        if document.get("error") or (not has_content and names_error(document, is_whole=True)):
            usage = usage_from_anthropic(document.get("usage"))
            raise with_usage(self._refused(document), usage)
        answer = whole_answer(document, f"{self._name}/{model}")
        if answer is None:
            usage = usage_from_anthropic(document.get("usage"))
            raise with_usage(unreadable(self._name, "it is not a message"), usage)
        return answer

    def _reader(self, model: str) -> AnthropicStream:
        return AnthropicStream(model)

    def _translated(self, error: Exception) -> FrontierError:
        return translate(error, self._name, self._secret)
