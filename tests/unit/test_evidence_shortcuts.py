"""Which shortcuts a request takes together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from serving.contracts.evidence import Guarantee, Scope, Shortcut, ShortcutName
from serving.contracts.task_spec import LossName
from serving.evidence.shortcuts import Judging, permitted
from serving.evidence.statistics.judged import JudgedLimits, judged_baseline, judged_pair


@dataclass(frozen=True)
class Tier:
    """A shortcut of a judged loss, as cheaper tiers will be."""

    name: ShortcutName = "cheaper_tier"
    loss: LossName = "judged_worse"
    target_error: float = 0.1
    suite: Guarantee | None = None
    local_model: str | None = None
    has_labels: bool = False

    def scope(
        self, tenants: str, *, pooled: bool, taken: Sequence[ShortcutName], rules: str
    ) -> Scope:
        return Scope(tenants, "cluster", {"rules": rules}, tuple(sorted(taken)), pooled)

    def loss_of(self, answer: Any, reference: Any) -> float:
        return judged_pair(answer, reference).loss


def cached(target: float) -> Tier:
    return Tier("cached_answer", "exact", target)


def names(found: Sequence[Shortcut]) -> list[str]:
    return [one.name for one in found]


def test_a_plan_beyond_the_cap_drops_its_last_shortcuts() -> None:
    plan = (cached(0.1), Tier("pruned_context", "exact", 0.1), Tier("cheaper_tier", "exact", 0.1))
    assert names(permitted(plan, 0.25)) == ["cached_answer", "pruned_context"]
    assert names(permitted(plan, 0.3)) == ["cached_answer", "pruned_context", "cheaper_tier"]
    assert permitted(plan, 0.05) == ()


@pytest.mark.parametrize(
    ("verdicts", "usable"), [(None, False), (("same", "same"), True), (("worse", "worse"), False)]
)
def test_a_judged_loss_needs_the_reference_against_itself(verdicts: Any, usable: bool) -> None:
    limits = JudgedLimits()
    baseline = None if verdicts is None else judged_baseline([judged_pair(*verdicts)] * 60)
    judging: dict[ShortcutName, Judging] = {"cheaper_tier": Judging(limits, baseline)}
    plan = (Tier(), cached(0.1))
    expected = ["cheaper_tier", "cached_answer"] if usable else ["cached_answer"]
    assert names(permitted(plan, 0.25, judging)) == expected
    assert names(permitted(plan, 0.25)) == ["cached_answer"]
