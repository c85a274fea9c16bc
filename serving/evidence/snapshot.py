"""The claims as requests read them: an immutable copy in memory that ages out."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from serving.contracts.evidence import Claim, ClaimState


@dataclass(frozen=True, slots=True)
class _Copy:
    """States as of one reading. read_at_s: monotonic seconds before it."""

    claims: Mapping[str, Claim] = field(default_factory=lambda: MappingProxyType({}))
    read_at_s: float = float("-inf")


class ClaimSnapshot:
    """The claims as a request reads them: an immutable copy, some microseconds a lookup.

    max_age_s: an older copy is not used, so that a replica that cannot reach the database does not
    rely on claims that may be suspended. clock: monotonic seconds.
    """

    def __init__(self, max_age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_age_s = max_age_s
        self._clock = clock
        self._copy = _Copy()
        self._suspended: dict[str, int] = {}

    @property
    def is_fresh(self) -> bool:
        """Return whether claims may be relied on."""
        return self._clock() - self._copy.read_at_s <= self._max_age_s

    def find(self, claim: str) -> Claim | None:
        """Return a claim; None where it is not known or the copy is too old."""
        return self._copy.claims.get(claim) if self.is_fresh else None

    def all(self) -> tuple[Claim, ...]:
        """Return every claim of the last reading, however old it is."""
        return tuple(self._copy.claims.values())

    def replace(self, claims: Mapping[str, Claim], read_at_s: float) -> None:
        """Take over what was read. read_at_s: before the reading, by the same clock.

        A claim that this replica suspended itself is not held again by a reading that is older than
        the suspension.
        """
        merged = dict(claims)
        for name, sequence in list(self._suspended.items()):
            read, own = merged.get(name), self._copy.claims.get(name)
            if read is None or own is None or read.sequence >= sequence:
                del self._suspended[name]
            else:
                merged[name] = own
        self._copy = _Copy(MappingProxyType(merged), read_at_s)

    def take(self, claim: Claim) -> None:
        """Take over one claim that this replica has folded, at once."""
        if claim.state is ClaimState.SUSPENDED:
            self._suspended[claim.id] = claim.sequence
        self._copy = _Copy(
            MappingProxyType({**self._copy.claims, claim.id: claim}), self._copy.read_at_s
        )
