"""Which fields of a chat request are passed on to a provider, at every level. Pure.

serving/contracts/chat_fields.py lists them. Everything else is refused by name: audio, files, web
search, provider routing and server-side tools have no price in the price list, and their cost
cannot be bounded.
"""

from collections.abc import Collection, Mapping
from typing import Any

from serving.contracts.chat_fields import PASSED_FIELDS
from serving.contracts.errors import InvalidRequest, UnsupportedParameter
from serving.contracts.invalid_values import SHOWN_CHARS

_SET_BY_US = frozenset({"model", "stream", "stream_options"})
_TEXT_ONLY = ["text"]


def passed_fields(body: Mapping[str, Any], extra: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields of a request that are passed on.

    A null field is absent. extra: further fields that the provider's settings allow, by their path
    without the places in lists (`messages.prefix`). Raises UnsupportedParameter, naming the field,
    for one that is not allowed; InvalidRequest for a malformed one.
    """
    fields = {n: v for n, v in body.items() if v is not None and n not in _SET_BY_US}
    if fields.get("modalities") == _TEXT_ONLY:
        del fields["modalities"]

    def refuse(path: str) -> None:
        setting = ".".join(part for part in path.split(".") if not part.isdecimal())
        if setting not in extra:
            raise UnsupportedParameter(
                f"{path} is not passed on to a frontier model: its cost cannot be bounded",
                field=path,
                fix=f"leave it out, or add {setting!r} to extra_fields of the provider, in "
                "frontier.providers",
            )

    for name in fields:
        if name not in PASSED_FIELDS:
            refuse(name[:SHOWN_CHARS])
    _check_stop(fields.get("stop"))
    return {
        name: PASSED_FIELDS[name].read(value, name, refuse) if name in PASSED_FIELDS else value
        for name, value in fields.items()
    }


def _check_stop(stop: object) -> None:
    texts = stop if isinstance(stop, list) else [stop]
    if stop is not None and not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(
            "stop is neither a text nor a list of texts",
            field="stop",
            fix="send it as OpenAI's API describes",
        )
