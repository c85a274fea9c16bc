"""`python -m benchmarks NAME`: run one benchmark; the Makefile has a target for each."""

import sys

from benchmarks import (
    batch,
    bounds,
    cache,
    check,
    context,
    cost,
    evidence,
    gate,
    gateway,
    goals,
    ledger,
    replay,
    scale,
    soak,
    stack,
    tiers,
)
from serving.cli import run_program

_BENCHMARKS = {
    "batch": batch,
    "bounds": bounds,
    "cache": cache,
    "check": check,
    "context": context,
    "cost": cost,
    "evidence": evidence,
    "gate": gate,
    "gateway": gateway,
    "goals": goals,
    "ledger": ledger,
    "replay": replay,
    "scale": scale,
    "soak": soak,
    "stack": stack,
    "tiers": tiers,
}


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark and return its exit status."""
    return run_program(
        "python -m benchmarks", "Compare the stack with its parts.", _BENCHMARKS, argv
    )


if __name__ == "__main__":
    sys.exit(main())
