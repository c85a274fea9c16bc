"""What the audit assumes because a log cannot show it, each with its range and its source."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from serving.contracts.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Assumed:
    """A number. low: the value with which least is saved; high: most. source: where it is from."""

    low: float
    central: float
    high: float
    what: str
    source: str

    @property
    def scenarios(self) -> tuple[float, float, float]:
        """Return the values of the scenarios: least saved, central, most saved."""
        return self.low, self.central, self.high


@dataclass(frozen=True, slots=True)
class Assumptions:
    """All of them. The names are those of `--assume NAME=VALUE`."""

    local_coverage: Assumed = Assumed(
        0.5, 0.78, 0.95,
        "share of the narrow requests whose local answer is above the threshold",
        "the cost benchmark: 47 of 60 with the bundled model; a model of your own differs",
    )  # fmt: skip
    local_answer_usd: Assumed = Assumed(
        0.0001, 0.000015, 0.000003,
        "US dollars of a local answer, busy replica time only",
        "docs/bench.md: 2 CPU cores at $0.10 an hour, or an A10G at $1.006 at 20 inputs/s",
    )  # fmt: skip
    context_earned: Assumed = Assumed(
        0.5, 0.8, 1.0,
        "share of the removable context in scopes whose claim is earned",
        "no live claim yet; the shipped pairs keep at least 0.97 of the answers",
    )  # fmt: skip
    cache_served: Assumed = Assumed(
        0.8, 0.95, 1.0,
        "share of the expected prompt-cache reads that the provider serves",
        "providers promise no hit; a miss pays the full input price",
    )  # fmt: skip
    output_saved: Assumed = Assumed(
        0.0, 0.15, 0.3,
        "share of the visible output of free-form requests that directive and bound save",
        "the goal of learned bounds is 0.15 to 0.30; not measured on real models",
    )  # fmt: skip
    tier_share: Assumed = Assumed(
        0.0, 0.3, 0.44,
        "share of the remaining cost that earns the next cheaper model",
        "MMLU by subject: 0.30 at 0.7 points of accuracy lost, 0.44 at 1.9 points",
    )  # fmt: skip
    tier_audits: Assumed = Assumed(
        0.1, 0.03, 0.01,
        "share of requests that the cheaper model also answers and a judge compares",
        "about 200 to 400 judged pairs a cluster, spread over its requests",
    )  # fmt: skip

    def items(self) -> list[tuple[str, Assumed]]:
        """Return every assumption with its name."""
        return [(item.name, getattr(self, item.name)) for item in fields(self)]

    def with_values(self, given: Mapping[str, str]) -> "Assumptions":
        """Return the assumptions with the caller's own values, which have no range.

        Raises InvalidArgument.
        """
        known = dict(self.items())
        changed = {}
        for name, text in given.items():
            if name not in known:
                raise InvalidArgument(
                    f"{name!r} is no assumption", field="--assume", fix=f"one of {', '.join(known)}"
                )
            most = 1000.0 if name.endswith("_usd") else 1.0
            value = _number(text)
            if value is None or not 0.0 <= value <= most:
                raise InvalidArgument(
                    f"{name} is {text!r}, not a number from 0 to {most:g}",
                    field="--assume",
                    fix=f"write --assume {name}={known[name].central:g}",
                )
            changed[name] = replace(
                known[name], low=value, central=value, high=value, source="your own"
            )
        return replace(self, **changed)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
