"""Frequent texts that a shortcut answers wrongly: they go to the reference from then on."""

from collections import OrderedDict
from dataclasses import dataclass, field

MAX_LISTED = 200
_MAX_SUSPECTS = 2_000
_WRONG = 2
"""Wrong audits of one text until it is listed: one alone may be the reference's error."""


@dataclass(slots=True)
class FrequentErrors:
    """Texts of one claim, by digest, that audits found wrong at least twice and mostly.

    Bounded: the 200 found last are listed, the 2,000 seen last are remembered.
    """

    _losses: OrderedDict[str, tuple[int, float]] = field(default_factory=OrderedDict)
    _listed: OrderedDict[str, None] = field(default_factory=OrderedDict)

    @property
    def listed(self) -> tuple[str, ...]:
        """Return the digests of the listed texts, the newest last."""
        return tuple(self._listed)

    def add(self, text: str, loss: float) -> None:
        """Count one audit of an accepted answer to a text. loss: in [0, 1]."""
        known = self._losses.pop(text, None)
        if known is None and loss == 0.0:
            return
        count, losses = known or (0, 0.0)
        count, losses = count + 1, losses + loss
        self._losses[text] = count, losses
        if losses >= _WRONG and losses > count / 2:
            self._listed[text] = None
            self._listed.move_to_end(text)
        while len(self._losses) > _MAX_SUSPECTS:
            self._losses.popitem(last=False)
        while len(self._listed) > MAX_LISTED:
            self._listed.popitem(last=False)
