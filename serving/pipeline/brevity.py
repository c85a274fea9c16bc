"""Whether answers that were asked for briefly are as good as the model's own: under a claim."""

import hashlib
from dataclasses import replace

from serving.contracts.context import RequestContext
from serving.contracts.requests import ChatRequest
from serving.pipeline.paired_auditor import (
    AskedChat,
    ClientAnswer,
    Comparison,
    PairAuditor,
    PairDecision,
)
from serving.pipeline.plan import FrontierPlan


def directive_version(directive: str) -> str:
    """Return the version of a directive, for whose answers a claim holds."""
    return hashlib.sha256(directive.encode()).hexdigest()[:16]


class BrevityAuditor(PairAuditor):
    """Rules on brevity, and compares answers with and without the directive.

    comparison: asks a model without cache or claim. directive: of the settings, with {words}.
    """

    name = "brief_answer"
    defect = "bounds.comparison_failed"
    most_chars = 40_000

    def __init__(self, comparison: Comparison, directive: str) -> None:
        super().__init__(comparison, directive_version(directive))

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
