"""Whether answers from pruned contexts are as good as those from whole ones: under a claim.

One answer is made with the context above the certified threshold, the other with the whole one.
Everything else is as the client is served, learned output bounds included.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serving.contracts.context import RequestContext
from serving.contracts.evidence import ShortcutName
from serving.contracts.prices import PriceList
from serving.contracts.requests import ChatRequest
from serving.evidence.appender import EvidenceAppender
from serving.evidence.payback import SHADOW_SHARE
from serving.evidence.rulings import Evidence
from serving.pipeline.context_pruning import PruningEvents
from serving.pipeline.exit_recorder import ExitRecorder, RequestRecord
from serving.pipeline.paired_auditor import (
    AGAIN_SHARE,
    UNDECIDED,
    AskedChat,
    ClientAnswer,
    PairAuditor,
    PairDecision,
    PairedChat,
)
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner
from serving.tiers.shortcut import JudgedAnswer

_MOST_CHARS = 200_000
"""The judge reads the whole context twice: about 50,000 tokens each time."""

Prune = Callable[[], Awaitable[ChatRequest | None]]
"""Returns the chat with its contexts pruned; None where nothing is removed."""


@dataclass(frozen=True, slots=True)
class PrunedContext(JudgedAnswer):
    """Implements Shortcut: a model's answer from a context without the sentences below a threshold.

    model: `provider/model`. pruner: digest of all that decides what is removed, and of what. judge:
    the model that compares. target_error: largest share judged worse less the share judged better.
    """

    model: str
    pruner: str
    judge: str
    target_error: float
    name: ShortcutName = "pruned_context"

    @property
    def subject(self) -> str:
        """Return the name under which reports and metrics show the model."""
        return f"context/{self.model}"

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions of its model and pruner."""
        return {"model": self.model, "pruner": self.pruner}


class ContextAuditor(PairAuditor):
    """Rules on pruned contexts, and compares answers with and without pruning.

    ask: asks a model as clients are served, with the context that the request has. pruner: digest.
    Others as PairAuditor's.
    """

    # Unanswerable questions are common: whether both answers decline is for the judge to see.
    judged_anyway = frozenset({"refusal", "tool_call"})

    def __init__(
        self,
        evidence: Evidence,
        appender: EvidenceAppender,
        recorder: ExitRecorder,
        ask: Runner[ChatRequest, FrontierPlan],
        judge: str | None,
        pruner: str,
        target_error: float,
        events: PruningEvents,
        prices: PriceList,
        again_share: float = AGAIN_SHARE,
        shadow_share: float = SHADOW_SHARE,
    ) -> None:
        super().__init__(
            evidence, appender, recorder, ask, judge, prices=prices,
            defect="context.comparison_failed", most_chars=_MOST_CHARS,
            again_share=again_share, shadow_share=shadow_share,
        )  # fmt: skip
        self._pruner = pruner
        self._target_error = target_error
        self._events = events

    def shortcut_of(self, model: str, judge: str) -> PrunedContext:
        """Return the shortcut of a `provider/model`."""
        return PrunedContext(model, self._pruner, judge, self._target_error)

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
