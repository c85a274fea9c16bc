"""Builds the frontier from settings: reads keys, opens no connection."""

import logging
import random
import time
from collections.abc import Callable, Mapping

from pydantic import SecretStr

from serving.contracts.frontier_settings import FrontierSettings, ProviderSettings
from serving.contracts.prices import PriceList
from serving.frontier.events import FrontierEvents
from serving.frontier.frontier import FrontierStack
from serving.frontier.keys import resolve_key
from serving.frontier.provider import Provider
from serving.frontier.provider_api import ProviderApi

_CHATTY_LOGGERS = ("openai", "anthropic", "httpx2", "httpcore2")


def build_frontier(
    settings: FrontierSettings,
    prices: PriceList,
    environ: Mapping[str, str],
    events: FrontierEvents,
    clock: Callable[[], float] = time.monotonic,
) -> FrontierStack:
    """Return the frontier for these settings; close it with `aclose`.

    prices: a target without a price is never called. Providers without a key are left out. clock:
    of gaps between requests, seconds. Reads key files, blocking. Raises InvalidSettings where a
    named key file gives no key.
    """
    _quiet()
    providers = {}
    for name, provider in settings.providers.items():
        key = resolve_key(name, provider, environ)
        if key is not None or provider.keyless:
            api = _api(name, provider, key)
            providers[name] = Provider(name, provider, api, events, random.Random())  # noqa: S311
    return FrontierStack(settings, providers, prices, events, clock)


def _api(name: str, settings: ProviderSettings, key: SecretStr | None) -> ProviderApi:
    # Only the SDKs that are used: Anthropic's takes 40 MB of memory, OpenAI's 13.
    if settings.api == "anthropic":
        from serving.frontier.anthropic_api import AnthropicApi

        return AnthropicApi(name, settings, key)
    from serving.frontier.openai_api import OpenAIApi

    return OpenAIApi(name, settings, key)


def _quiet() -> None:
    """Keep the SDKs and their HTTP client from logging requests: at DEBUG they log prompts."""
    for name in _CHATTY_LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(max(logger.level, logging.WARNING))
