"""Every price that is known: the operator's own first, then the table's."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from serving.contracts.prices import ModelPrices
from serving.ledger.pricing.file import load_price_file
from serving.ledger.pricing.table import PriceTable

_REMEMBERED = 4096


def _now() -> datetime:
    return datetime.now(UTC)


class PriceBook:
    """Implements serving.contracts.prices.PriceList; make it with `load`.

    Any thread may ask: what is remembered is replaced, never taken away by halves.
    """

    def __init__(
        self,
        overrides: Mapping[str, ModelPrices],
        table: PriceTable,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._overrides = overrides
        self._table = table
        self._clock = clock
        self._found: dict[tuple[str, datetime], ModelPrices | None] = {}

    @classmethod
    def load(cls, overrides_file: Path | None = None, clock: Callable[[], datetime] = _now) -> Self:
        """Read the operator's file and the table: 0.05 s, or 0.3 s before Python has compiled it.

        clock: returns the time with its zone. Raises InvalidSettings for a file that does not hold
        prices.
        """
        overrides = load_price_file(overrides_file) if overrides_file is not None else {}
        return cls(overrides, PriceTable(), clock)

    def of(self, model: str, at: datetime | None = None) -> ModelPrices | None:
        """Return what `provider/model` cost at a time, now by default; None where nobody knows.

        The table's prices change at midnight in UTC, and with few providers within the day: a
        price is looked up once a quarter of an hour.
        """
        own = self._overrides.get(model)
        if own is not None:
            return own
        quarter = _quarter(at or self._clock())
        key = (model, quarter)
        found = self._found
        if key not in found:
            if len(found) >= _REMEMBERED:  # clients name models
                found = self._found = {}
            found[key] = self._table.find(model, quarter)
        return found[key]


def _quarter(at: datetime) -> datetime:
    """Return the start of a time's quarter of an hour, UTC."""
    at = at.astimezone(UTC)
    return at.replace(minute=at.minute - at.minute % 15, second=0, microsecond=0)
