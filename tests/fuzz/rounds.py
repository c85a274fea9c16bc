"""Runs a property with generated inputs for a given time; a failure prints its smallest input."""

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.strategies import SearchStrategy

Property = Callable[[Any], None]
Checks = Sequence[tuple[SearchStrategy[Any], Property]]
"""Inputs, and what must hold for each of them."""


def parser(about: str) -> argparse.ArgumentParser:
    """Return the parser of a fuzzer: --seconds and --seed."""
    made = argparse.ArgumentParser(description=about)
    made.add_argument("--seconds", type=float, default=150.0, help="how long to run (150)")
    made.add_argument("--seed", type=int, default=None, help="of the first round (the time)")
    return made


def run_rounds(name: str, checks: Checks, seconds: float, seed: int | None = None) -> int:
    """Check generated inputs in rounds until the time is over. Returns the number of rounds.

    Raises the first failure, after printing its smallest input and its seed. Failures found before
    are tried first: they are kept under .hypothesis/fuzz-NAME.
    """
    seed = int(time.time()) if seed is None else seed
    end = time.monotonic() + seconds
    rounds = 0
    print(f"fuzz {name}: {seconds:.0f} s, first seed {seed}", flush=True)
    while rounds == 0 or time.monotonic() < end:
        for strategy, holds in checks:
            run_once(name, strategy, holds, seed + rounds)
        rounds += 1
    print(f"fuzz {name}: {rounds} rounds, nothing found", flush=True)
    return rounds


def run_once(
    name: str, strategy: SearchStrategy[Any], holds: Property, seed: int, examples: int = 50
) -> None:
    """Check so many inputs of one seed."""

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        deadline=None,
        database=DirectoryBasedExampleDatabase(f".hypothesis/fuzz-{name}"),
        phases=[Phase.reuse, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(strategy)
    def check(value: Any) -> None:
        hypothesis.note(f"seed {seed}, input {value!r}")
        holds(value)

    check()
