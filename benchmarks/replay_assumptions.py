"""What the cost replay assumes: one table, each value with its range and its source.

The provider of the replay answers by this table. Nothing here was measured on a real provider.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

End = Literal["low", "central", "high"]
"""low: the end of each range with which least is saved; high: most."""


@dataclass(frozen=True, slots=True)
class Assumed:
    """A value with the ends of its range. source: where it is from, or `assumed`."""

    low: float
    central: float
    high: float
    what: str
    source: str


CONVERSATIONS = (
    "means of LMSYS-Chat-1M (70 in, 216 out) and WildChat (296 in, 441 out) as the WildChat paper "
    "(arXiv 2405.01470) tabulates them"
)
MMLU = "MMLU answers of a dear and a cheap model: 0.806 and 0.707 correct; narrower here by half"
SPEED = "assumed: within what vendors' public status pages show; only for latency"


@dataclass(frozen=True, slots=True)
class Assumptions:
    """All of them."""

    narrow: Assumed = Assumed(
        0.2, 0.4, 0.6, "share of narrow requests", "the mix of the issue: 0.2 to 0.6"
    )
    repeats: Assumed = Assumed(
        0.0, 0.3, 0.3, "share of single requests that repeat an earlier one, a third of them in "
        "other words", "30 to 60 % are reported for support chats; assumed",
    )  # fmt: skip
    medium_tokens: Assumed = Assumed(
        120, 216, 441, "median answer to a short question, tokens", CONVERSATIONS
    )
    open_tokens: Assumed = Assumed(
        300, 441, 900, "median answer to an open-ended request, tokens", CONVERSATIONS
    )
    narrow_tokens: Assumed = Assumed(
        3,
        12,
        40,
        "median answer to a narrow request, tokens",
        "a label, or a label with a sentence",
    )
    rag_tokens: Assumed = Assumed(
        80, 150, 300, "median answer to a question about a context, tokens", "assumed"
    )
    spread: Assumed = Assumed(
        0.7, 0.7, 0.7, "sigma of the answers' log length", "lognormal; assumed"
    )
    directed: Assumed = Assumed(
        1.0, 0.75, 0.51, "length of an answer where brevity is asked for, as a share",
        "0.51: concise chain of thought (arXiv 2401.05618); 1: a model that does not obey",
    )  # fmt: skip
    wordy_standard: Assumed = Assumed(
        1.2,
        1.0,
        0.9,
        "length of the standard tier's answers against the frontier tier's",
        "assumed",
    )
    wordy_economy: Assumed = Assumed(
        1.3, 1.0, 0.8, "length of the economy tier's answers against the frontier tier's", "assumed"
    )
    right_frontier: Assumed = Assumed(0.93, 0.93, 0.93, "right answers, frontier tier", MMLU)
    right_standard: Assumed = Assumed(0.89, 0.92, 0.93, "right answers, standard tier", MMLU)
    right_economy: Assumed = Assumed(0.85, 0.88, 0.91, "right answers, economy tier", MMLU)
    local_coverage: Assumed = Assumed(
        0.5, 0.78, 0.95, "share of local answers above their threshold",
        "47 of 60 with the bundled model; a larger one covers more",
    )  # fmt: skip
    local_right: Assumed = Assumed(
        0.90,
        0.95,
        0.97,
        "right answers above the threshold",
        "the tasks' target error is 0.05 to 0.15",
    )
    local_s: Assumed = Assumed(
        0.087, 0.087, 0.05, "service time of a local answer, seconds", "docs/bench.md, one client"
    )
    replica_hour_usd: Assumed = Assumed(
        1.006, 0.10, 0.10, "US dollars an hour of local hardware",
        "two CPU cores; low: an A10G on demand (g5.xlarge)",
    )  # fmt: skip
    arrival_s: Assumed = Assumed(
        5.0,
        5.0,
        1.0,
        "mean time between requests, seconds",
        "assumed; decides idle time and caches",
    )

    def at(self, end: End) -> "Values":
        """Return the values at one end of all ranges."""
        return Values({item.name: getattr(getattr(self, item.name), end) for item in fields(self)})

    def rows(self) -> list[tuple[str, Assumed]]:
        """Return every assumption with its name."""
        return [(item.name, getattr(self, item.name)) for item in fields(self)]


@dataclass(frozen=True, slots=True)
class Values:
    """One value of each assumption."""

    by_name: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.by_name[name]


SPEEDS: Mapping[str, tuple[float, float]] = {
    "economy": (0.4, 150.0), "standard": (0.7, 80.0), "frontier": (1.2, 50.0),
}  # fmt: skip
"""By tier: seconds until the first token, tokens a second."""
