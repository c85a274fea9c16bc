"""Which heads are tested under a claim, and when a suspended claim has its heads fitted again."""

from collections.abc import Sequence

import numpy as np

from serving.contracts.evidence import Action, Claim, ClaimState, Scope
from serving.contracts.head_settings import HeadSettings
from serving.evidence.heads.candidate import HeadScope
from serving.evidence.heads.example_store import ExampleStore
from serving.evidence.heads.head_store import HeadRow, HeadStore
from serving.evidence.heads.statement import Head
from serving.evidence.statistics.placement import (
    COMPARED_AT,
    COVERAGES,
    HORIZON,
    WIDER,
    place_on_curve,
    widest,
)


def head_scope(scope: Scope) -> HeadScope:
    """Return whose examples the heads of a claim learn from. Other models share them."""
    return HeadScope(scope.tenants, scope.subject, scope.versions.get("spec", ""), scope.pooled)


class HeadTests:
    """Opens the tests of new heads, in the replica that folds. All methods block.

    A head is tested on inputs that came after its fit. In a later episode only heads count that
    were fitted after the suspension: the fit is asked for once the episode has first_fit labels.
    """

    def __init__(self, examples: ExampleStore, heads: HeadStore, settings: HeadSettings) -> None:
        self._examples = examples
        self._heads = heads
        self._settings = settings
        self._looked_at: set[tuple[str, int, int]] = set()
        self._asked: set[tuple[str, int]] = set()

    def due(self, claim: Claim, *, is_on_course: bool, covered: float) -> list[Action]:
        """Return the tests of the newest heads that are worth opening; each head is looked at once.

        is_on_course: a hypothesis under test will be earned soon. covered: share of inputs that the
        held claim accepts, 0 where none is held: a newer head is tested where it would accept
        visibly more, and takes its place once earned. Raises LedgerUnavailable, HeadRefused.
        """
        is_held = claim.state is ClaimState.HELD
        if claim.state is ClaimState.WITHDRAWN:
            return []
        scope = head_scope(claim.scope)
        newest = self._newest(scope)
        if claim.episode > 1 and not is_held:
            newest = [row for row in newest if row.created_at > claim.since]
            if not newest:
                self._ask_for_fit(claim, scope)
        # What is tested beside a held claim always has a claimed hypothesis on course.
        if not newest or (is_on_course and not is_held):
            return []
        seen = (claim.id, claim.episode, newest[0].version)
        if seen in self._looked_at:
            return []
        self._looked_at.add(seen)
        head = min((self._heads.load(row.digest) for row in newest), key=_error)
        examples = head.predicate.examples
        openings = place_on_curve(
            head.name, head.candidate.curve.astype(np.float64), examples, claim.target_error,
            first=claim.hypotheses + 1,
            coverages=WIDER if is_held else COVERAGES,
            # A test beside a held claim is to be earned before the next fit.
            horizon=examples * (self._settings.growth - 1.0) if is_held else HORIZON,
        )  # fmt: skip
        if is_held:
            openings = widest(openings, covered)
        return [
            Action(
                opening.candidate, opening.threshold,
                {"expected_error": opening.expected_error,
                 "expected_coverage": opening.expected_coverage},
            )
            for opening in openings
        ]  # fmt: skip

    def _newest(self, scope: HeadScope) -> Sequence[HeadRow]:
        """Return the heads of the newest fit."""
        rows = [row for row in self._heads.listed(scope.id) if row.erased_at is None]
        return [row for row in rows if row.version == rows[0].version]

    def _ask_for_fit(self, claim: Claim, scope: HeadScope) -> None:
        episode = (claim.id, claim.episode)
        if claim.audits >= self._settings.first_fit and episode not in self._asked:
            self._asked.add(episode)
            self._examples.request_fit(scope, "suspended")


def _error(head: Head) -> float:
    curve = head.candidate.curve
    return float(curve[int(COMPARED_AT * len(curve)) - 1, 1])
