"""Reads the providers' keys."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from serving.contracts.errors import InvalidSettings
from serving.contracts.frontier_settings import ProviderSettings
from serving.contracts.plain_file import read_plain_text, unread_because


def resolve_key(
    name: str, settings: ProviderSettings, environ: Mapping[str, str]
) -> SecretStr | None:
    """Return a provider's key: from its file, else its variable, else NAME_API_KEY; None if unset.

    The default variable is read only where the settings name neither file nor variable. Reads the
    file once, blocking. Raises InvalidSettings where a named file gives no key, or where a key
    holds characters that no HTTP header may carry; the message never holds the key.
    """
    if settings.keyless:
        return None
    if settings.api_key_file is not None:
        return _checked(_read(name, settings.api_key_file), f"{_field(name)}.api_key_file")
    variable = settings.api_key_env or f"{name.upper().replace('-', '_')}_API_KEY"
    value = environ.get(variable, "").strip()
    return _checked(value, f"{_field(name)}.api_key_env") if value else None


def _field(name: str) -> str:
    return f"frontier.providers.{name}"


def _read(name: str, file: Path) -> str:
    field = f"{_field(name)}.api_key_file"
    try:
        value = read_plain_text(file).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSettings(
            f"{field} {str(file)!r} cannot be read: {unread_because(error)}",
            field=field,
            fix="name a file that holds only the key, readable by this process",
        ) from None
    if not value:
        raise InvalidSettings(
            f"{field} {str(file)!r} is empty", field=field, fix="put the key into the file"
        )
    return value


def _checked(value: str, field: str) -> SecretStr:
    # An illegal header value would make the HTTP client raise an error that quotes it.
    if not (value.isascii() and value.isprintable()) or " " in value:
        raise InvalidSettings(
            f"{field} gives a key with spaces, line breaks or characters beyond ASCII",
            field=field,
            fix="store only the key, on one line",
        )
    return SecretStr(value)
