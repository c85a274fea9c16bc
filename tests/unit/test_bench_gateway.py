"""The gateway's benchmark: which requests it sends, and when a goal counts as met."""

import argparse

from benchmarks.gateway import (
    BY_NAME,
    EMBEDDED,
    EMPTY,
    HIT,
    KNOWN,
    bodies_of,
    document_of,
    lines,
    targets_of,
)
from benchmarks.load import LoadResult


def contents(name: str, number: int) -> list[str]:
    (target,) = (one for one in targets_of("http://stack", "http://provider") if one.name == name)
    return [body["messages"][0]["content"] for body in bodies_of(target, 1, number) if body]


def test_only_hits_repeat_a_body_and_only_known_instructions_repeat() -> None:
    for name in (BY_NAME, EMBEDDED, KNOWN):
        texts = contents(name, 1) + contents(name, 2)
        assert len(set(texts)) == len(texts)
    assert len(set(contents(HIT, 1) + contents(HIT, 2))) == 1
    orders = {
        name: {text.split(":")[0] for text in contents(name, 1)} for name in (EMBEDDED, KNOWN)
    }
    assert (len(orders[EMBEDDED]), len(orders[KNOWN])) == (len(contents(EMBEDDED, 1)), 1)


def test_goals_are_judged_by_median_p99_throughput_and_memory() -> None:
    targets = targets_of("http://stack", "http://provider")
    seconds = {EMPTY: 0.001, BY_NAME: 0.004, EMBEDDED: 0.010, KNOWN: 0.004, HIT: 0.002}
    for target in targets:
        each = seconds.get(target.name, 0.001)
        slow = 0.05 if target.name == HIT else each
        for clients in (1, 16):
            latencies = (*[each] * 97, *[slow] * 3)
            target.rounds[clients] = [LoadResult(latencies, 100 / 500)] * 3
    args = argparse.Namespace(clients=(1, 16), rounds=3)
    document = document_of(targets, args, 401.0, None)
    missed = [one["what"] for one in document["goals"] if not one["met"]]
    assert missed == [
        f"{EMBEDDED}, added to p50 at 1 client",
        f"{HIT}, p99 at 1",
        f"{BY_NAME}, at 16 clients",
        f"{HIT}, at 16 clients",
        f"{HIT}, p99 at 16",
        "memory of a gateway replica",
    ]
    report = list(lines(document))
    assert sum("MISSED" in line for line in report) == len(missed)
    assert "SQLite" in report[0]
