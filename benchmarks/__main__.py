"""`python -m benchmarks NAME`: runs one benchmark; the Makefile has a target for each."""

import sys

from benchmarks import bounds, cost, gate, gateway, ledger, stack
from serving.cli import run_program

_BENCHMARKS = {
    "bounds": bounds,
    "cost": cost,
    "gate": gate,
    "gateway": gateway,
    "ledger": ledger,
    "stack": stack,
}

if __name__ == "__main__":
    sys.exit(run_program("benchmarks", "Measure the stack beside its parts.", _BENCHMARKS))
