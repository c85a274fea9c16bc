"""All known prices: the operator's own first, then the table's."""

import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Self

from cachetools import LRUCache

from serving.contracts.prices import ModelPrices
from serving.ledger.pricing.file import load_price_file
from serving.ledger.pricing.table import PriceTable

_REMEMBERED = 4096


def _now() -> datetime:
    return datetime.now(UTC)


class PriceBook:
    """Implements serving.contracts.prices.PriceList; create it with `load`. Thread-safe."""

    def __init__(
        self,
        overrides: Mapping[str, ModelPrices],
        table: PriceTable,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._overrides = overrides
        self._folded = _folded_names(overrides)
        self._table = table
        self._clock = clock
        # Bounded, because clients name models.
        self._found = LRUCache[tuple[str, datetime], ModelPrices | None](_REMEMBERED)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, overrides_file: Path | None = None, clock: Callable[[], datetime] = _now) -> Self:
        """Read the operator's file and the table: 0.05 s, or 0.3 s before Python has compiled it.

        clock: returns the time with its zone. Raises InvalidSettings for a file that does not hold
        prices.
        """
        overrides = load_price_file(overrides_file) if overrides_file is not None else {}
        return cls(overrides, PriceTable(), clock)

    def newest_change(self) -> tuple[str, datetime] | None:
        """Return the table's name, and when a price in it last changed. None where nothing did."""
        day = self._table.newest_change(self._clock().astimezone(UTC).date())
        if day is None:
            return None
        return self._table.source, datetime(day.year, day.month, day.day, tzinfo=UTC)

    def of(self, model: str, at: datetime | None = None) -> ModelPrices | None:
        """Return the prices of `provider/model` at a time, now by default; None where unknown.

        The table's prices change at midnight UTC, and for few providers within the day, so prices
        are looked up once per quarter of an hour.
        """
        # The table takes names of any case, and with a version behind @, for one model.
        for own in (
            self._overrides.get(model),
            self._folded.get(model.casefold()),
            self._folded.get(_without_version(model)),
        ):
            if own is not None:
                return own
        quarter = _quarter(at or self._clock())
        key = (model, quarter)
        with self._lock:
            if key not in self._found:
                self._found[key] = self._table.find(model, quarter)
            return self._found[key]


def _folded_names(overrides: Mapping[str, ModelPrices]) -> dict[str, ModelPrices]:
    """Return prices by name without case, and by that without its version.

    Where only versions of a model have prices, the dearest are those of its other versions.
    """
    found: dict[str, ModelPrices] = {}
    for name, prices in sorted(overrides.items(), key=lambda item: _dearness(item[1])):
        found[_without_version(name)] = prices
    return found | {name.casefold(): prices for name, prices in overrides.items()}


def _without_version(name: str) -> str:
    return name.partition("@")[0].casefold()


def _dearness(prices: ModelPrices) -> Decimal:
    """Return what a token of input and one of output cost at the most, US dollars."""
    steps = (*prices.standard, *(step for tier in prices.service_tiers.values() for step in tier))
    return max(step.prices.highest_input + step.prices.output for step in steps)


def _quarter(at: datetime) -> datetime:
    """Return the start of a time's quarter of an hour, UTC."""
    at = at.astimezone(UTC)
    return at.replace(minute=at.minute - at.minute % 15, second=0, microsecond=0)
