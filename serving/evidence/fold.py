"""Folds a claim's audits and events, in the order of the database, into its state. Pure.

Equal rows give an equal state and equal transitions, in every replica and after every restart.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from serving.contracts.evidence import (
    BASELINE_PREFIX,
    FOLD,
    Action,
    Audit,
    Claim,
    ClaimEvent,
    ClaimState,
    EarnedFrom,
    EventKind,
    Flips,
    JudgeSpread,
)
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.task_spec import LossName
from serving.evidence.candidates import MODEL
from serving.evidence.costs import AuditCosts
from serving.evidence.frequent_errors import FrequentErrors
from serving.evidence.people_error import PeopleLabels
from serving.evidence.statistics.earning import Earning, EarningRules, Reopened
from serving.evidence.statistics.examples import Example, Outcome
from serving.evidence.statistics.intervals import Interval, mean_sequence
from serving.evidence.statistics.judged import (
    JudgedLimits,
    JudgedPair,
    judged_baseline,
)
from serving.evidence.statistics.net import NetWatch, net_share, target_loss
from serving.evidence.statistics.placement import FIT_SIZES, Opening, place_thresholds
from serving.evidence.statistics.watching import Watch
from serving.evidence.store import Definition

NET_WORSE: LossName = "net_worse"

AGAIN = "reference"
"""The candidate that is the reference, asked a second time: what a judge makes of equal answers."""

IRREPRODUCIBLE = "the recorded transitions do not follow from the recorded audits"

_DEFAULTS = EvidenceSettings()

_VERSION = 3
"""Raised with every change of what rows lead to: a new version begins new claims."""


def rules_version(settings: EvidenceSettings) -> str:
    """Return the digest of all that decides, besides the rows, what state they lead to.

    It is part of a claim's scope. Under other rules the same rows lead to other transitions, which
    would look like forged ones.
    """
    rules = [
        _VERSION, settings.group_window_s, settings.min_groups, settings.min_span_h,
        settings.max_span_h, settings.alarm, settings.max_missing, settings.shadow_max_labels,
        settings.max_share_of_avoided_cost, settings.floor_rate,
    ]  # fmt: skip
    judged = (settings.badly_worse, settings.judged_max_labels)
    if judged != (_DEFAULTS.badly_worse, _DEFAULTS.judged_max_labels):
        # At their defaults they are left out, so that claims from before they existed stay.
        rules += judged
    return hashlib.sha256(json.dumps(rules).encode()).hexdigest()[:16]


@dataclass(slots=True)
class _Held:
    """What was seen under the hypothesis that is claimed. losses: their sum over its audits.

    earned_from: what earned it. signal_at: accepted inputs when traffic was last found changed.
    """

    hypothesis: int
    watch: Watch | NetWatch
    earned_from: EarnedFrom
    losses: float = 0.0
    accepted: int = 0
    signal_at: int = 0
    unjudged_since: datetime | None = None
    errors: FrequentErrors = field(default_factory=FrequentErrors)


@dataclass(slots=True)
class _Seen:
    """The audited inputs of one hypothesis since it was opened."""

    inputs: int = 0
    accepted: int = 0
    labels: Counter[str] = field(default_factory=Counter)


class ClaimFold:
    """The state of one claim. transitions: derived so far, in order."""

    def __init__(self, definition: Definition, settings: EvidenceSettings) -> None:
        self.definition = definition
        self._settings = settings
        self._begin()

    def _begin(self) -> None:
        """Take the state of a claim without rows, also after its tenant's were erased."""
        definition, settings = self.definition, self._settings
        self._is_net = definition.loss == NET_WORSE
        self._again: list[JudgedPair] = []
        self._earning = Earning(_rules(definition, settings))
        self._held: _Held | None = None
        self._own: list[Outcome] = []
        self._people = PeopleLabels()
        self._compared = self._differing = 0
        self._fits = iter(FIT_SIZES)
        self._next_fit: int | None = next(self._fits)
        self._seen: dict[int, _Seen] = {}
        self._costs = AuditCosts()
        self._recorded: list[ClaimEvent] = []
        self._is_edited = False
        self.transitions: list[ClaimEvent] = []
        begun = ClaimState.PROVISIONAL if definition.has_suite else ClaimState.SHADOW
        self._claim = Claim(
            definition.id, definition.scope, definition.shortcut, definition.loss,  # type: ignore[arg-type]
            definition.target_error, definition.reference, begun, definition.opened_at,
        )  # fmt: skip

    @property
    def claim(self) -> Claim:
        """Return the claim with what its evidence says now."""
        held, earning = self._held, self._earning
        claim = replace(
            self._claim,
            hypotheses=earning.tested,
            episode=earning.suspensions + 1,
            flips=self._flips(),
            judge_spread=self._judge_spread(),
            affordable_rate=self._affordable_rate,
        )
        if held is None:
            progress = max((h.progress for h in earning.hypotheses), default=0.0)
            return replace(
                claim, audits=earning.counted, progress=progress, shadow_loss=self._shadow_loss
            )
        audits = held.watch.audits
        observed = self._observed(held)
        return replace(
            claim,
            progress=1.0,
            observed_error=observed.mean if audits else None,
            interval=(observed.low, observed.high),
            audits=held.watch.audits,
            accepted=held.accepted,
            missing=held.watch.missing / max(1, held.watch.audits),
            people=self._people.error(),
            since_signal=held.accepted - held.signal_at,
            earned_from=held.earned_from,
            escalate=held.errors.listed,
            alarm_progress=held.watch.alarm_progress,
        )

    @property
    def _shadow_loss(self) -> float | None:
        """Return the mean loss under the first hypothesis of this episode; a net share of worse."""
        tested = self._earning.hypotheses
        if not tested or not tested[0].capital.count:
            return None
        loss = tested[0].capital.losses / tested[0].capital.count
        return net_share(loss) if self._is_net else loss

    def _observed(self, held: _Held) -> Interval:
        if not isinstance(held.watch, NetWatch):
            return mean_sequence(held.losses, held.watch.audits)
        # A negative share means that more answers were better than worse.
        found = held.watch.interval
        return Interval(max(0.0, found.mean), max(0.0, found.low), max(0.0, found.high))

    @property
    def covered(self) -> float:
        """Return the share of inputs that the claimed hypothesis accepts now; 0 where none is."""
        number = 0 if self._held is None else self._held.hypothesis
        found = (h.coverage for h in self._earning.hypotheses if h.number == number)
        return next(found, 0.0)

    @property
    def _affordable_rate(self) -> float:
        if self._is_net:
            # What exploring and watching a tier may cost is planned by its payback.
            return 1.0
        share = self._settings.max_share_of_avoided_cost
        if self._claim.loss in _JUDGED:
            share = min(1.0, _JUDGED_SHARE_FACTOR * share)
        return self._costs.affordable_rate(share)

    @property
    def is_reproduced(self) -> bool:
        """Return whether every recorded transition is the one that the rows lead to.

        Where rows were deleted for a person, the recorded transitions are taken as they are.
        """
        if self._is_edited:
            return True
        derived = [(e.kind, e.after) for e in self.transitions[: len(self._recorded)]]
        return derived == [(e.kind, e.after) for e in self._recorded]

    @property
    def unrecorded(self) -> list[ClaimEvent]:
        """Return transitions that no event records yet."""
        if self._is_edited:
            last = self._recorded[-1].after if self._recorded else 0
            return [event for event in self.transitions if event.after > last]
        return self.transitions[len(self._recorded) :]

    def is_unwatched(self, since: datetime) -> bool:
        """Return whether audits of a held claim were due and none has ended since a moment."""
        begun = None if self._held is None else self._held.unjudged_since
        return begun is not None and begun < since

    def is_on_course(self, within: int) -> bool:
        """Return whether a hypothesis under test would be earned within so many more examples."""
        return any(found.is_on_course(within) for found in self._earning.hypotheses)

    def due_tests(self) -> list[Action]:
        """Return hypotheses of the attested model that are worth opening now, and plan the next.

        Its thresholds are placed by the examples of this episode so far; only later ones count for
        them. Not a part of the state: whoever folds records the tests as events.
        """
        if self._is_net:
            return self._due_net_test()
        first = self._fixed_test()
        if first is not None:
            return [first]
        if self._next_fit is None or len(self._own) < self._next_fit:
            return []
        self._next_fit = next(self._fits, None)
        if self._earning.hypotheses and self._claim.state is not ClaimState.HELD:
            on_course = any(
                h.is_on_course(self._settings.shadow_max_labels) for h in self._earning.hypotheses
            )
            if on_course:
                return []
        confidence = np.array([found.confidence for found in self._own])
        loss = np.array([found.loss for found in self._own])
        openings = place_thresholds(
            MODEL, confidence, loss, self._claim.target_error, first=self._earning.tested + 1
        )
        return [_test_of(opening) for opening in openings]

    def _due_net_test(self) -> list[Action]:
        """Return the test of all answers of a shortcut, at the beginning of each episode."""
        if self._earning.hypotheses or self._claim.state not in _BEING_EARNED:
            return []
        target = target_loss(self._claim.target_error)
        return [_test_of(Opening(MODEL, 0.0, (0.5 + target) / 2.0, 1.0))]

    def _fixed_test(self) -> Action | None:
        """Return the test at the threshold that the scope names, where none was opened yet.

        It was fixed before any evidence, so that every example counts for it.
        """
        threshold = self._claim.scope.versions.get(FIXED_THRESHOLD)
        ended = self._claim.state is ClaimState.WITHDRAWN
        if threshold is None or self._earning.hypotheses or ended:
            return None
        return _test_of(Opening(MODEL, float(threshold), _FIXED_EXPECTED_ERROR, 1.0))

    def extend(self, rows: Iterable[Audit | ClaimEvent]) -> "ClaimFold":
        """Fold rows in their order and return the fold."""
        for row in rows:
            self.add(row)
        return self

    def add(self, row: Audit | ClaimEvent) -> None:
        """Fold one row."""
        if isinstance(row, ClaimEvent):
            self._event(row)
        elif self._claim.state is not ClaimState.WITHDRAWN:
            self._audit(row)
        self._claim = replace(self._claim, sequence=row.sequence)

    def _event(self, event: ClaimEvent) -> None:
        if event.actor == FOLD:
            # The rows before it have led to the same transition already. A replica that was
            # stopped while it had the lease may record one that another has recorded since.
            known = [(found.kind, found.after) for found in self._recorded]
            if (event.kind, event.after) not in known:
                self._recorded.append(event)
        elif event.kind == "tested":
            self._test(event)
        elif event.kind == "deleted":
            self._is_edited = True
            if self._held is not None:
                # Whose texts are listed is not known: the list is made again from later audits.
                self._held.errors = FrequentErrors()
        elif event.kind == "erased":
            self._begin()
        elif event.kind == "drifted":
            self._drift(event)
        elif event.kind in ("suspended", "slowed", "resumed"):
            self._pace(event)
        elif event.kind == "withdrawn":
            self._held = None
            self._claim = replace(
                self._claim, state=ClaimState.WITHDRAWN, since=event.at, reason=event.reason,
                action=None,
            )  # fmt: skip

    def _test(self, event: ClaimEvent) -> None:
        action = event.action
        assert action is not None
        if action.candidate == MODEL:
            # After a restart, tests that were opened then are not due again.
            while self._next_fit is not None and self._next_fit <= len(self._own):
                self._next_fit = next(self._fits, None)
        expected = action.parameters
        self._earning.add(
            Opening(
                action.candidate, action.threshold, expected["expected_error"],
                expected["expected_coverage"],
            )
        )  # fmt: skip

    def _pace(self, event: ClaimEvent) -> None:
        """End the use of a held claim, compare a sample of its requests alone, or all again."""
        if event.kind != "resumed" and self._held is not None:
            self._suspend(event.reason, event.at)
        if event.kind != "suspended":
            is_slowed = event.kind == "slowed"
            self._claim = replace(self._claim, is_slowed=is_slowed, reason=event.reason)

    def _drift(self, event: ClaimEvent) -> None:
        held = self._held
        if held is None or event.action is None:
            return
        # A signal about an earlier hypothesis says nothing about this one.
        if event.action.hypothesis == held.hypothesis:
            held.signal_at = held.accepted

    def _audit(self, audit: Audit) -> None:
        if audit.origin == "person":
            held = self._held
            self._people.add(
                audit, is_claimed=held is not None and audit.hypothesis == held.hypothesis
            )
            return
        if audit.origin == "refined":
            self._refined(audit)
            return
        if audit.verdict in ("dropped", "awaited"):
            self._unjudged(audit)
            return
        self._costs.add(audit)
        if audit.coin is not None and audit.loss is not None and audit.verdict != "missing":
            self._compared += 1
            self._differing += audit.verdict == "different"
        if self._held is not None:
            self._watch(audit, self._held)
        if self._held is None and audit.hypothesis:
            # It was drawn before the suspension: only later evidence counts.
            return
        if len(self._own) < FIT_SIZES[-1]:
            # No fit takes more.
            self._own.extend(_own_outcome(audit))
        self._look(audit)
        self._judge_again(audit)
        earned = self._earning.add(_example(audit))
        if earned is not None:
            self._hold(audit)
        elif self._earning.is_not_earnable and self._claim.state not in (
            ClaimState.NOT_EARNABLE, ClaimState.HELD,
        ):  # fmt: skip
            reason = _SHOWN_WORSE if self._is_net else _NOT_EARNABLE
            self._change(ClaimState.NOT_EARNABLE, "not_earnable", reason, audit)

    def _refined(self, audit: Audit) -> None:
        """Let the watch bet on an answer that a client did not accept and that was found wrong.

        No coin chose it: it counts against the claim, never for it, and not in the observed error.
        """
        held = self._held
        if held is None or audit.hypothesis != held.hypothesis or not audit.loss:
            return
        if isinstance(held.watch, NetWatch):
            return
        held.errors.add(audit.text, audit.loss)
        held.watch.suspect(audit.loss)
        reason = held.watch.reason
        if reason is not None:
            self._suspend(reason, audit.judged_at)
            self._transition("suspended", reason, audit)

    def _judge_spread(self) -> JudgeSpread | None:
        if not self._again:
            return None
        found = judged_baseline(self._again).badly_worse
        return JudgeSpread(len(self._again), found.mean, (found.low, found.high))

    def _judge_again(self, audit: Audit) -> None:
        """Count what the judge made of the reference against itself; end what it cannot judge."""
        found = [c for c in audit.candidates if c.name == AGAIN]
        if not found:
            return
        self._again.append(JudgedPair(found[0].loss, found[0].badly_worse))
        if self._is_net:
            limits = JudgedLimits(self._claim.target_error / 2.0, self._settings.badly_worse)
        else:
            # Of a cached answer, which of two good ones is preferred does not count.
            limits = JudgedLimits(_ANY_PREFERENCE, self._claim.target_error)
        if not judged_baseline(self._again).is_unjudgeable(limits):
            return
        if self._held is not None:
            self._suspend(_UNJUDGEABLE, audit.judged_at)
            self._transition("suspended", _UNJUDGEABLE, audit)
        if self._claim.state is not ClaimState.NOT_EARNABLE:
            self._change(ClaimState.NOT_EARNABLE, "not_earnable", _UNJUDGEABLE, audit)

    def _flips(self) -> Flips | None:
        if not self._claim.reference.startswith(BASELINE_PREFIX) or not self._compared:
            return None
        found = mean_sequence(self._differing, self._compared)
        return Flips(self._compared, found.mean, (found.low, found.high))

    def _look(self, audit: Audit) -> None:
        """Count what each hypothesis under test makes of an input that the coin chose."""
        if audit.coin is None:
            return
        made = {found.name: found for found in audit.candidates}
        for hypothesis in self._earning.hypotheses:
            candidate = made.get(hypothesis.opening.candidate)
            if candidate is None:
                continue
            seen = self._seen.setdefault(hypothesis.number, _Seen())
            seen.inputs += 1
            if candidate.confidence >= hypothesis.opening.threshold:
                seen.accepted += 1
                if candidate.label is not None:
                    seen.labels[candidate.label] += 1

    def _unjudged(self, audit: Audit) -> None:
        """Record since when verdicts that were due under the claim are missing."""
        self._count_accepted(audit)
        held = self._held
        if held is not None and audit.hypothesis == held.hypothesis and held.unjudged_since is None:
            # A verdict that is given up was awaited since its draw, and that row said so then.
            is_dropped = audit.verdict == "dropped"
            held.unjudged_since = audit.judged_at if is_dropped else audit.drawn_at

    def _count_accepted(self, audit: Audit) -> None:
        if self._held is not None and audit.hypothesis == self._held.hypothesis:
            self._held.accepted += audit.accepted

    def _watch(self, audit: Audit, held: _Held) -> None:
        self._count_accepted(audit)
        # An answer that another hypothesis accepted says nothing about this one.
        if audit.origin != "accepted" or audit.hypothesis != held.hypothesis:
            return
        held.unjudged_since = None
        loss = None if audit.verdict == "missing" else audit.loss
        wrong = 1.0 if loss is None else loss
        if isinstance(held.watch, NetWatch):
            badly = max((c.badly_worse for c in audit.candidates if c.name == MODEL), default=0.0)
            held.watch.add(loss, badly)
            wrong = float(wrong == 1.0)
        else:
            held.watch.add(loss)
        held.losses += 1.0 if loss is None else loss
        if loss is not None:
            self._people.accepted(loss)
        held.errors.add(audit.text, wrong)
        reason = held.watch.reason
        if reason is None and self._affordable_rate < self._settings.floor_rate / _LEAST_WATCHED:
            reason = _UNAFFORDABLE
        if reason is not None:
            self._suspend(reason, audit.judged_at)
            self._transition("suspended", reason, audit)

    def _hold(self, audit: Audit) -> None:
        earned = self._earning.earned
        assert earned is not None
        claim = self._claim
        self._people.hold()
        seen = self._seen.get(earned.number, _Seen())
        self._held = _Held(
            earned.number,
            self._watch_of(claim.target_error),
            EarnedFrom(seen.inputs, seen.accepted, dict(sorted(seen.labels.items()))),
        )
        action = Action(earned.opening.candidate, earned.opening.threshold, {}, earned.number)
        self._claim = replace(claim, action=action, span_h=earned.span_h, earned_at=audit.judged_at)
        reason = f"hypothesis {earned.number} after {earned.seen} examples"
        self._change(ClaimState.HELD, "earned", reason, audit, action)

    def _watch_of(self, target_error: float) -> Watch | NetWatch:
        settings = self._settings
        if not self._is_net:
            return Watch(target_error, settings.alarm, settings.max_missing)
        return NetWatch(
            target_loss(target_error), settings.badly_worse, settings.alarm, settings.max_missing
        )

    def _suspend(self, reason: str, at: datetime) -> None:
        self._held = None
        self._earning.add(Reopened(reason))
        self._own.clear()
        self._seen.clear()
        self._costs = AuditCosts()
        self._fits = iter(FIT_SIZES)
        self._next_fit = next(self._fits)
        self._claim = replace(
            self._claim, state=ClaimState.SUSPENDED, since=at, reason=reason, action=None,
        )  # fmt: skip

    def _change(
        self,
        state: ClaimState,
        kind: EventKind,
        reason: str,
        audit: Audit,
        action: Action | None = None,
    ) -> None:
        self._claim = replace(self._claim, state=state, since=audit.judged_at, reason=reason)
        self._transition(kind, reason, audit, action)

    def _transition(
        self, kind: EventKind, reason: str, audit: Audit, action: Action | None = None
    ) -> None:
        event = ClaimEvent(
            self._claim.id, kind, reason, FOLD, audit.judged_at, audit.sequence, action
        )
        self.transitions.append(event)


