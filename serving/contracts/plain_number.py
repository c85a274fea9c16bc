"""Numbers in documents that others wrote."""

import math


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
