"""Numbers in documents: those that others wrote, and amounts of money as they are written."""

import math
from decimal import Decimal
from typing import Annotated

from pydantic import PlainSerializer


def _digits(amount: Decimal) -> str:
    return format(amount, "f")


Dollars = Annotated[Decimal, PlainSerializer(_digits, return_type=str, when_used="json")]
"""US dollars; in JSON a string with every digit and no exponent."""


def finite_number(value: object) -> float | None:
    """Return a number of a document as a float; None for what is no number, or no finite one.

    A whole number of more than 308 digits is none: Python's own conversions raise OverflowError.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
