"""Audits a log: prices its calls and adds up what each lever would have changed."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from serving.contracts.answer import Usage
from serving.contracts.errors import InvalidArgument, NarrowgateError
from serving.contracts.prices import ModelPrices, TokenPrices, input_tokens
from serving.contracts.requests import ChatRequest
from serving.contracts.routing import TIERS, Router
from serving.contracts.settings import Settings
from serving.ledger.pricing.book import PriceBook
from serving.pipeline.read import read_chat
from serving.savings.assumptions import Assumptions
from serving.savings.estimate import LEVERS, SCENARIOS, Lever, Saving, Sums, scenario_costs
from serving.savings.exports import LoggedCall, NotACall, read_call, time_of
from serving.savings.levers import (
    ContextPruning,
    ExactCache,
    PromptCaching,
    cached_usage,
    cheaper_model,
    may_be_shortened,
    pruned_usage,
    rough_tokens,
)
from serving.savings.log_file import LogFile

_NAMED_LINES = 5
_MOST_KINDS = 200
_REMEMBERED_NAMES = 10_000
_MOST_CHOICES = 128
_JUDGED = 3.0
"""The cheaper model's call, and a judge that reads the request with both answers in two orders."""

_BY_NAME = (
    ("claude", "anthropic"), ("gpt-", "openai"), ("chatgpt-", "openai"), ("o1", "openai"),
    ("o3", "openai"), ("o4", "openai"), ("gemini", "google"), ("mistral", "mistral"),
    ("deepseek", "deepseek"), ("command", "cohere"), ("grok", "x-ai"),
)  # fmt: skip
"""Where a log names no provider: the vendor whose name for a model begins like this."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Lines that are not counted, or not in full. lines: the numbers of the first of them."""

    what: str
    count: int
    lines: tuple[int, ...]
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class ModelBill:
    """The calls of one model. cheaper: the model that `tiers` prices instead; None for none."""

    model: str
    calls: int
    usd: float
    cheaper: str | None


@dataclass(frozen=True, slots=True)
class LeverResult:
    """One lever. requests: those that it would have changed."""

    lever: Lever
    requests: int
    saving: Saving


@dataclass(frozen=True, slots=True)
class Audit:
    """The result. bill_usd: at list prices. logged_usd: the costs that the log itself states.

    since, until: of the calls' times, None without any. is_timed: every call has a time.
    """

    lines: int
    calls: int
    conversations: int
    bill_usd: float
    logged_usd: Decimal | None
    since: datetime | None
    until: datetime | None
    is_timed: bool
    levers: tuple[LeverResult, ...]
    total: Saving
    models: tuple[ModelBill, ...]
    problems: tuple[Problem, ...]
    assumptions: Assumptions


@dataclass(slots=True)
class _Problems:
    counts: Counter[str] = field(default_factory=Counter)
    lines: dict[str, list[int]] = field(default_factory=dict)
    fixes: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, line: int, fix: str | None = None) -> None:
        if what not in self.counts and len(self.counts) >= _MOST_KINDS:
            what, fix = "other problems", None
        self.counts[what] += 1
        lines = self.lines.setdefault(what, [])
        if len(lines) < _NAMED_LINES:
            lines.append(line)
        if fix is not None:
            self.fixes[what] = fix

    def found(self) -> tuple[Problem, ...]:
        return tuple(
            Problem(what, count, tuple(sorted(self.lines[what])), self.fixes.get(what))
            for what, count in self.counts.most_common()
        )


@dataclass(frozen=True, slots=True)
class Auditing:
    """What an audit needs. provider: of calls whose log names none."""

    settings: Settings
    book: PriceBook
    router: Router
    assumptions: Assumptions
    provider: str | None = None
    seed: int = 0


