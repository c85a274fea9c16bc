"""What `narrowgate batch submit` reads from its arguments and from the first line of a file."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from serving.contracts.errors import InvalidArgument
from serving.contracts.plain_file import opened_plain
from serving.host.numbers import us_dollars

_DURATION = re.compile(r"([0-9]{1,6})(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_CHATS = "/v1/chat/completions"
_FIRST_LINE_BYTES = 2**24


def duration_s(option: str, text: str) -> int:
    """Return a time such as 90s, 30m, 6h or 2d in seconds. Raises InvalidArgument."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or not int(found[1]):
        raise InvalidArgument(
            f"{option} is {text!r}", field=option, fix="send a time such as 30m, 6h or 2d"
        )
    return int(found[1]) * _SECONDS[found[2]]


def metadata_of(args: argparse.Namespace) -> dict[str, str]:
    """Return the metadata of a new batch: the user's own, and what the gateway reads.

    Raises InvalidArgument.
    """
    metadata: dict[str, str] = {}
    for pair in args.metadata:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidArgument(
                f"--metadata is {pair!r}", field="--metadata", fix="send NAME=VALUE"
            )
        metadata[name] = value
    if args.deadline is not None:
        duration_s("--deadline", args.deadline)
        metadata["deadline"] = args.deadline.strip()
    if args.max_cost_usd is not None:
        metadata["max_cost_usd"] = us_dollars("--max-cost-usd", args.max_cost_usd)
    if args.skip_bad:
        metadata["on_error"] = "skip"
    return metadata


def endpoint_of(file: Path) -> str:
    """Return the URL of a file's first line, that of chats where it names none.

    The gateway checks the lines; this only saves naming the endpoint. Raises OSError.
    """
    with opened_plain(file) as lines:
        for line in iter(lambda: lines.readline(_FIRST_LINE_BYTES), b""):
            if line.strip():
                return _url(line)
    return _CHATS


def _url(line: bytes) -> str:
    try:
        document: Any = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return _CHATS
    url = document.get("url") if isinstance(document, dict) else None
    return url if isinstance(url, str) else _CHATS
