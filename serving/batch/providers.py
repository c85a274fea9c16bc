"""Builds the batch APIs of the configured providers: reads keys, opens no connection."""

import random
from collections.abc import Callable, Mapping

from pydantic import SecretStr

from serving.batch.anthropic_batches import AnthropicBatches
from serving.batch.openai_batches import OpenAIBatches
from serving.batch.provider_batches import ProviderBatches
from serving.contracts.frontier_settings import FrontierSettings, ProviderSettings
from serving.frontier.keys import resolve_key

_APIS: dict[
    str, Callable[[str, ProviderSettings, SecretStr | None, random.Random], ProviderBatches]
] = {
    "openai": OpenAIBatches,
    "anthropic": AnthropicBatches,
}


def build_provider_batches(
    settings: FrontierSettings, environ: Mapping[str, str]
) -> dict[str, ProviderBatches]:
    """Return the batch APIs by provider, of those that have a key and batches; close each.

    Reads key files, blocking. Raises InvalidSettings where a named key file gives no key.
    """
    found = {}
    for name, provider in settings.providers.items():
        key = resolve_key(name, provider, environ) if provider.has_batches else None
        if provider.has_batches and (key is not None or provider.keyless):
            found[name] = _APIS[provider.api](name, provider, key, random.Random())  # noqa: S311
    return found
