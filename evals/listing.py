"""Lists in messages: the first of many, and how many more there are. Pure."""

from collections.abc import Sequence


def first_of(texts: Sequence[str], most: int) -> str:
    """Return at most so many texts, and the number of the others."""
    rest = len(texts) - most
    return "; ".join(texts[:most]) + (f"; and {rest} more" if rest > 0 else "")
