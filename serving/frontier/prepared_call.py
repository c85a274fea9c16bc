"""Prepares one call of a frontier model: fields, bounds, prices, cache segments."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from serving.contracts.answer import Usage
from serving.contracts.deadline import deadline_exceeded
from serving.contracts.errors import MaxCostExceeded, UnsupportedParameter
from serving.contracts.exits import Attempt
from serving.contracts.frontier import FrontierCall
from serving.contracts.prices import ModelPrices, PriceList, TokenPrices, plain_usd, unpriced
from serving.contracts.text_length import quarter_tokens
from serving.frontier.bounds import bounded, token_limits, worst_case_usd
from serving.frontier.prompt_cache import SplitPrompt, canonical, split_prompt
from serving.frontier.request_fields import passed_fields
from serving.frontier.spent import RequestFacts


@dataclass(frozen=True, slots=True)
class Charge:
    """The charge of a target for a call. prices: those of a short request."""

    prices: TokenPrices
    worst_case_usd: Decimal


@dataclass(frozen=True, slots=True)
class PreparedCall:
    """One FrontierCall, bounded and without markers.

    targets: those that may be called, in order. charges: by target. attempts: failed calls so far.
    called_at_s: when each target was first called, monotonic seconds.
    """

    call: FrontierCall
    prompt: SplitPrompt
    facts: RequestFacts
    targets: tuple[str, ...]
    charges: Mapping[str, Charge]
    attempts: list[Attempt]
    called_at_s: dict[str, float]

    def lost(self, target: str, usage: Usage | None = None) -> None:
        """Record a call of a hedged pair whose answer is not used; it may be billed."""
        if target in self.called_at_s:
            elapsed_s = time.monotonic() - self.called_at_s[target]
            self.attempts.append(Attempt(target, "hedge_lost", elapsed_s, usage))


def prepare(
    call: FrontierCall,
    extra_fields: Mapping[str, Collection[str]],
    prices: PriceList,
    marker: str,
    worst_case: Callable[[Mapping[str, Any], ModelPrices], Decimal] = worst_case_usd,
) -> PreparedCall:
    """Check, bound and price a call.

    extra_fields: by target that may be called, in order, the further fields that its provider's
    settings allow. marker: of cache segments in the prompt. worst_case: of a bounded body. Raises
    UnsupportedParameter, InvalidRequest, UnpricedModel, MaxCostExceeded, DeadlineExceeded.
    """
    targets, fields = _accepting(extra_fields, call.body)
    prompt = split_prompt(bounded(fields, call.bounds), marker)
    charges = _charges(targets, prompt.body, prices, worst_case)
    targets = _affordable(call, charges)
    if not call.deadline.remaining_s():
        raise deadline_exceeded()
    messages = prompt.body["messages"]
    facts = RequestFacts(token_limits(prompt.body), lambda: quarter_tokens(canonical(messages)))
    return PreparedCall(call, prompt, facts, targets, charges, [], {})


def _accepting(
    extra_fields: Mapping[str, Collection[str]], body: Mapping[str, Any]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the targets to which every field may be passed on, and the fields."""
    refusal: UnsupportedParameter | None = None
    accepted: list[str] = []
    fields: dict[str, Any] = {}
    passed: dict[frozenset[str], dict[str, Any]] = {}
    for target, extra in extra_fields.items():
        allowed = frozenset(extra)
        try:
            if allowed not in passed:
                passed[allowed] = passed_fields(body, allowed)
            fields = passed[allowed]
            accepted.append(target)
        except UnsupportedParameter as error:
            refusal = error
    if not accepted:
        assert refusal is not None
        raise refusal
    return tuple(accepted), fields


def _charges(
    targets: tuple[str, ...],
    body: Mapping[str, Any],
    prices: PriceList,
    worst_case: Callable[[Mapping[str, Any], ModelPrices], Decimal],
) -> dict[str, Charge]:
    """Return the charges of the targets that have a price; the others cannot be recorded."""
    found = {t: model for t in targets if (model := prices.of(t)) is not None}
    if not found:
        raise unpriced(targets, "model")
    return {t: Charge(p.base, worst_case(body, p)) for t, p in found.items()}


def _affordable(call: FrontierCall, charges: Mapping[str, Charge]) -> tuple[str, ...]:
    """Return the targets that cannot cost more than the client allows."""
    limit = call.max_cost_usd
    if limit is None:
        return tuple(charges)
    kept = tuple(t for t, charge in charges.items() if charge.worst_case_usd <= limit)
    if not kept:
        least = min(charge.worst_case_usd for charge in charges.values())
        raise MaxCostExceeded(
            f"max_cost_usd is {plain_usd(limit)} and the cheapest answer may cost "
            f"{plain_usd(least)}",
            field="max_cost_usd",
            fix="raise it, lower max_tokens, or shorten the messages",
        )
    return kept
