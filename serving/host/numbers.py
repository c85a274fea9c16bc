"""Numbers on the command line: checked before work begins, with the option's name."""

import argparse
import math
import re
from decimal import Decimal, InvalidOperation

from serving.contracts.errors import InvalidArgument


def whole_number(text: str) -> int:
    """Return a whole number. Raises ArgumentTypeError for anything but the digits 0 to 9."""
    if not re.fullmatch("[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number in the digits 0 to 9")
    return int(text)


def decimal_number(text: str) -> Decimal:
    """Return a number such as 12 or 0.25. Raises ArgumentTypeError for any other notation."""
    if not re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,18})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 0 or more in digits, as 12 or 0.25")
    return Decimal(text)


def us_dollars(option: str, text: str) -> str:
    """Return an amount of US dollars, 0 or more, in digits. Raises InvalidArgument."""
    try:
        usd = Decimal(text)
    except InvalidOperation:
        usd = Decimal(-1)
    if not usd.is_finite() or usd < 0:
        raise InvalidArgument(
            f"{option} is {text!r}", field=option, fix="send US dollars, 0 or more"
        )
    return f"{usd:f}"


def signed_integer(text: str) -> int:
    """Return a whole number, which may be negative. Raises ArgumentTypeError as whole_number."""
    return -whole_number(text[1:]) if text.startswith("-") else whole_number(text)


def signed_number(text: str) -> float:
    """Return a number in the digits 0 to 9, also nan and inf, for a check of its range to refuse.

    Raises ArgumentTypeError for other notations that Python reads as numbers: 1_000, white space,
    a plus sign, other alphabets' digits.
    """
    plain = r"-?((([0-9]+(\.[0-9]*)?)|\.[0-9]+)([eE][-+]?[0-9]+)?|nan|inf(inity)?)"
    if not re.fullmatch(plain, text, re.IGNORECASE | re.ASCII):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 12 or 0.25")
    return float(text)


def refuse_outside(
    option: str, value: float | None, *, least: float, most: float = math.inf
) -> None:
    """Refuse a number that is not finite or not within [least, most]. None is accepted.

    option: as it is written, `--seed`. Raises InvalidArgument.
    """
    if value is None or (math.isfinite(value) and least <= value <= most):
        return
    wanted = f"of {least:g} or more" if math.isinf(most) else f"between {least:g} and {most:g}"
    raise InvalidArgument(
        f"{option} {value!r} is not a finite number {wanted}",
        field=option.lstrip("-").replace("-", "_"),
        fix=f"pass a number {wanted}",
    )


MOST_SEED = 2**32 - 1
"""The largest seed that every random generator in use accepts."""
