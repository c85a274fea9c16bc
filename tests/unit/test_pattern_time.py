"""Every regular expression of the product takes time about linear in its text, for any content."""

import gc
import importlib
import inspect
import math
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType

import pytest

import serving

# Migrations run within Alembic only.
SKIPPED = ("serving.ledger.migrations",)
FEW_CHARS, CHARS = 4_000, 32_000
LEAST_S, MOST_S, TIMES = 0.004, 1.0, 22.0
"""Of processor time. Eight times the text takes a linear pattern eight times as long, a quadratic
one 64 times. Most linear ones take less than LEAST_S for the few.
"""

PIECES = [
    "\n", " ", "\t", "a", "1", ".", "-", "_", '"', "'", "a ", "a.", "a,", "a-", "1.", "1,", "\r\n",
    "a\n", "(", "a(", "<", "<a", "{", "[", ":", "/", "http://", "@", "a@", "a@b.", "é", "A", "A ",
    "in ", "please ", "generate a ", "random ", "the ", "| a ", "- a\n", "```", "\\", "=", "%", "$",
]  # fmt: skip


MATCHED = {"serving.context.units._KINDS", "serving.context.units._ROW",
           "serving.context.units._CODE"}  # fmt: skip
"""A loop matches them at a line's beginning."""
SHORT = {"serving.frontier.prefix_lint._KINDS"}
"""Only for texts of at most 200 characters."""


class Stuck(Exception):
    """The alarm went off."""


def modules() -> Iterator[ModuleType]:
    """Import the modules that compile patterns; the others need vLLM, or seconds to import."""
    for path in sorted(Path(*serving.__path__).rglob("*.py")):
        name = ".".join(("serving", *path.relative_to(*serving.__path__).with_suffix("").parts))
        if "compile(" in path.read_text("utf-8") and not name.startswith(SKIPPED):
            yield importlib.import_module(name.removesuffix(".__init__"))


def patterns_in(value: object) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        if isinstance(value.pattern, str):
            yield value
    elif isinstance(value, tuple | list | frozenset):
        for item in value:
            yield from patterns_in(item)
    elif isinstance(value, dict):
        yield from patterns_in(list(value.values()))


def anchored(module: ModuleType, name: str) -> bool:
    """Return whether a module only matches a pattern at a text's beginning."""
    if f"{module.__name__}.{name}" in MATCHED:
        return True
    uses = re.findall(rf"\b{name}(\.\w+)?", inspect.getsource(module))
    return {*uses} <= {"", ".match", ".fullmatch"} and {".match", ".fullmatch"} & {*uses} != set()


def found_patterns() -> dict[str, tuple[re.Pattern[str], bool]]:
    """Return each pattern by where it is, with whether it is only matched at the beginning."""
    found = {}
    for module in modules():
        for name, value in vars(module).items():
            if f"{module.__name__}.{name}" in SHORT:
                continue
            for number, pattern in enumerate(patterns_in(value)):
                if not any(pattern is known for known, _ in found.values()):
                    found[f"{module.__name__}.{name}[{number}]"] = pattern, anchored(module, name)
    return found


def seconds(work: Callable[[], object], most_s: float) -> float:
    """Return this thread's processor time of a call, which an alarm ends after most_s.

    Neither what other threads do nor the collection of what other tests left behind counts.
    """

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if time.thread_time() - began_s >= most_s:
            raise Stuck

    before = signal.signal(signal.SIGPROF, stop)
    gc.disable()
    began_s = time.thread_time()
    # More often than most_s: the alarm counts all threads.
    signal.setitimer(signal.ITIMER_PROF, most_s, most_s / 10)
    try:
        work()
    except Stuck:
        pass
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        took_s = time.thread_time() - began_s
        gc.enable()
        signal.signal(signal.SIGPROF, before)
    return took_s


def growth(search: Callable[[str], object], piece: str) -> float:
    """Return how much longer a search takes for CHARS of a piece than for FEW_CHARS.

    0 where it takes no time worth a measurement, infinite where it does not end.
    """
    few, many = ((piece * size)[:size] + "~" for size in (FEW_CHARS, CHARS))
    if (first := seconds(lambda: search(few), MOST_S)) < LEAST_S:
        return 0.0
    if first >= MOST_S:
        return math.inf
    # The shortest of several: other programs only add to a time.
    short = min(first, *(seconds(lambda: search(few), MOST_S) for _ in range(4)))
    if short < LEAST_S / 2:
        return 0.0
    for _ in range(3):
        long = seconds(lambda: search(many), 1.1 * TIMES * short)
        if long <= TIMES * short:
            break
    return long / short


# Some 15 s of processor time, of which a busy machine gives a tenth.
@pytest.mark.timeout(600)
def test_no_pattern_takes_more_time_than_the_texts_length_explains() -> None:
    patterns = found_patterns()
    assert len(patterns) > 200
    slow = []
    for name, (pattern, at_beginning) in patterns.items():
        search = pattern.match if at_beginning else pattern.findall
        for piece in PIECES:
            if (times := growth(search, piece)) > TIMES:
                slow.append(f"{name} on {piece!r}: {times:.0f} times")
                break
    assert not slow, "\n".join(slow)


def test_a_quadratic_pattern_is_found() -> None:
    assert growth(re.compile(r"\n\s*end").findall, "\n") > TIMES
    assert growth(re.compile(r"\n\s{0,9}end").findall, "\n") < TIMES
