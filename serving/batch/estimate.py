"""What the lines of a batch may cost, and what the reference model would cost. Pure."""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from serving.contracts.errors import NarrowgateError
from serving.contracts.frontier import OutputBounds
from serving.contracts.prices import STANDARD, ModelPrices, PriceList
from serving.contracts.requests import ChatRequest, TaskBatch
from serving.frontier.bounds import bounded, token_limits
from serving.frontier.request_fields import passed_fields
from serving.frontier.usage import TokenLimits
from serving.pipeline.plan import FrontierPlan
from serving.tasks.frontier_prompt import frontier_prompt
from serving.tasks.task import Task

_Most = Callable[[ModelPrices, TokenLimits], Decimal]


def _most_in(tier: str | None) -> _Most:
    """Return what computes a worst case in a service tier; None: in the most expensive one."""
    return lambda prices, one: prices.worst_case(one.input_tokens, one.output_tokens, tier)


def _most_in_batch(prices: ModelPrices, one: TokenLimits) -> Decimal:
    return prices.worst_case_in_batch(one.input_tokens, one.output_tokens)


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """Estimates lines before they run: all input in its dearest class, all output that is allowed.

    configured, batched: return those targets whose provider has a key, and a batch API. tasks: by
    name.
    """

    prices: PriceList
    configured: Callable[[tuple[str, ...]], tuple[str, ...]]
    batched: Callable[[tuple[str, ...]], tuple[str, ...]]
    reference_model: str
    tasks: Mapping[str, Task]
    _last: threading.local = field(default_factory=threading.local)

    def worst(self, request: ChatRequest | TaskBatch, plan: FrontierPlan) -> Decimal | None:
        """Return the most that a line can cost at a plan's first target, asked synchronously."""
        targets = self.configured(plan.targets)
        return self._usd(request, plan.bounds, targets[0]) if targets else None

    def held(self, request: ChatRequest | TaskBatch, plan: FrontierPlan) -> Decimal | None:
        """As `worst`, in the most expensive service tier that the line allows: as it is held."""
        targets = self.configured(plan.targets)
        tier = (
            request.provider_body().get("service_tier")
            if isinstance(request, ChatRequest)
            else None
        )
        most = _most_in(tier if isinstance(tier, str) else None)
        return self._usd(request, plan.bounds, targets[0], most) if targets else None

    def in_batch(self, request: ChatRequest | TaskBatch, plan: FrontierPlan) -> Decimal | None:
        """Return the most that a line can cost in the batch of a plan's first target.

        None where its provider has none.
        """
        targets = self.batched(self.configured(plan.targets)[:1])
        return self._usd(request, plan.bounds, targets[0], _most_in_batch) if targets else None

    def reference(self, request: ChatRequest | TaskBatch, bounds: OutputBounds) -> Decimal | None:
        """Return the most that a line can cost at the reference model, asked synchronously."""
        return self._usd(request, bounds, self.reference_model)

    def _usd(
        self,
        request: ChatRequest | TaskBatch,
        bounds: OutputBounds,
        target: str,
        most: _Most | None = None,
    ) -> Decimal | None:
        most = most or _most_in(STANDARD)
        prices = self.prices.of(target)
        if prices is None:
            return None
        try:
            limits = self._remembered(request, bounds)
        except NarrowgateError:
            # The line's own error comes from the check, or when it runs.
            return None
        return sum((most(prices, one) for one in limits), Decimal(0))

    def _remembered(
        self, request: ChatRequest | TaskBatch, bounds: OutputBounds
    ) -> list[TokenLimits]:
        """Return a request's limits; those of the last one are kept, for its other price."""
        last = getattr(self._last, "found", None)
        if last is None or last[0] is not request or last[1] != bounds:
            last = (request, bounds, list(self._limits(request, bounds)))
            self._last.found = last
        return last[2]

    def _limits(
        self, request: ChatRequest | TaskBatch, bounds: OutputBounds
    ) -> Iterator[TokenLimits]:
        if isinstance(request, ChatRequest):
            body = {n: v for n, v in request.provider_body().items() if n != "service_tier"}
            yield token_limits(bounded(passed_fields(body), bounds))
            return
        for one in request.requests:
            prompt = frontier_prompt(self.tasks[request.task], one)
            yield token_limits(bounded(prompt.body, OutputBounds(prompt.max_tokens)))
