"""Types of settings that mean what is written: paths, amounts of money, addresses. Pure."""

import ipaddress
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from serving.contracts.task_spec import folded_name

_LONGEST_PATH = 4096
_LONGEST_NAME = 255
"""Bytes of a path, and of one name in it, on Linux."""


def checked_path(value: object) -> object:
    """Refuse a text that is no usable path. Raises ValueError with the reason.

    Path("") is the current folder, and a folder may be named " ".
    """
    if not isinstance(value, str):
        return value
    if not folded_name(value):
        raise ValueError("it is blank; write a path, or leave it out")
    if value != value.strip():
        raise ValueError("it begins or ends with white space; remove it")
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise ValueError("it holds a control character; remove it")
    if value.startswith("~"):
        raise ValueError("it begins with ~, which is not your home folder here; write it in full")
    encoded = value.encode(errors="surrogateescape")
    if len(encoded) >= _LONGEST_PATH or max(map(len, encoded.split(b"/"))) > _LONGEST_NAME:
        raise ValueError(
            f"it is longer than a path ({_LONGEST_PATH} bytes) or a name in it "
            f"({_LONGEST_NAME} bytes) can be"
        )
    return value


def _names_a_file(path: Path) -> Path:
    if path.name in ("", ".."):
        raise ValueError("it names a folder; write the path of a file")
    return path


def _visible(value: str) -> str:
    if not folded_name(value):
        raise ValueError("it is blank; write a text, or leave it out")
    if any(ord(char) < 32 and char not in "\n\t" for char in value):
        raise ValueError("it holds a control character; remove it")
    return value


SettingText = Annotated[str, AfterValidator(_visible)]
"""A text with a visible character."""

SettingPath = Annotated[Path, BeforeValidator(checked_path)]
SettingFile = Annotated[SettingPath, AfterValidator(_names_a_file)]


def _amount(value: object) -> object:
    if isinstance(value, Decimal):
        return value
    text = str(value)
    # Python reads other alphabets' digits, white space and 1_000 as numbers too.
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,28}(\.[0-9]{0,28})?", value):
        raise ValueError("it must be a number in decimal digits, such as 2.50")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("it must be a number, such as 2.50")  # noqa: TRY004  # pydantic's class
    return Decimal(text)


UsdAmount = Annotated[
    Decimal,
    BeforeValidator(_amount),
    Field(ge=0, le=1_000_000_000, allow_inf_nan=False),
]
"""US dollars, 0 or more."""

_HOST_NAME = re.compile(
    r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z]([a-z0-9-]{0,61}[a-z0-9])?\.?",
    re.IGNORECASE | re.ASCII,
)


def _is_address(value: str) -> str:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        if len(value) > 253 or not _HOST_NAME.fullmatch(value):
            raise ValueError(
                "it is neither an IP address nor a host name, such as 127.0.0.1 or localhost"
            ) from None
    return value


ListenAddress = Annotated[str, AfterValidator(_is_address)]
"""An address of this machine, or a name of one."""