FIXED_THRESHOLD = "threshold"
"""Version in a claim's scope: the threshold that it is about, in the candidate's own units."""

_FIXED_EXPECTED_ERROR = 0.01

_JUDGED = ("not_equivalent",)
_JUDGED_SHARE_FACTOR = 10.0
"""An audit of a judged answer costs a fresh answer and two calls of the judge: some times what one
accepted input avoids. At evidence.max_share_of_avoided_cost no such claim could be watched."""

_UNAFFORDABLE = (
    "its audits cost more than evidence.max_share_of_avoided_cost of the reference cost avoided"
)
_LEAST_WATCHED = 2.0
"""Costs are estimates: a claim goes unwatched where less than half of floor_rate is affordable."""

_SHOWN_WORSE = "the answers are shown to be worse than the target allows, or nothing is on course"
_ANY_PREFERENCE = 0.499
_UNJUDGEABLE = "the judge finds the reference worse than itself more often than the target allows"
_BEING_EARNED = (ClaimState.PROVISIONAL, ClaimState.SHADOW, ClaimState.SUSPENDED)

_NOT_EARNABLE = "no candidate is on course after evidence.shadow_max_labels labels"


def _rules(definition: Definition, settings: EvidenceSettings) -> EarningRules:
    is_net = definition.loss == NET_WORSE
    target_error = definition.target_error
    return EarningRules(
        target=target_loss(target_error) if is_net else target_error,
        group_window_s=settings.group_window_s,
        min_groups=settings.min_groups,
        min_span_h=settings.min_span_h,
        max_span_h=settings.max_span_h,
        max_missing=settings.max_missing,
        stop_after=settings.judged_max_labels if is_net else settings.shadow_max_labels,
        badly_worse=settings.badly_worse if is_net else None,
    )


def _own_outcome(audit: Audit) -> list[Outcome]:
    if audit.coin is None or audit.verdict == "missing":
        return []
    return [Outcome(c.confidence, c.loss) for c in audit.candidates if c.name == MODEL]


def _test_of(opening: Opening) -> Action:
    expected = {
        "expected_error": opening.expected_error,
        "expected_coverage": opening.expected_coverage,
    }
    return Action(opening.candidate, opening.threshold, expected)


def _example(audit: Audit) -> Example:
    return Example(
        audit.input,
        audit.group,
        audit.text,
        audit.drawn_at.timestamp(),
        audit.coin,
        {c.name: Outcome(c.confidence, c.loss, c.badly_worse) for c in audit.candidates},
        missing=audit.verdict == "missing",
        label=audit.label,
    )
