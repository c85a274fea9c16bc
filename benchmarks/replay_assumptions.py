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
ALPACA = (
    "AlpacaEval 2 leaderboard (tatsu-lab/alpaca_eval), mean characters of 805 answers by model, "
    "at 4 a token"
)
MMLU = (
    "6,982 MMLU answers of a dear and a cheap model (0.806 and 0.707 right), by subject: the best "
    "44 % of the requests lose 1.9 points of all, the rest 14.3 of their own; in moral scenarios 39"
)
BETWEEN = "assumed: a third of the economy tier's loss; not measured"


@dataclass(frozen=True, slots=True)
class Assumptions:
    """All of them."""

    narrow: Assumed = Assumed(0.2, 0.4, 0.6, "share of narrow requests", "assumed")
    repeats: Assumed = Assumed(
        0.0, 0.3, 0.3, "share of single requests that repeat an earlier one, a third of them in "
        "other words", "30 to 60 % are reported for support chats; assumed",
    )  # fmt: skip
    medium_tokens: Assumed = Assumed(
        120, 216, 441, "median answer to a short question, tokens", CONVERSATIONS
    )
    open_tokens: Assumed = Assumed(
        347, 441, 512, "median answer to an open-ended request, tokens",
        f"{CONVERSATIONS}; ends: Claude 3 Opus 1,388 and GPT-4 1106 2,049 characters, {ALPACA}",
    )  # fmt: skip
    narrow_tokens: Assumed = Assumed(
        3, 12, 40, "median answer to a narrow request, tokens",
        "a label, or a label with a sentence",
    )  # fmt: skip
    rag_tokens: Assumed = Assumed(
        80, 150, 300, "median answer to a question about a context, tokens", "assumed"
    )
    spread: Assumed = Assumed(
        0.7, 0.7, 0.7, "sigma of the answers' log length", "lognormal; assumed"
    )
    directed: Assumed = Assumed(
        1.0, 0.75, 0.52, "length of an answer where brevity is asked for, as a share",
        "0.52 to 0.62: five models with and without a request to be concise (573/1,096 of Claude "
        f"2.1 to 910/1,465 of Mixtral 8x7B), {ALPACA}; 1: one that does not obey; 0.75: between",
    )  # fmt: skip
    brief_lost: Assumed = Assumed(
        0.05, 0.01, 0.0, "right answers lost where brevity is asked for",
        "assumed; published (arXiv 2401.05618): negligible at half the length, but 28 % of one "
        "model's in mathematics",
    )  # fmt: skip
    wordy_standard: Assumed = Assumed(
        1.07, 1.03, 1.0, "length of the standard tier's answers against the frontier tier's",
        "Claude 3 Sonnet/Opus 1,420/1,388, Claude 3.5 Sonnet 1,488/1,388, Llama 3.1 70B/405B "
        f"2,044/1,988; {ALPACA}",
    )  # fmt: skip
    wordy_economy: Assumed = Assumed(
        1.17, 1.03, 0.99, "length of the economy tier's answers against the frontier tier's",
        "GPT-4o mini/GPT-4o 1,861/1,873, Claude Instant 1.2/2.1 1,112/1,096, Llama 3.1 8B/405B "
        f"2,181/1,988, GPT-3.5/GPT-4 0613 1,331/1,140; {ALPACA}",
    )  # fmt: skip
    right_frontier: Assumed = Assumed(
        0.93, 0.93, 0.93, "right answers, frontier tier", "assumed; losses are differences to it"
    )
    easy: Assumed = Assumed(
        0.30, 0.44, 0.60, "share of open-ended requests in topics where the cheap tiers are about "
        "as good", MMLU,
    )  # fmt: skip
    trap: Assumed = Assumed(
        0.12, 0.06, 0.0, "share of them in topics where the cheap tiers are wrong most", MMLU
    )
    easy_economy: Assumed = Assumed(
        0.06, 0.043, 0.02, "right answers lost by the economy tier in easy topics", MMLU
    )
    easy_standard: Assumed = Assumed(
        0.03, 0.014, 0.0, "right answers lost by the standard tier in easy topics", BETWEEN
    )
    hard_economy: Assumed = Assumed(
        0.20, 0.143, 0.10, "right answers lost by the economy tier in the other topics", MMLU
    )
    hard_standard: Assumed = Assumed(
        0.08, 0.048, 0.02, "right answers lost by the standard tier in the other topics", BETWEEN
    )
    trap_loss: Assumed = Assumed(
        0.39, 0.39, 0.39, "right answers lost by both cheaper tiers in the worst topics", MMLU
    )
    badly: Assumed = Assumed(
        0.4, 0.2, 0.1, "share of an answer's losses that a judge finds wrong, not weaker", "assumed"
    )
    slip: Assumed = Assumed(
        0.2, 0.05, 0.0, "share of a judge's verdicts that are random",
        "assumed; 65 to 85 % agreement with people is published for strong judges, ties included "
        "(arXiv 2306.05685)",
    )  # fmt: skip
    place: Assumed = Assumed(
        0.3, 0.1, 0.0, "share of ties that a judge gives to the first answer", "assumed"
    )
    agree_right: Assumed = Assumed(
        0.7, 0.9, 0.95, "share of right answers of a cheap tier that its second answer agrees with",
        "assumed; cascades only",
    )  # fmt: skip
    agree_wrong: Assumed = Assumed(
        0.6, 0.3, 0.1, "the same of its wrong answers", "assumed; cascades only"
    )
    local_coverage: Assumed = Assumed(
        0.5, 0.78, 0.95, "share of local answers above their threshold",
        "47 of 60 with the bundled model; a larger one covers more",
    )  # fmt: skip
    local_right: Assumed = Assumed(
        0.90, 0.95, 0.97, "right answers above the threshold",
        "the tasks' target error is 0.05 to 0.15",
    )  # fmt: skip
    local_s: Assumed = Assumed(
        0.087, 0.087, 0.05, "service time of a local answer, seconds", "docs/bench.md, one client"
    )
    replica_hour_usd: Assumed = Assumed(
        1.006, 0.10, 0.10, "US dollars an hour of local hardware",
        "two CPU cores; low: an A10G on demand (g5.xlarge)",
    )  # fmt: skip
    arrival_s: Assumed = Assumed(
        20.0, 5.0, 1.0, "mean time between requests, seconds",
        "assumed; decides idle time, caches, and how much of a month it takes to earn",
    )  # fmt: skip

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

    def but(self, **changed: float) -> "Values":
        """Return these values with some changed."""
        return Values({**self.by_name, **changed})


SPEEDS: Mapping[str, tuple[float, float]] = {
    "economy": (0.4, 150.0), "standard": (0.7, 80.0), "frontier": (1.2, 50.0),
}  # fmt: skip
"""By tier: seconds until the first token, tokens a second."""
