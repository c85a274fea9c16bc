"""The circuit breaker as a state machine, against a model of its rules."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.contracts.frontier_settings import BreakerSettings
from serving.frontier.breaker import Breaker

FAILURES, OPEN_S = 3, 10.0


class BreakerMachine(RuleBasedStateMachine):
    """Calls begin, end well, badly or not at all; time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.changes: list[str] = []
        limits = BreakerSettings(failures=FAILURES, open_s=OPEN_S)
        self.breaker = Breaker(limits, self.changes.append, lambda: self.now)
        self.calls: list[tuple[int, int]] = []
        self.probe: int | None = None

    @rule()
    def enter(self) -> None:
        before, waits = self.breaker.state, self.breaker.retry_after_s()
        ticket = self.breaker.enter()
        match before:
            case "closed":
                assert ticket is not None
            case "half_open":
                assert ticket is None
            case "open":
                assert (ticket is None) == (waits > 0)
        if ticket is not None:
            self.calls.append((ticket, len(self.changes)))
            if self.breaker.state == "half_open":
                self.probe = ticket

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), how=st.sampled_from(["succeeded", "failed", "abandoned"]))
    def end(self, data: st.DataObject, how: str) -> None:
        call = data.draw(st.sampled_from(self.calls))
        self.calls.remove(call)
        before = self.breaker.state
        ticket, changes = call
        stale = changes != len(self.changes)
        getattr(self.breaker, how)(ticket)
        if stale:
            assert self.breaker.state == before
        elif before == "half_open":
            expected = {"succeeded": "closed", "failed": "open", "abandoned": "open"}[how]
            assert self.breaker.state == expected
            if how == "abandoned":
                assert self.breaker.retry_after_s() == 0
        elif how != "failed":
            assert self.breaker.state == before

    @rule(seconds=st.floats(0.0, 2 * OPEN_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def at_most_one_probe(self) -> None:
        if self.breaker.state == "half_open":
            fresh = [c for c in self.calls if c[1] == len(self.changes)]
            assert len(fresh) == 1

    @invariant()
    def never_shut_for_longer_than_said(self) -> None:
        assert 0 <= self.breaker.retry_after_s() <= OPEN_S + 1e-6


BreakerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestBreaker = BreakerMachine.TestCase


def test_only_failures_in_a_row_count() -> None:
    breaker = Breaker(BreakerSettings(failures=2, open_s=1))
    for report in ("failed", "succeeded", "failed"):
        ticket = breaker.enter()
        assert ticket is not None
        getattr(breaker, report)(ticket)
    assert breaker.state == "closed"
    ticket = breaker.enter()
    assert ticket is not None
    breaker.failed(ticket)
    assert breaker.state == "open"