class _Run:
    """One pass over a log."""

    def __init__(self, auditing: Auditing) -> None:
        self._auditing = auditing
        self._cache = ExactCache(auditing.settings)
        self._context = ContextPruning(auditing.settings)
        self._prompt_cache = PromptCaching(auditing.settings)
        self._loop = asyncio.new_event_loop()
        self.sums = Sums(auditing.seed)
        self.problems = _Problems()
        self.applied: Counter[Lever] = Counter()
        self.calls: Counter[str] = Counter()
        self.usd: Counter[str] = Counter()
        self.cheaper: dict[str, str | None] = {}
        self.logged_usd: Decimal | None = None
        self.times: list[float] = []
        self._named: LRUCache[tuple[str, float | None, str], None] = LRUCache(_REMEMBERED_NAMES)
        self.untimed = 0
        tiers = auditing.settings.frontier.tiers
        self._targets = tuple(dict.fromkeys(target for tier in TIERS for target in tiers[tier]))

    def close(self) -> None:
        self._loop.close()

    def add(self, number: int, document: Mapping[str, Any]) -> None:
        try:
            call = read_call(document)
        except NotACall as error:
            self.problems.add(f"not billed: {error}", number)
            return
        except ValueError as error:
            self.problems.add(
                f"not understood: {error}", number, "docs/savings.md lists the shapes of lines"
            )
            return
        if self._is_repeated(call):
            self.problems.add("not billed: the same call as another line, by its id", number)
            return
        if call.usage is None:
            self.problems.add(
                f"no cost: {call.problem}", number, "export token counts (usage) with the requests"
            )
            return
        prices = self._prices(call)
        if prices is None:
            name = call.model if call.provider is None else f"{call.provider}/{call.model}"
            full = name if "/" in name else f"{self._auditing.provider or 'PROVIDER'}/{name}"
            self.problems.add(
                f"no cost: the price of {name!r} is unknown", number,
                f"give --prices a YAML file with `{full}: {{input: 2.50, output: 10}}`, US dollars "
                "a million tokens; --provider names the provider of bare model names",
            )  # fmt: skip
            return
        self._price(number, call, call.usage, prices)

    def _is_repeated(self, call: LoggedCall) -> bool:
        """Return whether an earlier line has the id, the time and the tokens of a call."""
        if call.name is None:
            return False
        # In the order of time the lines of one call are neighbours.
        key = (call.name, call.at_s, repr(call.usage))
        is_known = key in self._named
        self._named[key] = None
        return is_known

    def _prices(self, call: LoggedCall) -> ModelPrices | None:
        at = None if call.at_s is None else _moment(call.at_s)
        model = call.model
        names = []
        if call.provider is not None:
            names.append(model if model.startswith(f"{call.provider}/") else
                         f"{call.provider}/{model}")  # fmt: skip
        elif "/" in model:
            names.append(model)
        else:
            guess = (vendor for start, vendor in _BY_NAME if model.lower().startswith(start))
            provider = self._auditing.provider or next(guess, None)
            names += [f"{provider}/{model}"] if provider else []
        found = (self._auditing.book.of(name, at) for name in names)
        return next((one for one in found if one is not None), None)

    def _price(self, number: int, call: LoggedCall, usage: Usage, prices: ModelPrices) -> None:
        tokens = prices.applied(usage, call.service_tier).step.prices
        bill = tokens.cost(usage)
        request = self._request(number, call)
        assumed = self._auditing.assumptions
        steps: list[NDArray[np.float64]] = [np.full(SCENARIOS, float(bill))]

        def took(lever: Lever, cost: NDArray[np.float64]) -> None:
            if (cost != steps[-1]).any():
                self.applied[lever] += 1
            steps.append(cost)

        took("exact_cache", steps[-1] * (0.0 if request and self._cache.hits(request, call) else 1))
        is_open = bool(steps[-1].any())
        # What is answered locally leaves a share to the provider, which the other levers shorten.
        left = np.ones(SCENARIOS)
        local = np.zeros(SCENARIOS)
        if is_open and request is not None and self._is_narrow(request):
            left = 1.0 - np.array(assumed.local_coverage.scenarios)
            local = np.array(assumed.local_answer_usd.scenarios)
        took("local_tasks", steps[-1] * left + local)
        if not is_open:
            steps += [steps[-1]] * (len(LEVERS) - 2)
            self._finish(call, prices, float(bill), None, steps)
            return
        rough = rough_tokens(call.body)
        share = self._context.removed_share(request, rough) if request is not None else 0.0
        usages = [pruned_usage(usage, share * one) for one in assumed.context_earned.scenarios]

        def cost() -> NDArray[np.float64]:
            return np.array([float(tokens.cost(one)) for one in usages]) * left + local

        took("context_pruning", cost())
        prefixed = self._prompt_cache.planned(call, prices.model, tokens, usage, rough)
        if prefixed.written:
            usages = [
                cached_usage(one, prefixed, served, input_tokens(one) / max(1, input_tokens(usage)))
                for one, served in zip(usages, assumed.cache_served.scenarios, strict=True)
            ]
        took("prompt_caching", cost())
        if may_be_shortened(call.body):
            usages = [
                one.model_copy(update={"output_tokens": round(one.output_tokens * (1.0 - saved))})
                for one, saved in zip(usages, assumed.output_saved.scenarios, strict=True)
            ]
        took("output_bounds", cost())
        cheaper = cheaper_model(prices, usage, call.service_tier, self._candidates(call))
        tiered = cost()
        if cheaper is not None:
            its_tokens = cheaper.applied(usage, call.service_tier).step.prices
            tiered = self._tiered(its_tokens, usages, tiered - local, left) + local
        took("tiers", tiered)
        name = None if cheaper is None else cheaper.model
        self._finish(call, prices, float(bill), name, steps)

    def _candidates(self, call: LoggedCall) -> list[ModelPrices]:
        """Return the models of the tiers at their prices of the call's time, else of today."""
        at, book = None if call.at_s is None else _moment(call.at_s), self._auditing.book
        found = (book.of(target, at) or book.of(target) for target in self._targets)
        return [one for one in found if one is not None]

    def _tiered(
        self,
        tokens: TokenPrices,
        usages: list[Usage],
        cost: NDArray[np.float64],
        left: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        """Return the cost with a share of it at the cheaper model, its audits included."""
        assumed = self._auditing.assumptions
        cheap = np.array([float(tokens.cost(one)) for one in usages]) * left
        share = np.array(assumed.tier_share.scenarios)
        audits = np.array(assumed.tier_audits.scenarios) * _JUDGED * cheap
        tiered: NDArray[np.float64] = cost * (1.0 - share) + cheap * share + audits * (share > 0)
        return tiered

    def _finish(
        self, call: LoggedCall, prices: ModelPrices, bill: float, cheaper: str | None,
        steps: list[NDArray[np.float64]],
    ) -> None:  # fmt: skip
        self.sums.add(_conversation(call), scenario_costs(steps))
        self.calls[prices.model] += 1
        self.usd[prices.model] += bill  # type: ignore[assignment]
        if cheaper is not None:
            self.cheaper[prices.model] = cheaper
        if call.logged_usd is not None:
            self.logged_usd = (self.logged_usd or Decimal(0)) + call.logged_usd
        if call.at_s is None:
            self.untimed += 1
        else:
            ends = (*self.times, call.at_s)
            self.times = [min(ends), max(ends)]

    def _request(self, number: int, call: LoggedCall) -> ChatRequest | None:
        """Return the typed request; None where the levers that read texts cannot read it."""
        if not call.body.get("messages"):
            self.problems.add(
                "no texts: cache, tasks, context and prompt caching save nothing there", number,
                "export the request bodies too",
            )  # fmt: skip
            return None
        if call.answer is None:
            self.problems.add(
                "no answer: the exact cache stores nothing there", number,
                "export the response bodies too",
            )  # fmt: skip
        try:
            return read_chat({**call.body, "model": call.model, "stream": False}, _MOST_CHOICES)
        except NarrowgateError as error:
            field_ = (error.field or "body").split(".")
            where = ".".join("N" if part.isdigit() else part for part in field_)
            self.problems.add(f"billed, but not read as a chat because of {where[:60]}", number)
            return None

    def _is_narrow(self, request: ChatRequest) -> bool:
        router = self._auditing.router
        # Not asyncio.Runner: it describes the task, vectors and all, at every call.
        vectors = self._loop.run_until_complete(router.vectors(request))
        return router.decide(request, vectors).task is not None


def audit(
    log: LogFile, auditing: Auditing, progress: Callable[[int], None] = lambda done: None
) -> Audit:
    """Return the audit of a log. Reads it twice, blocking; sends nothing.

    progress: called with the number of lines done. Raises InvalidArgument where no call can be
    priced.
    """
    run = _Run(auditing)
    lines = 0
    try:
        for line in log.in_time_order(_time):
            lines += 1
            if line.document is None:
                run.problems.add(f"broken line: {line.problem}", line.number)
            else:
                run.add(line.number, line.document)
            progress(lines)
    finally:
        run.close()
    if log.truncated is not None:
        run.problems.add(f"{log.truncated}; what was unpacked is counted", lines)
    if not run.calls:
        _refuse(lines, run.problems.found())
    levers = tuple(
        LeverResult(lever, run.applied[lever], run.sums.saving(lever)) for lever in LEVERS
    )
    since, until = (_moment(at) for at in run.times) if run.times else (None, None)
    return Audit(
        lines=lines, calls=run.calls.total(), conversations=run.sums.conversations,
        bill_usd=run.sums.bill_usd, logged_usd=run.logged_usd, since=since, until=until,
        is_timed=not run.untimed, levers=levers, total=run.sums.saving(None),
        models=tuple(_bills(run)), problems=run.problems.found(), assumptions=auditing.assumptions,
    )  # fmt: skip


def _bills(run: _Run) -> Iterator[ModelBill]:
    for model, usd in run.usd.most_common():
        yield ModelBill(model, run.calls[model], float(usd), run.cheaper.get(model))


def _refuse(lines: int, problems: tuple[Problem, ...]) -> None:
    first = problems[0] if problems else None
    what = "" if first is None else f"; {first.count} of them: {first.what}, line {first.lines[0]}"
    raise InvalidArgument(
        f"no call can be priced in {lines} lines{what}",
        field="--requests",
        fix=(first.fix if first else None) or "docs/savings.md lists the shapes of lines",
    )


def _conversation(call: LoggedCall) -> str:
    """Return the name of a call's conversation: the log's, or its first messages."""
    if call.conversation is not None:
        return f"log {call.conversation}"
    messages = call.body.get("messages") or ()
    opening = []
    for message in messages:
        opening.append(f"{message}")
        if isinstance(message, Mapping) and message.get("role") == "user":
            break
    return "\n".join(opening) or f"at {call.at_s}"


def _time(document: Mapping[str, Any]) -> float | None:
    try:
        return time_of(document)
    except (ValueError, OverflowError):
        return None


def _moment(at_s: float) -> datetime:
    # A time outside of the calendar is a mistake of the log, not of this command.
    return datetime.fromtimestamp(min(max(at_s, 0.0), 4e9), UTC)
