"""Whether answers from pruned contexts are as good as those from whole ones: under a claim.

One answer is made with the context above the certified threshold, the other with the whole one.
Everything else is as the client is served, learned output bounds included.
"""

from collections.abc import Awaitable, Callable

from serving.contracts.context import RequestContext
from serving.contracts.requests import ChatRequest
from serving.pipeline.context_pruning import PruningEvents
from serving.pipeline.exit_recorder import RequestRecord
from serving.pipeline.paired_auditor import (
    UNDECIDED,
    AskedChat,
    ClientAnswer,
    Comparison,
    PairAuditor,
    PairDecision,
    PairedChat,
)
from serving.pipeline.plan import FrontierPlan

Prune = Callable[[], Awaitable[ChatRequest | None]]
"""Returns the chat with its contexts pruned; None where nothing is removed."""


class ContextAuditor(PairAuditor):
    """Rules on pruned contexts, and compares answers with and without pruning.

    comparison: asks a model as clients are served, with the context that the request has. pruner:
    digest of all that decides what is removed, and of what.
    """

    name = "pruned_context"
    defect = "context.comparison_failed"
    # The judge reads the whole context twice: about 50,000 tokens each time.
    most_chars = 200_000
    # Unanswerable questions are common: whether both answers decline is for the judge to see.
    judged_anyway = frozenset({"refusal", "tool_call"})

    def __init__(self, comparison: Comparison, pruner: str, events: PruningEvents) -> None:
        super().__init__(comparison, pruner)
        self._events = events

    def decide(self, request: ChatRequest, model: str, record: RequestRecord) -> PairDecision:
        """As PairAuditor's. Nothing for a deterministic request, nor for a line of a batch.

        A provider's batch returns a line's answer after its claim may have ended.
        """
        context = record.context
        if context.options.deterministic or context.caller.lane == "batch":
            return UNDECIDED
        return super().decide(request, model, record)

    def compared(self, verdict: str) -> None:
        """Count a comparison."""
        self._events.context_compared(verdict)

    def served(
        self,
        request: ChatRequest,
        pruned: ChatRequest,
        plan: FrontierPlan,
        decision: PairDecision,
        context: RequestContext,
        answer: ClientAnswer,
    ) -> None:
        """Compare an answer from a pruned context with one from the whole context, where drawn."""
        if decision.is_drawn:
            one = self._both(request, pruned, plan, decision, context, answer)
            self._compare(one, answer.text)

    def shadowed(
        self,
        request: ChatRequest,
        prune: Prune,
        plan: FrontierPlan,
        decision: PairDecision,
        context: RequestContext,
        answer: ClientAnswer,
    ) -> None:
        """Compare an answer from the whole context with one from a pruned context, where drawn.

        Pruning is behind the request, too: the client does not wait for what it does not get.
        """
        if not decision.is_drawn or decision.ruling is None:
            return
        work = self._explored(request, prune, plan, decision, context, answer)
        if self._is_affordable(decision):
            if self._start(work):
                return
        else:
            work.close()
        # Without a row: whether anything would have been removed is not known.
        self.compared("dropped")
        self.evidence.counts.dropped[decision.ruling.name] += 1

    async def _explored(
        self,
        request: ChatRequest,
        prune: Prune,
        plan: FrontierPlan,
        decision: PairDecision,
        context: RequestContext,
        answer: ClientAnswer,
    ) -> None:
        pruned = await prune()
        if pruned is None:
            return
        one = self._both(request, pruned, plan, decision, context, answer)
        self._draw(one.drawn, "shadow")
        await self._compared(one, answer.text)

    def _both(
        self,
        request: ChatRequest,
        pruned: ChatRequest,
        plan: FrontierPlan,
        decision: PairDecision,
        context: RequestContext,
        answer: ClientAnswer,
    ) -> PairedChat:
        short, whole = AskedChat(pruned, plan), AskedChat(request, plan)
        return self._paired(request, short, whole, decision, context, answer.usage)
