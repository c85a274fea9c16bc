"""What the HTTP client under both SDKs raises, as errors of our tree.

Streams of the anthropic SDK let these through; elsewhere they are the cause of an SDK's error.
"""

import json
from typing import Any

import httpx2

from serving.contracts.errors import FrontierError, FrontierInvalidResponse
from serving.frontier.http_errors import not_reached, silent

TRANSPORT_ERRORS = (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError)

# Raised before the request has left: nothing can be billed.
_NOTHING_SENT = (httpx2.ConnectTimeout, httpx2.PoolTimeout)
_UNREADABLE = (httpx2.DecodingError, httpx2.StreamError, httpx2.TooManyRedirects)


def translate_transport(error: BaseException, provider: str) -> FrontierError:
    """Return the error of our tree for what the HTTP client raised."""
    source = type(error).__name__
    if isinstance(error, httpx2.TimeoutException) and not isinstance(error, _NOTHING_SENT):
        return silent(provider, source)
    if isinstance(error, _UNREADABLE):
        return unreadable(provider, source)
    return not_reached(provider, source)


def unreadable(provider: str, why: str) -> FrontierInvalidResponse:
    """Return the error of an answer that came and is none."""
    return FrontierInvalidResponse(
        f"the answer of provider {provider!r} cannot be read: {why}",
        fix="check the provider's base_url and status; the call may have been billed",
    )


async def read_document(
    response: Any, provider: str, vendor_errors: tuple[type[Exception], ...]
) -> dict[str, Any]:
    """Return the JSON object of an answer whose headers have come: from here on it is billed.

    Raises FrontierInvalidResponse where it breaks off or is no JSON object.
    """
    try:
        document = json.loads(await response.read())
    except vendor_errors as error:
        raise unreadable(provider, f"it broke off ({type(error).__name__})") from None
    except (ValueError, RecursionError):
        raise unreadable(provider, "it is not JSON") from None
    if not isinstance(document, dict):
        raise unreadable(provider, "it is not a JSON object")
    return document
