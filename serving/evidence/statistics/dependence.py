"""How far consecutive inputs depend on each other: traffic that comes in blocks of one label.

A block of one label says little more than one input of it. Counted all, claims are earned on the
labels of a few blocks, and the next block is answered wrongly until the watch suspends the claim.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

_DEVIATIONS = 2.0
"""Standard errors, (1 - r^2) / sqrt(n), that are taken from a correlation, so that independent
inputs lose almost nothing."""

_FEW = 20
"""Labels below which nothing is said of their shares: the claim's evidence has no labels then."""


@dataclass
class LabelRuns:
    """The correlation of consecutive labels, over all that were added.

    With s the share of equal neighbours and s0 that of independent inputs with the same label
    shares, it is (s - s0) / (1 - s0). Labels are the reference's.
    """

    equal: int = 0
    _counts: Counter[str] = field(default_factory=Counter, repr=False)
    _squares: int = field(default=0, repr=False)
    _total: int = field(default=0, repr=False)
    _last: str | None = field(default=None, repr=False)

    def add(self, label: str) -> None:
        """Add the next label."""
        self.equal += label == self._last
        self._squares += 2 * self._counts[label] + 1
        self._counts[label] += 1
        self._total += 1
        self._last = label

    @property
    def correlation(self) -> float:
        """Return the correlation beyond chance, in [0, 1); 0 where one label alone was seen."""
        pairs = self._total - 1
        if pairs < 1 or len(self._counts) < 2:
            return 0.0
        chance = self._squares / self._total**2
        found = (self.equal / pairs - chance) / (1.0 - chance)
        margin = _DEVIATIONS * (1.0 - found**2) / math.sqrt(pairs)
        return max(0.0, min(found - margin, 1.0 - 1.0 / pairs))

    def is_varied(self, error: float, many: int) -> bool:
        """Return whether always giving the commonest label would err more often than `error`.

        Elsewhere little is shown: a stream may begin with one label. many: labels from which on
        even a stream of almost one label alone is taken as it is.
        """
        if not _FEW <= self._total < many:
            return True
        return 1.0 - max(self._counts.values()) / self._total > error

    @property
    def independent_share(self) -> float:
        """Return how many independent inputs one input is worth, in (0, 1].

        (1 - r) / (1 + r): the effective sample size of a first-order chain with correlation r.
        """
        return (1.0 - self.correlation) / (1.0 + self.correlation)
