"""What is known about the length of answers, by scope: learned from traffic, shared by replicas."""

import asyncio
import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from serving.contracts.errors import LedgerUnavailable
from serving.contracts.requests import INSTRUCTING_ROLES, Message

logger = logging.getLogger(__name__)

Arm = Literal["directed", "plain"]
"""directed: the request asked for brevity. plain: it did not, so that the saving is measured."""

Tally = tuple[str, str, int]
"""Scope, arm, and the bucket of the length; CUT counts answers that the bound cut for good."""

CUT = -1
CONTINUED = -2
LEAST_ANSWERS = 200
"""Complete answers of a scope before its own lengths count."""

QUANTILE = 0.995
MARGIN = 1.2
_MOST_SCOPES = 2000
_RATIO = 1.05
_WORDS_A_TOKEN = 0.75
_SHORTER = 0.7
_WORD_STEPS = (25, 40, 60, 80, 100, 130, 170, 220, 280, 360, 480, 640, 850, 1200)
_FLUSH_S = 5.0


class LengthStore(Protocol):
    """Keeps counts; blocking. serving.ledger.answer_lengths implements it."""

    def add(self, counts: Mapping[Tally, int]) -> None:
        """Add to the stored counts. Raises LedgerUnavailable."""
        ...

    def load(self, limit: int) -> Mapping[Tally, int]:
        """Return the counts of the scopes that were used last. Raises LedgerUnavailable."""
        ...


class LengthEvents(Protocol):
    """Counts answers by how they ended; the gateway's metrics implement it."""

    def answer_bounded(self, arm: Arm, outcome: str, tokens: int) -> None:
        """One answer ended. outcome: complete, continued, cut, or why it was not continued."""
        ...


@dataclass(frozen=True, slots=True)
class Scopes:
    """The scopes of a request, the narrower first: tenant, model and instructions; both first."""

    narrow: str
    wide: str


def scopes_of(tenant: str, model: str, messages: Sequence[Message]) -> Scopes:
    """Return the scopes of a request; names of neither tenants nor texts can be read from them."""
    wide = hashlib.sha256(f"{tenant}\x00{model}".encode()).hexdigest()[:32]
    told = "\x00".join(m.text for m in messages if m.role in INSTRUCTING_ROLES)
    own = hashlib.sha256(f"{wide}\x00{told}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return Scopes(f"n{own}", f"w{wide}")


def bucket_of(tokens: int) -> int:
    """Return the bucket of a length; a bucket is 5 % wide."""
    return max(0, math.ceil(math.log(max(1, tokens), _RATIO)))


def longest_of(bucket: int) -> int:
    """Return the greatest length of a bucket, tokens."""
    return math.floor(_RATIO**bucket + 1e-9)


@dataclass(slots=True)
class Lengths:
    """The counts of one scope, by arm and bucket."""

    counts: dict[Arm, Counter[int]] = field(
        default_factory=lambda: {"directed": Counter(), "plain": Counter()}
    )

    def complete(self, arm: Arm) -> int:
        """Return how many answers ended by themselves."""
        return sum(n for bucket, n in self.counts[arm].items() if bucket >= 0)

    def quantile(self, arm: Arm, share: float) -> int | None:
        """Return the length that a share of the complete answers has at most; None without any."""
        wanted = share * self.complete(arm)
        seen = 0
        for bucket in sorted(b for b in self.counts[arm] if b >= 0):
            seen += self.counts[arm][bucket]
            if seen >= wanted > 0:
                return longest_of(bucket)
        return None

    def mean(self, arm: Arm) -> float | None:
        """Return the mean length of the complete answers; None without any."""
        count = self.complete(arm)
        total = sum(longest_of(b) * n for b, n in self.counts[arm].items() if b >= 0)
        return total / count if count else None


class AnswerLengths:
    """Holds the counts of this replica and of the others, which it reads every 5 seconds.

    store: None keeps them in memory only.
    """

    def __init__(self, store: LengthStore | None, events: LengthEvents) -> None:
        self._store = store
        self._events = events
        self._known: dict[str, Lengths] = {}
        self._pending: Counter[Tally] = Counter()
        self._flushing = asyncio.Lock()

    def bound(self, scopes: Scopes, floor: int) -> int:
        """Return the limit of an answer, tokens: never under the floor, which is the setting."""
        found = self._learned(scopes)
        if found is None:
            return floor
        longest = max(found.quantile(arm, QUANTILE) or 0 for arm in found.counts)
        return max(floor, math.ceil(MARGIN * longest))

    def words(self, scopes: Scopes) -> int | None:
        """Return the words to ask for; None until enough answers without a directive are known.

        A step below the usual length, and a round number: a directive is part of the prefix that a
        provider caches.
        """
        found = self._learned(scopes, "plain")
        usual = None if found is None else found.quantile("plain", 0.5)
        if usual is None:
            return None
        wanted = usual * _WORDS_A_TOKEN * _SHORTER
        return max((step for step in _WORD_STEPS if step <= wanted), default=_WORD_STEPS[0])

    def plain_share(self, scopes: Scopes, holdout: float) -> float:
        """Return the share of requests without a directive: half until enough are known."""
        return holdout if self._learned(scopes, "plain") is not None else 0.5

    def ended(self, scopes: Scopes, arm: Arm, outcome: str, tokens: int) -> None:
        """Count an answer. tokens: visible ones, its continuation included."""
        self._events.answer_bounded(arm, outcome, tokens)
        for scope in (scopes.narrow, scopes.wide):
            if scope not in self._known and len(self._known) >= _MOST_SCOPES:
                continue
            self._count(scope, arm, CUT if outcome == "cut" else bucket_of(tokens))
            if outcome == "continued":
                self._count(scope, arm, CONTINUED)

    async def start(self) -> None:
        """Read what is known; without a database nothing is known yet."""
        await self.flush()

    async def watch(self) -> None:
        """Write and read until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            await self.flush()

    async def flush(self) -> None:
        """Write the new counts and read those of all replicas; while that fails, keep them."""
        if self._store is None:
            return
        async with self._flushing:
            new, self._pending = self._pending, Counter()
            try:
                if new:
                    await asyncio.to_thread(self._store.add, new)
                    new = Counter()
                found = await asyncio.to_thread(self._store.load, _MOST_SCOPES)
            except LedgerUnavailable as error:
                self._pending.update(new)
                logger.warning("bounds.not_stored error=%s", type(error).__name__)
                return
            self._known = {}
            for (scope, arm, bucket), count in [*found.items(), *self._pending.items()]:
                counts = self._lengths(scope).counts
                counts["plain" if arm == "plain" else "directed"][bucket] += count

    def _count(self, scope: str, arm: Arm, bucket: int) -> None:
        self._lengths(scope).counts[arm][bucket] += 1
        if self._store is not None:
            self._pending[scope, arm, bucket] += 1

    def _lengths(self, scope: str) -> Lengths:
        return self._known.setdefault(scope, Lengths())

    def _learned(self, scopes: Scopes, arm: Arm | None = None) -> Lengths | None:
        """Return the narrowest scope with enough complete answers, of one arm or of both."""
        for scope in (scopes.narrow, scopes.wide):
            found = self._known.get(scope)
            if found is not None:
                arms: tuple[Arm, ...] = ("directed", "plain") if arm is None else (arm,)
                if sum(map(found.complete, arms)) >= LEAST_ANSWERS:
                    return found
        return None
