"""The replay's saving over the ranges of what is assumed: one group of values at a time."""

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.replay_arms import direct, run_arm
from benchmarks.replay_assumptions import Assumptions, Values
from benchmarks.replay_figures import figures
from benchmarks.replay_mix import build_mix
from benchmarks.replay_setup import LEVERS, Replay

GROUPS: Mapping[str, tuple[str, ...]] = {
    "repeats": ("repeats",),
    "narrow share": ("narrow",),
    "answer lengths": ("medium_tokens", "open_tokens", "rag_tokens", "narrow_tokens"),
    "response to the directive": ("directed", "brief_lost"),
    "wordiness of cheaper tiers": ("wordy_standard", "wordy_economy"),
    "quality by tier and topic": (
        "easy", "trap", "easy_economy", "easy_standard", "hard_economy", "hard_standard",
    ),
    "judge's errors": ("badly", "slip", "place"),
    "local answers": ("local_coverage", "local_right", "local_s"),
    "time between requests": ("arrival_s",),
}  # fmt: skip
"""Every assumption that has a range and changes the saving without idle time."""

Ends = Literal["low", "high"]


@dataclass(frozen=True, slots=True)
class Ranged:
    """The saving with one group of assumptions at an end of its range, the others central."""

    group: str
    end: Ends
    saved: float
    saved_bounds: tuple[float, float]
    loss: float
    tiers: Mapping[str, float]


def ranged(replay: Replay, requests: int, seed: int, keep: Path | None, most: int) -> list[Ranged]:
    """Return the saving at both ends of each group. Blocking: a minute each.

    keep: a file with those that are known, to which new ones are added. most: to run now.
    """
    known: dict[tuple[str, str], Ranged] = {}
    if keep is not None and keep.exists():
        known = pickle.loads(keep.read_bytes())  # noqa: S301  # the user's own file
    for group, end, values in _cases():
        if (group, end) in known or not most:
            continue
        most -= 1
        known[group, end] = _ranged(replay, group, end, values, requests, seed)
        if keep is not None:
            keep.write_bytes(pickle.dumps(known))
    return list(known.values())


def _cases() -> Iterator[tuple[str, Ends, Values]]:
    table = Assumptions()
    ends: tuple[Ends, Ends] = ("low", "high")
    for group, names in GROUPS.items():
        for end in ends:
            yield group, end, table.at("central").but(**{n: table.at(end)[n] for n in names})


def _ranged(
    replay: Replay, group: str, end: Ends, values: Values, requests: int, seed: int
) -> Ranged:
    one = Replay(
        build_mix(requests, values, seed), values, replay.settings, replay.book, replay.reference,
        replay.folder / f"{group} {end}", replay.earlier_days, seed,
    )  # fmt: skip
    one.folder.mkdir()
    # The texts of the mixes are mostly the same.
    one.__dict__["embedder"] = replay.embedder
    found = figures(direct(one), run_arm(one, "all", LEVERS), values["replica_hour_usd"])
    return Ranged(
        group, end, found.saved, found.saved_bounds, found.loss, dict(one.earned.tiers or {})
    )


def lines(found: list[Ranged]) -> Iterator[str]:
    """Return a table for people."""
    yield f"{'assumed':<30}{'end':<6}{'saved':>8}  {'95 %':<18}{'loss':>7}  tiers"
    for one in found:
        low, high = one.saved_bounds
        tiers = ", ".join(f"{share:.0%} {tier}" for tier, share in sorted(one.tiers.items()))
        yield (
            f"{one.group:<30}{one.end:<6}{one.saved:>8.1%}  {f'{low:.1%} to {high:.1%}':<18}"
            f"{one.loss:>7.1%}  {tiers}"
        )


def document(found: list[Ranged]) -> list[dict[str, Any]]:
    """Return it as JSON."""
    return [asdict(one) for one in found]
