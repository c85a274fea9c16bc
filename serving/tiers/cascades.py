"""Which cascade answers a request first: one that is earned, and expected to cost less.

Pure but for the log.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from serving.contracts.context import RequestContext
from serving.contracts.evidence import Claim
from serving.contracts.prices import TokenPrices
from serving.contracts.tiers_settings import TiersSettings
from serving.evidence.rulings import Evidence, Ruling
from serving.tiers.policy import Rung, Traffic, cascade_usd
from serving.tiers.shortcut import CascadedTier

logger = logging.getLogger(__name__)

Check = Literal["logprobs", "samples"]
"""How a cheaper answer is checked: by its tokens' log-probabilities, or by a second answer."""

CALLS: Mapping[Check, int] = {"logprobs": 1, "samples": 2}
"""Calls of the cheaper model that a check takes, the answer's own included."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is decided about. text: identifies equal requests. conversation: its beginning, where
    the request continues one. may_cascade: whether an answer to it can be checked."""

    context: RequestContext
    text: str
    conversation: str | None = None
    may_cascade: Callable[[Check], bool] = lambda check: False


@dataclass(frozen=True, slots=True)
class Place:
    """A request in its cluster. start: the reference. traffic: None where it is not known yet.

    audit_share: of a tier's kept answers, by its ruling.
    """

    cluster: int
    start: Rung
    asked: Asked
    traffic: Traffic | None
    audit_share: Callable[[Rung, Ruling], float]


@dataclass(frozen=True, slots=True)
class Cascading:
    """A cascade that is taken. threshold: of its check. share: of its kept answers audited."""

    rung: Rung
    shortcut: CascadedTier
    ruling: Ruling
    check: Check
    threshold: float
    share: float


_MISSED, _MISSED_OF_GIVEN = 3, 20
"""Answers in a row without log-probabilities that show that a model gives none: one that never gave
any, and one that did."""
_MISSING_FOR_S = 3600.0


@dataclass(slots=True)
class _Logprobs:
    """What a model's answers show. missed: answers in a row without log-probabilities."""

    is_given: bool = False
    missed: int = 0
    missing_until_s: float = 0.0

    def is_missing(self) -> bool:
        return time.monotonic() < self.missing_until_s


class Cascades:
    """The cascades of all clusters. judge: model and prices.

    gives_logprobs: whether a `provider/model` may give the log-probabilities of its tokens.
    """

    def __init__(
        self,
        settings: TiersSettings,
        evidence: Evidence,
        clustering: str,
        judge: tuple[str, TokenPrices],
        gives_logprobs: Callable[[str], bool],
    ) -> None:
        self._settings = settings
        self._evidence = evidence
        self._clustering = clustering
        self._judge, self._judge_prices = judge
        self._gives_logprobs = gives_logprobs
        self._logprobs: defaultdict[str, _Logprobs] = defaultdict(_Logprobs)
        self._known: dict[tuple[int, str, Check], CascadedTier] = {}

    def check_of(self, model: str) -> Check:
        """Return how a model's answers are checked."""
        is_known = self._settings.cascade_check == "auto" and self._gives_logprobs(model)
        return "samples" if not is_known or self._logprobs[model].is_missing() else "logprobs"

    def gave_logprobs(self, model: str) -> None:
        """Note an answer of a model that has log-probabilities."""
        self._logprobs[model] = _Logprobs(is_given=True)

    def gave_no_logprobs(self, model: str, *, is_refusal: bool = False) -> None:
        """Note an answer without them. After some in a row two answers are compared for a while.

        is_refusal: the provider refused the request: of a model that gave some before, that is the
        request's fault.
        """
        seen = self._logprobs[model]
        if is_refusal and seen.is_given:
            return
        seen.missed += 1
        if seen.missed == (_MISSED_OF_GIVEN if seen.is_given else _MISSED):
            seen.missing_until_s = time.monotonic() + _MISSING_FOR_S
            seen.missed = 0
            logger.warning("tiers.no_logprobs model=%s: two answers are compared", model)

    def claim(
        self, cluster: int, start: Rung, rung: Rung, tenant: str, check: Check | None = None
    ) -> Claim | None:
        """Return the claim on the cascade of one tier of a cluster. check: the present one."""
        return self._evidence.tier_claim(self._cascade(cluster, rung, check), tenant, start.model)

    def ruling(self, place: Place, rung: Rung) -> Ruling | None:
        """Return the ruling on a tier's cascade; None where nothing may be compared or checked."""
        if not place.asked.may_cascade(self.check_of(rung.model)):
            return None
        return self._evidence.tier_ruling(
            self._cascade(place.cluster, rung), place.asked.context, place.start.model,
            (place.start.model, rung.model, self._judge), place.asked.conversation,
        )  # fmt: skip

    def best(self, place: Place, rungs: Sequence[Rung], present: Rung) -> Cascading | None:
        """Return the earned cascade with the least expected cost, where it is below the present.

        present: the tier that answers without one.
        """
        traffic = place.traffic
        if traffic is None:
            return None
        found, least = None, traffic.cost_usd(present.prices)
        for rung in rungs:
            one = self._taken(place, rung)
            if one is None:
                continue
            expected = self._expected_usd(one, place.start, traffic)
            if expected < least:
                found, least = one, expected
        return found

    def _taken(self, place: Place, rung: Rung) -> Cascading | None:
        ruling = self.ruling(place, rung)
        if ruling is None or ruling.standing.mode != "claim":
            return None
        action = ruling.standing.action
        if action is None or self._evidence.always_escalates(ruling.name, place.asked.text):
            return None
        return Cascading(
            rung, self._cascade(place.cluster, rung), ruling, self.check_of(rung.model),
            action.threshold, place.audit_share(rung, ruling),
        )  # fmt: skip

    def _expected_usd(self, one: Cascading, start: Rung, traffic: Traffic) -> float:
        claim = self._evidence.snapshot.find(one.ruling.name)
        if claim is None:
            return traffic.cost_usd(start.prices)
        kept = claim.earned_from.accepted / max(1, claim.earned_from.inputs)
        audit = traffic.cost_usd(start.prices) + traffic.judging_usd(self._judge_prices)
        return cascade_usd(traffic, (start, one.rung), CALLS[one.check], kept, one.share * audit)

    def _cascade(self, cluster: int, rung: Rung, check: Check | None = None) -> CascadedTier:
        check = check or self.check_of(rung.model)
        known = self._known.get((cluster, rung.tier, check))
        if known is None:
            known = CascadedTier(
                cluster, self._clustering, rung.tier, rung.model, self._judge, check,
                self._settings.target_error,
            )  # fmt: skip
            self._known[cluster, rung.tier, check] = known
        return known
