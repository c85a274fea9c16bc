"""What a request to a task may do under its claim: the table of states. Pure."""

from dataclasses import dataclass
from typing import Literal

from serving.contracts.evidence import NO_GUARANTEE, Action, Claim, ClaimState, Guarantee
from serving.contracts.routing import RoutePreference

Mode = Literal["shadow", "reference", "claim", "suite", "uncovered", "refused"]
"""shadow: the reference answers, and local candidates beside it. reference: the reference answers.
claim: the local answer that the claim accepts. suite: the local answer within the attested
threshold. uncovered: the local answer, marked as below its threshold. refused: none."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What decides about a request besides the claim.

    route: the client's. can_ask: a frontier model is configured as the reference, so that the plan
    may escalate to it. may_shadow: it may also get the input as evidence. may_audit: it may, or the
    reference is a local model. start: of provisional claims. suite: what a gate certified; None
    where nothing did. is_known: the claims could be read. is_permitted: the request may take the
    shortcut: its losses can be judged, and the targets of all that it takes are within the cap.
    """

    route: RoutePreference
    can_ask: bool
    may_shadow: bool
    may_audit: bool
    start: Literal["strict", "optimistic"]
    suite: Guarantee | None
    is_known: bool = True
    is_permitted: bool = True


@dataclass(frozen=True, slots=True)
class Standing:
    """How a request is served under its claim.

    guarantee: of a local answer that is accepted. action: of the claim, in the mode `claim`.
    claim: the id under which evidence is recorded; None where none may be. state: for logs.
    """

    mode: Mode
    guarantee: Guarantee = NO_GUARANTEE
    action: Action | None = None
    claim: str | None = None
    state: ClaimState | None = None

    @property
    def hypothesis(self) -> int:
        """Return the number of the claimed hypothesis, 0 where none is."""
        return 0 if self.action is None else self.action.hypothesis


def standing_of(name: str, claim: Claim | None, situation: Situation) -> Standing:
    """Return the standing of a request. name: the claim's id. claim: None where it is new."""
    asks = situation.route == "auto" and situation.can_ask
    shadows = asks and situation.may_shadow
    suite = situation.suite or NO_GUARANTEE
    if not situation.is_known:
        return Standing("reference") if asks else Standing("suite", suite)
    state = ClaimState.PROVISIONAL if claim is None else claim.state
    if not situation.is_permitted and situation.can_ask:
        return Standing("reference" if asks else "uncovered", state=state)
    recorded = name if situation.may_audit else None
    local = Standing("suite", suite, claim=recorded, state=state)
    match state:
        case ClaimState.WITHDRAWN:
            return Standing("reference" if asks else "refused", state=state)
        # Earned by the sample that goes on, and suspended with the worker's next look.
        case ClaimState.HELD if claim is not None and claim.is_slowed and shadows:
            return Standing("shadow", claim=name, state=state)
        case ClaimState.HELD if situation.may_audit:
            assert claim is not None
            return Standing("claim", traffic_guarantee(claim), claim.action, name, state)
        case ClaimState.HELD:
            return local
        case ClaimState.SUSPENDED if not shadows:
            return Standing("uncovered", claim=recorded, state=state)
        case ClaimState.PROVISIONAL if situation.start == "optimistic" and situation.suite:
            return local
    return Standing("shadow", claim=name, state=state) if shadows else local


def traffic_guarantee(claim: Claim) -> Guarantee:
    """Return what a held claim says of its answers."""
    return Guarantee(
        evidence="traffic",
        target_error=claim.target_error,
        observed_error=claim.observed_error,
        interval=claim.interval,
        audits=claim.audits,
        since=claim.earned_at or claim.since,
        reference=claim.reference,
        claim=claim.id,
        pooled=claim.scope.pooled,
        people=claim.people,
    )
