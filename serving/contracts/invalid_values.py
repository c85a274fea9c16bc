"""The error of a field with an invalid value, in a client's request."""

from serving.contracts.errors import InvalidRequest

SHOWN_CHARS = 60
"""Of a client's value or key, the most that an error shows."""


def invalid(path: str | None, value: object, wanted: str) -> InvalidRequest:
    """Return the error of a field with an invalid value."""
    if value is None:
        message = f"{path or 'the body'} is missing; it must be {wanted}"
    else:
        message = f"{path or 'the body'} is {shown(value)}; it must be {wanted}"
    return InvalidRequest(message, field=path, fix=f"send {wanted}")


def shown(value: object) -> str:
    """Return a client's value as an error shows it."""
    if isinstance(value, dict | list):
        # Its content may be long, and is the client's own.
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."
