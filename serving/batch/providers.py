"""Builds the batch APIs of the configured providers: reads keys, opens no connection."""

import random
from collections.abc import Mapping

from pydantic import SecretStr

from serving.batch.provider_batches import ProviderBatches
from serving.contracts.frontier_settings import FrontierSettings, ProviderSettings
from serving.frontier.keys import resolve_key


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
            found[name] = _batches(name, provider, key)
    return found


def _batches(name: str, settings: ProviderSettings, key: SecretStr | None) -> ProviderBatches:
    # Only the SDKs that are used, as for single calls.
    if settings.api == "anthropic":
        from serving.batch.anthropic_batches import AnthropicBatches

        return AnthropicBatches(name, settings, key, random.Random())  # noqa: S311
    from serving.batch.openai_batches import OpenAIBatches

    return OpenAIBatches(name, settings, key, random.Random())  # noqa: S311
