"""Money and moments as reports show them, the same in text and HTML. Pure.

In one form for all readers: a page that is sent on reads the same everywhere. Not by Babel: as it
is imported it reads whatever file the variable TZ names, also a device or a pipe.
"""

from datetime import UTC, datetime, tzinfo
from decimal import Decimal


def usd(amount: Decimal) -> str:
    """Return an amount in US dollars with six decimals and without a sign of the currency."""
    return f"{_rounded(amount, 6):,.6f}"


def dollars(amount: Decimal | float, four_decimals_below: int = 1) -> str:
    """Return an amount in US dollars with two decimals, or four where it is small."""
    exact = Decimal(str(amount))
    decimals = 2 if abs(exact) >= four_decimals_below else 4
    found = _rounded(exact, decimals)
    return f"{'-' if found < 0 else ''}${abs(found):,.{decimals}f}"


def moment(at: datetime, zone: tzinfo = UTC, *, has_seconds: bool = False) -> str:
    """Return a moment in a time zone, to the minute or the second."""
    local = at.astimezone(zone)
    return f"{local:%Y-%m-%d %H:%M:%S}" if has_seconds else f"{local:%Y-%m-%d %H:%M}"


def _rounded(amount: Decimal, decimals: int) -> Decimal:
    # Adding zero turns a rounded -0 into 0, which would read as -$0.00.
    return round(amount, decimals) + 0
