"""Whether answers that were asked for briefly are as good as the model's own: under a claim."""

import hashlib
from dataclasses import dataclass, replace

from serving.contracts.context import RequestContext
from serving.contracts.evidence import ShortcutName
from serving.contracts.prices import PriceList
from serving.contracts.requests import ChatRequest
from serving.evidence.appender import EvidenceAppender
from serving.evidence.payback import SHADOW_SHARE
from serving.evidence.rulings import Evidence
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.paired_auditor import (
    AGAIN_SHARE,
    AskedChat,
    ClientAnswer,
    PairAuditor,
    PairDecision,
)
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner
from serving.tiers.shortcut import JudgedAnswer

_MOST_CHARS = 40_000


@dataclass(frozen=True, slots=True)
class BriefAnswer(JudgedAnswer):
    """Implements Shortcut: a model's answer to a request that also asks for brevity.

    model: `provider/model`. directive: digest of the sentence, without its number of words. judge:
    the model that compares. target_error: largest share judged worse less the share judged better.
    """

    model: str
    directive: str
    judge: str
    target_error: float
    name: ShortcutName = "brief_answer"

    @property
    def subject(self) -> str:
        """Return the name under which reports and metrics show the model."""
        return f"brief/{self.model}"

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions of its model and sentence."""
        return {"model": self.model, "directive": self.directive}


class BrevityAuditor(PairAuditor):
    """Rules on brevity, and compares answers with and without the directive.

    ask: asks a model as the plan says: no cache, no claim. directive: of the settings, with
    {words}. Others as PairAuditor's.
    """

    def __init__(
        self,
        evidence: Evidence,
        appender: EvidenceAppender,
        recorder: ExitRecorder,
        ask: Runner[ChatRequest, FrontierPlan],
        judge: str | None,
        directive: str,
        target_error: float,
        prices: PriceList,
        again_share: float = AGAIN_SHARE,
        shadow_share: float = SHADOW_SHARE,
    ) -> None:
        super().__init__(
            evidence, appender, recorder, ask, judge, prices=prices,
            defect="bounds.comparison_failed", most_chars=_MOST_CHARS,
            again_share=again_share, shadow_share=shadow_share,
        )  # fmt: skip
        self._directive = hashlib.sha256(directive.encode()).hexdigest()[:16]
        self._target_error = target_error

    def shortcut_of(self, model: str, judge: str) -> BriefAnswer:
        """Return the shortcut of a `provider/model`."""
        return BriefAnswer(model, self._directive, judge, self._target_error)

    def answered(
        self,
        request: ChatRequest,
        plan: FrontierPlan,
        brevity: PairDecision,
        context: RequestContext,
        answer: ClientAnswer,
        directive: str,
    ) -> None:
        """Compare a client's answer with the other one where the coin chose the request.

        plan: of the answer, whose bounds say whether it was asked for briefly. directive: of the
        brief answer.
        """
        if brevity.ruling is None or not brevity.is_drawn:
            return
        brief, plain = (
            AskedChat(request, replace(plan, bounds=replace(plan.bounds, directive=chosen)))
            for chosen in (directive, None)
        )
        one = self._paired(request, brief, plain, brevity, context, answer.usage)
        self._compare(one, answer.text)
