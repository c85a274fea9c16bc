"""What the evidence benchmark measures on streams, and its figures with their intervals."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from benchmarks.evidence_run import Outcomes, Plan, Run, cross_validated
from benchmarks.evidence_streams import Floats, Order, Source, relabelled, stream
from serving.evidence.statistics.audit_rate import AuditSchedule, affordable_rate
from serving.evidence.statistics.intervals import clopper_pearson
from serving.evidence.statistics.recalibration import fit_label_confidence
from serving.evidence.statistics.watching import detector, first_state, next_state

TAIL = 500
"""Inputs at the end of a stream over which coverage is reported."""

_ALARM = 10_000.0
_BATCH = 50


@dataclass(frozen=True, slots=True)
class Share:
    """A share of runs with its exact 95 % interval."""

    count: int
    runs: int
    low: float
    high: float


def share(count: int, runs: int) -> Share:
    """Return a share of runs. Raises ValueError for no runs."""
    found = clopper_pearson(count, runs)
    return Share(count, runs, found.low, found.high)


def kept_target(source: Source, order: Order, runs: int, target: float) -> dict[str, Any]:
    """Run a source often in one order: is the error among accepted within the target?"""
    found = [_outcomes(source, order, seed, target) for seed in range(runs)]
    earned = [o.earned_at[0] if o.earned_at else np.inf for o in found]
    above = sum(_error(o) > target for o in found)
    accepted = sum(int(o.accepted.sum()) for o in found)
    return {
        "source": source.name, "order": order, "inputs": len(source.labels), "target": target,
        "runs_above_target": share(above, runs),
        "earned": share(int(np.isfinite(earned).sum()), runs),
        "inputs_until_earned": quantiles(earned),
        "error": sum(int(o.wrong.sum()) for o in found) / accepted if accepted else None,
        "coverage_of_last_inputs": float(np.mean([o.accepted[-TAIL:].mean() for o in found])),
        "suspensions": sum(len(o.suspended_at) for o in found),
    }  # fmt: skip


def shifted(source: Source, runs: int, target: float) -> dict[str, Any]:
    """Change what labels mean at half of the stream: audits until suspended, and re-earned?"""
    audits: list[float] = []
    again = held = 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        shuffled = stream(source, "shuffled", rng)
        half = len(shuffled.labels) // 2
        run = Run(relabelled(shuffled, half, 2.0 * target), Plan(target), rng).all()
        is_held = sum(at <= half for at in run.earned_at) > sum(
            at <= half for at in run.suspended_at
        )
        if not is_held:
            continue
        held += 1
        ends = [at for at in run.suspended_at if at > half]
        if ends:
            audits.append(int(run.audited[half : ends[0]].sum()))
            again += any(at > ends[0] for at in run.earned_at)
        else:
            audits.append(np.inf)
    return {
        "source": source.name, "held_at_the_shift": held,
        "audits_until_suspended": quantiles(audits),
        "earned_again": share(again, held) if held else None,
    }  # fmt: skip


def false_suspensions(target: float, runs: int, audits: int) -> Share:
    """Return the share of stationary streams at 0.8 of the target that are suspended."""
    rng = np.random.default_rng(1)
    state, alarmed = first_state(target, (runs,)), np.zeros(runs, dtype=bool)
    for _ in range(audits):
        state = next_state(state, (rng.random(runs) < 0.8 * target).astype(np.float64), target)
        alarmed |= detector(state) >= np.log(_ALARM)
    return share(int(alarmed.sum()), runs)


def label_thresholds(source: Source, runs: int, target: float, labelled: int) -> dict[str, Any]:
    """Compare one threshold with one for each label: coverage of later inputs at the target."""
    plain, fitted = [], []
    for seed in range(runs):
        shuffled = stream(source, "shuffled", np.random.default_rng(seed))
        head, confidence, losses = cross_validated(
            shuffled.vectors[:labelled], shuffled.reference[:labelled], source.count
        )
        known = head.probabilities(shuffled.vectors[:labelled]).argmax(axis=1)
        by_label = fit_label_confidence(confidence, known, 1.0 - losses, source.count)
        found = head.probabilities(shuffled.vectors[labelled:])
        answers, highest = found.argmax(axis=1), found.max(axis=1)
        wrong = answers != shuffled.labels[labelled:]
        plain.append(_coverage(highest, wrong, target))
        fitted.append(_coverage(by_label(highest, answers), wrong, target))
    gains = np.array(fitted) - np.array(plain)
    return {
        "source": source.name, "labels": labelled, "one_threshold": float(np.mean(plain)),
        "by_label": float(np.mean(fitted)), "gain": quantiles(gains),
    }  # fmt: skip


def audit_cost_share(accepted: int) -> float:
    """Return what audits at the floor cost, as a share of the reference cost avoided."""
    rng = np.random.default_rng(1)
    usd = rng.lognormal(-7.0, 0.5, accepted)
    schedule = AuditSchedule()
    begun = round(schedule.high_rate * schedule.high_rate_inputs / schedule.floor_rate)
    known = usd[:begun]
    floor = affordable_rate(float(known.mean()), float(known.mean()), 0.02)
    audited = rng.random(accepted) < floor
    return float(usd[audited].sum() / usd.sum())


def request_path_us(requests: int) -> dict[str, float | None]:
    """Return what a held claim adds to a request, in microseconds, elapsed.

    Its ruling, coin, budget, list of 200 texts, and drift. Quantiles over batches of 50 requests: a
    clock costs as much as parts of it, and p10 is least disturbed by other processes.
    """
    from serving.contracts.context import RequestContext
    from serving.contracts.deadline import Deadline
    from serving.contracts.evidence import Action, Claim, ClaimState
    from serving.contracts.evidence_settings import EvidenceSettings
    from serving.contracts.ledger import Caller, Tenant
    from serving.contracts.routing import RequestOptions
    from serving.evidence.pacing import coin
    from serving.evidence.rulings import Evidence
    from serving.evidence.snapshot import ClaimSnapshot
    from serving.evidence.store import Definition
    from serving.tasks.catalog import load_specs
    from serving.tasks.grant import Grant

    opened: list[Definition] = []
    snapshot = ClaimSnapshot(1e9)
    snapshot.replace({}, time.monotonic())
    evidence = Evidence(
        EvidenceSettings(), snapshot, "openai/gpt-6-luna", Tenant, opened.append, b"k" * 32
    )
    shortcut = evidence.local_task(load_specs(None)["topic"], "bundled", Grant(None, None, None))
    context = RequestContext("r", Caller("default"), RequestOptions(), Deadline.after(1e6))
    evidence.ruling(shortcut, context)
    (definition,) = opened
    now = datetime.now(UTC)
    claim = Claim(
        definition.id, definition.scope, "local_task", "exact", definition.target_error,
        definition.reference, ClaimState.HELD, now, Action("model", 0.9), earned_at=now,
        escalate=tuple(f"{n:032x}" for n in range(200)),
    )  # fmt: skip
    snapshot.replace({claim.id: claim}, time.monotonic())
    taken = []
    for batch in range(max(1, requests // _BATCH)):
        texts = [f"The council votes on the budget of district {batch}.{n}." for n in range(_BATCH)]
        began = time.perf_counter_ns()
        for text in texts:
            one = evidence.local_task(shortcut.spec, "bundled", shortcut.grant)
            ruling = evidence.ruling(one, context)
            coin(ruling.rate)
            evidence.is_affordable()
            evidence.always_escalates(ruling.name, text)
            evidence.drift.observe(ruling.name, 1, "World")
        taken.append((time.perf_counter_ns() - began) / 1000.0 / _BATCH)
    return quantiles(taken)


def quantiles(values: Iterable[float]) -> dict[str, float | None]:
    """Return p10, p50 and p90; None where that is infinite or there is no value."""
    found = np.array(list(values), dtype=np.float64)
    if not len(found):
        return {"p10": None, "p50": None, "p90": None}
    points = {f"p{p}": float(np.quantile(found, p / 100, method="lower")) for p in (10, 50, 90)}
    return {name: value if np.isfinite(value) else None for name, value in points.items()}


def _outcomes(source: Source, order: Order, seed: int, target: float) -> Outcomes:
    rng = np.random.default_rng(seed)
    return Run(stream(source, order, rng), Plan(target), rng).all()


def _error(outcomes: Outcomes) -> float:
    accepted = outcomes.accepted.astype(bool)
    return float(outcomes.wrong[accepted].mean()) if accepted.any() else 0.0


def _coverage(confidence: Floats, wrong: Any, error: float) -> float:
    """Return the largest share of the most confident answers with at most that error."""
    errors = np.cumsum(wrong[np.argsort(-confidence, kind="stable")])
    within = np.flatnonzero(errors <= error * np.arange(1, len(errors) + 1))
    return float(within[-1] + 1) / len(errors) if len(within) else 0.0
