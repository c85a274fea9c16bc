"""Metrics of claims. Implements the events of evidence."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge

from serving.contracts.evidence import Claim, ClaimState
from serving.evidence.heads.trainer import FitOutcome

_LABELS = ("claim", "task")


class EvidenceMetrics:
    """Gauges of each claim as this replica sees it, and counts of transitions.

    A claim's id stands for its tenants: /metrics needs no key, and tenants must not see one
    another.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._state = Gauge(
            "narrowgate_claim_state",
            "1 for the state that a claim is in.",
            [*_LABELS, "state"],
            registry=registry,
        )
        self._target = Gauge(
            "narrowgate_claim_target_error", "Error that a claim promises.", _LABELS,
            registry=registry,
        )  # fmt: skip
        self._observed = Gauge(
            "narrowgate_claim_observed_error",
            "Mean loss of audits since the claim was earned; NaN before any.",
            _LABELS,
            registry=registry,
        )
        self._upper = Gauge(
            "narrowgate_claim_error_upper_bound",
            "Upper bound of the error at 95 %, valid at every time.",
            _LABELS,
            registry=registry,
        )
        self._audits = Gauge(
            "narrowgate_claim_audits", "Audits since the claim was earned.", _LABELS,
            registry=registry,
        )  # fmt: skip
        self._accepted = Gauge(
            "narrowgate_claim_accepted_inputs",
            "Inputs that took the shortcut since the claim was earned.",
            _LABELS,
            registry=registry,
        )
        self._slowed = Gauge(
            "narrowgate_claim_slowed",
            "1 where comparing costs more than the shortcut saves, so that it is not taken.",
            _LABELS,
            registry=registry,
        )
        self._missing = Gauge(
            "narrowgate_claim_missing_verdicts_share", "Share of audits without a verdict.",
            _LABELS, registry=registry,
        )  # fmt: skip
        self._flips_share = Gauge(
            "narrowgate_claim_flips_share",
            "Share of inputs whose local answer differs from the 16-bit baseline's.",
            _LABELS,
            registry=registry,
        )
        self._flips_upper = Gauge(
            "narrowgate_claim_flips_upper_bound",
            "Upper bound of that share at 95 %, valid at every time.",
            _LABELS,
            registry=registry,
        )
        self._people = Gauge(
            "narrowgate_claim_people_error",
            "Error of accepted answers against people's labels.",
            _LABELS,
            registry=registry,
        )
        self._reference = Gauge(
            "narrowgate_claim_reference_error",
            "Error of the reference itself against people's labels.",
            _LABELS,
            registry=registry,
        )
        self._transitions = Counter(
            "narrowgate_claim_transitions",
            "Claims earned, suspended, found not earnable, withdrawn, slowed or resumed, by the "
            "folding replica.",
            ["task", "kind"],
            registry=registry,
        )

        self._fits = Counter(
            "narrowgate_head_fits",
            "Fits of learned heads by this replica, by outcome.",
            ["task", "outcome"],
            registry=registry,
        )
        self._fit_seconds = Counter(
            "narrowgate_head_fit_seconds", "Time of these fits.", ["task"], registry=registry
        )

    def head_fit_ended(self, task: str, outcome: FitOutcome, seconds: float) -> None:
        """Count a fit."""
        self._fits.labels(task, outcome).inc()
        self._fit_seconds.labels(task).inc(seconds)

    def claims_changed(self, claims: Sequence[Claim]) -> None:
        """Set the gauges of every claim."""
        for claim in claims:
            names = (claim.id, claim.scope.subject)
            for state in ClaimState:
                self._state.labels(*names, state.value).set(claim.state is state)
            self._target.labels(*names).set(claim.target_error)
            observed = claim.observed_error
            self._observed.labels(*names).set(float("nan") if observed is None else observed)
            self._upper.labels(*names).set(1.0 if claim.interval is None else claim.interval[1])
            self._audits.labels(*names).set(claim.audits)
            self._accepted.labels(*names).set(claim.accepted)
            self._slowed.labels(*names).set(claim.is_slowed)
            self._missing.labels(*names).set(claim.missing)
            if claim.flips is not None:
                self._flips_share.labels(*names).set(claim.flips.share)
                self._flips_upper.labels(*names).set(claim.flips.interval[1])
            if claim.people is not None:
                self._people.labels(*names).set(claim.people.error)
                if claim.people.reference_error is not None:
                    self._reference.labels(*names).set(claim.people.reference_error)

    def claim_transition(self, claim: Claim, kind: str) -> None:
        """Count a transition."""
        self._transitions.labels(claim.scope.subject, kind).inc()
