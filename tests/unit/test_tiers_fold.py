"""A cheaper tier's claim: earned, suspended, given up, unjudgeable; equal when replayed."""

from dataclasses import replace
from datetime import timedelta

import pytest

from benchmarks.tiers_simulation import AT, TARGET, TierClaim, definition
from serving.contracts.evidence import Audit, Candidate, ClaimState
from serving.contracts.evidence_settings import EvidenceSettings
from serving.evidence.fold import AGAIN, ClaimFold, rules_version

SETTINGS = EvidenceSettings(group_window_s=0.0)


def audit(number: int, loss: float, *candidates: Candidate, **changes: object) -> Audit:
    at = AT + timedelta(minutes=2 * number)
    made = (Candidate("model", 1.0, loss, None, float(loss == 1.0)), *candidates)
    base = Audit(
        "facts/economy", f"i{number}", f"g{number}", f"t{number}", "shadow", 1.0,
        "same" if loss <= 0.5 else "different", loss, "fake/frontier", made, drawn_at=at,
        judged_at=at,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


def claimed(settings: EvidenceSettings = SETTINGS) -> TierClaim:
    return TierClaim.of("facts/economy", settings)


def earned(pairs: int = 160) -> TierClaim:
    found = claimed()
    for number in range(pairs):
        found.add(audit(number, 0.5))
    return found


def test_equal_answers_earn_the_claim_and_show_their_progress() -> None:
    found = earned(40)
    assert found.claim.state is ClaimState.SHADOW
    assert 0.2 < found.claim.progress < 1.0
    assert (found.claim.shadow_loss, found.claim.audits) == (0.0, 39)
    found = earned()
    assert found.claim.state is ClaimState.HELD
    assert (found.claim.target_error, found.claim.progress) == (TARGET, 1.0)
    assert found.claim.action is not None
    assert found.claim.action.threshold == 0.0


def served(found: TierClaim, number: int, loss: float, **changes: object) -> Audit:
    action = found.claim.action
    hypothesis = 0 if action is None else action.hypothesis
    return audit(number, loss, origin="accepted", accepted=5, hypothesis=hypothesis, **changes)


def test_a_tier_that_becomes_worse_is_suspended_and_earned_anew_by_later_pairs() -> None:
    found = earned()
    for number in range(200, 500):
        found.add(served(found, number, 1.0 if number % 2 else 0.5))
        if found.claim.state is not ClaimState.HELD:
            break
    assert found.claim.state is ClaimState.SUSPENDED
    assert number < 300
    assert found.claim.hypotheses == 2
    for number in range(500, 900):
        found.add(audit(number, 0.5))
    again = found.fold.claim
    assert (again.state, again.episode) == (ClaimState.HELD, 2)


def test_a_worse_tier_is_given_up_early() -> None:
    found = claimed()
    for number in range(100):
        found.add(audit(number, 0.5 if number % 2 else 1.0))
    assert found.claim.state is ClaimState.NOT_EARNABLE
    assert "shown to be worse" in found.claim.reason
    assert found.fold.due_tests() == []


def test_what_the_judge_cannot_tell_stays_at_the_reference() -> None:
    found = earned()
    for number in range(200, 260):
        again = Candidate(AGAIN, 1.0, 1.0, None, 1.0)
        found.add(served(found, number, 0.5, candidates=(Candidate("model", 1.0, 0.5), again)))
    assert found.claim.state is ClaimState.NOT_EARNABLE
    assert "worse than itself" in found.claim.reason


def test_missing_verdicts_keep_a_claim_from_being_earned() -> None:
    found = claimed()
    for number in range(300):
        is_missing = number % 8 == 0
        found.add(audit(number, 0.5, verdict="missing" if is_missing else "same"))
    assert found.claim.state is not ClaimState.HELD


def test_the_observed_share_is_of_worse_less_better_answers() -> None:
    found = earned()
    for number in range(200, 300):
        found.add(served(found, number, 1.0 if number % 20 == 0 else 0.5))
    assert found.claim.state is ClaimState.HELD
    assert found.claim.observed_error == pytest.approx(0.05)
    assert found.claim.interval is not None
    assert found.claim.interval[0] == 0.0
    assert found.claim.interval[1] < 0.25


def test_a_replay_of_the_rows_leads_to_the_same_transitions() -> None:
    found = claimed()
    for number in range(160):
        found.add(audit(number, 0.5))
    for number in range(200, 280):
        found.add(served(found, number, 1.0))
    assert [event.kind for event in found.fold.transitions][:2] == ["earned", "suspended"]
    again = ClaimFold(definition("facts/economy"), SETTINGS).extend(found.rows)
    assert again.transitions == found.fold.transitions
    assert again.is_reproduced
    assert again.claim == found.claim


def test_claims_of_before_keep_their_rules_until_a_judged_limit_is_changed() -> None:
    assert rules_version(EvidenceSettings()) == "68933104d109d8a3"
    assert rules_version(EvidenceSettings(badly_worse=0.1)) != rules_version(EvidenceSettings())
