"""Money and moments as reports show them, the same in text and HTML. Pure."""

from datetime import UTC, datetime, tzinfo
from decimal import Decimal

from babel.dates import format_datetime
from babel.numbers import format_currency, format_decimal

_LOCALE = "en_US"
"""One for all reports: a page that is sent on reads the same everywhere."""


def usd(amount: Decimal) -> str:
    """Return an amount in US dollars with six decimals and without a sign of the currency."""
    return format_decimal(_rounded(amount, 6), "#,##0.000000", locale=_LOCALE)


def dollars(amount: Decimal | float, four_decimals_below: int = 1) -> str:
    """Return an amount in US dollars with two decimals, or four where it is small."""
    exact = Decimal(str(amount))
    decimals = 2 if abs(exact) >= four_decimals_below else 4
    pattern = f"¤#,##0.{'0' * decimals}"
    return format_currency(
        _rounded(exact, decimals), "USD", pattern, locale=_LOCALE,
        currency_digits=False,
    )  # fmt: skip


def moment(at: datetime, zone: tzinfo = UTC, pattern: str = "yyyy-MM-dd HH:mm") -> str:
    """Return a moment in a time zone, to the minute. pattern: as of Unicode's date formats."""
    return format_datetime(at, pattern, tzinfo=zone, locale=_LOCALE)


def _rounded(amount: Decimal, decimals: int) -> Decimal:
    # Adding zero turns a rounded -0 into 0, which Babel would write as -$0.00.
    return round(amount, decimals) + 0
