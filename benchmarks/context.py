"""`python -m benchmarks context`: how long it takes to prune a context of 4,000 tokens."""

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

from serving.host.numbers import whole_number

if TYPE_CHECKING:
    from serving.context.pairs import Pair
    from serving.context.pruning import Part, Pruner

HELP = "measure pruning of contexts of 4,000 tokens, one and two at once"
_TOKENS = 4000
_WARM = 10
_LIBRARY = "OPENBLAS_NUM_THREADS"


@dataclass(frozen=True, slots=True)
class Long:
    """A question with a context of 4,000 tokens, joined from several pairs'."""

    question: str
    parts: "tuple[Part, ...]"


@dataclass(frozen=True, slots=True)
class Timed:
    """Figures of contexts pruned so many at once. p50_ms, p95_ms: of one, on the clock.

    processor_ms: of the whole process for one context, all threads of the library included.
    """

    at_once: int
    contexts: int
    p50_ms: float
    p95_ms: float
    processor_ms: float


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--contexts", type=whole_number, default=200, help="pruned each time (200)")


def run(args: argparse.Namespace) -> int:
    """Measure and report. Exit status 0; figures are reported, not judged."""
    from benchmarks.machine import machine
    from serving.context.lazy import LazyPruner
    from serving.context.pairs import shipped_pairs
    from serving.contracts.context_settings import ContextSettings

    pruner = LazyPruner(ContextSettings()).get()
    pairs = [*shipped_pairs("fit"), *shipped_pairs("held_out")]
    contexts = list(islice(long_contexts(pairs), args.contexts))
    timed(pruner, contexts[:_WARM], 1)
    found: dict[str, Any] = {
        "machine": machine(),
        "load": os.getloadavg()[0],
        "matrix_threads": os.environ.get(_LIBRARY, "as many as cores"),
        "timed": [asdict(timed(pruner, contexts, at_once)) for at_once in (1, 2)],
    }
    if args.json:
        print(json.dumps(found))
        return 0
    print("machine: " + ", ".join(f"{key} {value}" for key, value in found["machine"].items()))
    print(f"load {found['load']:.1f}, {_LIBRARY}: {found['matrix_threads']}")
    for one in found["timed"]:
        print(
            f"{one['at_once']} at once, {one['contexts']} contexts of {_TOKENS:,} tokens: "
            f"p50 {one['p50_ms']:.1f} ms, p95 {one['p95_ms']:.1f} ms, "
            f"processor {one['processor_ms']:.1f} ms each"
        )
    return 0


def long_contexts(pairs: "Sequence[Pair]") -> Iterator[Long]:
    """Yield contexts of 4,000 tokens without end; each begins with another pair's question."""
    from serving.context.fitting import parts_of
    from serving.contracts.text_length import quarter_tokens

    for begin in cycle(range(len(pairs))):
        parts: list[Part] = []
        tokens = 0
        for pair in islice(cycle(pairs), begin, None):
            for part in parts_of(pair):
                if tokens < _TOKENS:
                    parts.append(part)
                    tokens += quarter_tokens(part.text) // 4
            if tokens >= _TOKENS:
                break
        yield Long(pairs[begin].question, tuple(parts))


def timed(pruner: "Pruner", contexts: Sequence[Long], at_once: int) -> Timed:
    """Return how long pruning takes in so many threads. Blocking."""
    import numpy as np

    def prune(one: Long) -> float:
        began = time.perf_counter()
        pruner.prune(one.question, one.parts)
        return time.perf_counter() - began

    began = time.process_time()
    with ThreadPoolExecutor(at_once) as threads:
        seconds = list(threads.map(prune, contexts))
    processor = (time.process_time() - began) / len(contexts)
    p50, p95 = (1000 * float(np.quantile(seconds, share)) for share in (0.5, 0.95))
    return Timed(
        at_once, len(contexts), round(p50, 2), round(p95, 2), round(1000 * processor, 2)
    )  # fmt: skip
