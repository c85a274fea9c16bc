"""Runs free-form chats within learned bounds; continues answers that such a bound cut."""

import hmac
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from serving.cache.cacheable import declines
from serving.contracts.answer import Usage
from serving.contracts.errors import NarrowgateError
from serving.contracts.openai import openai_usage
from serving.contracts.requests import ChatRequest, Message
from serving.pipeline.answer_lengths import AnswerLengths, Arm, Scopes, scopes_of
from serving.pipeline.brevity import BrevityAuditor
from serving.pipeline.exit_recorder import (
    Outcome,
    OutcomeStream,
    RequestRecord,
    Served,
    under_claim,
)
from serving.pipeline.paired_auditor import UNDECIDED, ClientAnswer, PairDecision
from serving.pipeline.plan import FrontierPlan, directive_within
from serving.pipeline.runner import Runner

CONTINUE = (
    "Your last message was cut off. Repeat its last few words exactly and continue from there "
    "to the end. Add no comment."
)
_LEAST_S = 2.0
"""Time left for a continuation."""

_CUT_SHARE = 0.9
"""Of our limit, that an answer which it cut has at least; counts may be estimates."""

_SEARCHED = 400
_OVERLAP = (12, _SEARCHED)
"""Least and most characters of a repeated end."""

# What may stand before a repetition and is no part of the answer: marks of an omission or a quote,
# and a line that announces the rest. Anything else is the answer's own text, and is kept.
_LEAD = re.compile(r"[\s.…\"'“„«`*_]{0,8}")
_ANNOUNCED = re.compile(
    r"(?:\s{0,8}(?:sure|certainly|of course|absolutely|okay|ok|here|continu|picking up|resum)"
    r"[^\n]{0,160}?[:.…]\s{0,8}){1,2}",
    re.IGNORECASE,
)
_NO_CONTINUATION = frozenset({
    "tools", "functions", "tool_choice", "function_call", "response_format", "logprobs", "audio",
    "modalities", "prediction", "web_search_options", "stop",
})  # fmt: skip
_NO_TEXT = ("refusal", "tool_calls", "function_call")
_REASONING = frozenset({"reasoning_effort", "reasoning", "thinking"})


@dataclass(frozen=True, slots=True)
class Learning:
    """Learned bounds. holdout: share of requests without a directive, once lengths are known.

    directive: of the settings, with {words}; None adds none. auditor: makes the auditor under whose
    claim the directive is added, from a runner that asks a model; None adds it unjudged. secret: of
    the draw of the holdout, which clients' request ids must not decide.
    """

    lengths: AnswerLengths
    holdout: float
    directive: str | None
    auditor: Callable[[Runner[ChatRequest, FrontierPlan]], BrevityAuditor] | None = None
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(16))


@dataclass(frozen=True, slots=True)
class _Bounding:
    """How one request is bounded. is_ours: its limit is lower than the client's own.

    directive: that asks it for brevity, or would. brevity: what the claim says of that.
    """

    scopes: Scopes
    arm: Arm
    plan: FrontierPlan
    is_ours: bool
    directive: str | None
    brevity: PairDecision = UNDECIDED

    @property
    def is_claimed(self) -> bool:
        """Return whether it is asked for brevity under a held claim."""
        return self.arm == "directed" and self.brevity.is_earned

    def claimed(self, served: Served) -> Served:
        """Return what was served, with the claim under which it was asked for brevity."""
        ruling = self.brevity.ruling
        if not self.is_claimed or ruling is None or served.model != self.plan.targets[0]:
            return served
        return under_claim(served, ruling.name)


class Bounded:
    """Implements Runner: the other runner gets the plan with learned bounds.

    Requests for tools, formats, several choices or reasoning, with a limit of cost, and those that
    ask for a deterministic answer keep the bounds of the settings.
    """

    def __init__(
        self,
        runner: Runner[ChatRequest, FrontierPlan],
        learning: Learning,
        auditor: BrevityAuditor | None = None,
    ) -> None:
        self._runner = runner
        self._learning = learning
        self._auditor = auditor

    async def whole(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> list[Outcome]:
        """Return the answer, with its continuation where our bound cut it."""
        bounding = self._bounding(request, plan, record)
        if bounding is None:
            return await self._runner.whole(request, plan, record)
        (first,) = await self._runner.whole(request, bounding.plan, record)
        if first.served is not None:
            first = replace(first, served=bounding.claimed(first.served))
        text = _text(first)
        if text is None or first.served is None:
            return [first]
        if _finish(first) != "length" or not bounding.is_ours:
            if _finish(first) == "stop":
                self._ended(bounding, "complete", first.served.usage)
                answer = ClientAnswer(text, first.served.usage)
                self._compare(request, bounding, record, first.served.model, answer)
            return [first]
        if not _may_continue(request, bounding.plan, text, first.served.usage):
            self._ended(bounding, "cut", first.served.usage)
            return [first]
        try:
            more = await self._runner.whole(
                _continuing(request, text, first.served.usage), _continuation(bounding.plan), record
            )
        except NarrowgateError:
            # What was paid for is sent: the answer ends where the bound cut it.
            self._ended(bounding, "cut", first.served.usage)
            return [first]
        joined = _joined(first, more[0], text)
        assert joined.served is not None
        outcome = "continued" if _finish(joined) == "stop" else "cut"
        self._ended(bounding, outcome, joined.served.usage)
        return [joined]

    async def stream(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> Outcome | OutcomeStream:
        """As `whole`: the stream does not end where our bound cut the answer."""
        bounding = self._bounding(request, plan, record)
        if bounding is None:
            return await self._runner.stream(request, plan, record)
        first = await self._runner.stream(request, bounding.plan, record)
        if isinstance(first, Outcome):
            return first
        model = first.model

        def completed(text: str) -> None:
            answer = ClientAnswer(text, first.served().usage)
            self._compare(request, bounding, record, model, answer)

        events = _Continued(
            self._runner, self._learning.lengths, request, bounding, record, first, completed
        )
        return replace(first, events=events, served=events.served)

    def _bounding(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> _Bounding | None:
        fields = {**request.fields, **request.extras}
        options = record.context.options
        is_other = (
            not _NO_CONTINUATION.isdisjoint(fields)
            or not _REASONING.isdisjoint(fields)
            or request.choices != 1
            or options.deterministic
            or options.max_cost_usd is not None
        )
        if is_other or not request.messages or request.messages[-1].role != "user":
            return None
        lengths = self._learning.lengths
        tenant = record.context.caller.tenant
        scopes = scopes_of(tenant, plan.targets[0], request.messages)
        share = lengths.plain_share(scopes, self._learning.holdout)
        brevity = UNDECIDED
        if self._auditor is not None:
            brevity = self._auditor.decide(request, plan.targets[0], record)
        is_allowed = self._auditor is None or brevity.is_earned
        is_plain = not is_allowed or drawn(record.context.request_id, self._learning.secret) < share
        arm: Arm = "plain" if is_plain else "directed"
        directive = self._directive(scopes, plan)
        limit = lengths.bound(scopes, plan.bounds.max_tokens)
        bounds = replace(plan.bounds, max_tokens=limit, directive=None if is_plain else directive)
        is_ours = request.max_tokens is None or request.max_tokens > limit
        return _Bounding(scopes, arm, replace(plan, bounds=bounds), is_ours, directive, brevity)

    def _directive(self, scopes: Scopes, plan: FrontierPlan) -> str | None:
        words, directive = self._learning.lengths.words(scopes), self._learning.directive
        if directive is None:
            return plan.bounds.directive
        if words is None:
            # Under a claim the plan has none: nothing else may add it.
            is_judged = self._auditor is not None
            within = directive_within(directive, plan.bounds.max_tokens)
            return within if is_judged else plan.bounds.directive
        return directive.replace("{words}", str(words))

    def _ended(self, bounding: _Bounding, outcome: str, usage: Usage | None) -> None:
        if usage is not None:
            self._learning.lengths.ended(
                bounding.scopes, bounding.arm, outcome, usage.output_tokens
            )

    def _compare(
        self,
        request: ChatRequest,
        bounding: _Bounding,
        record: RequestRecord,
        model: str,
        answer: ClientAnswer,
    ) -> None:
        """Have a whole answer compared with the other one, brief or not, where that is drawn.

        Not that of another model than the first target: the claim is about one model. Nor one
        without the directive while the claim is held.
        """
        auditor, brevity, plan = self._auditor, bounding.brevity, bounding.plan
        if auditor is None or brevity.ruling is None or bounding.directive is None:
            return
        if model != plan.targets[0] or record.is_audit:
            return
        if bounding.is_claimed:
            auditor.evidence.counts.accepted[brevity.ruling.name] += 1
        if bounding.is_claimed or not brevity.is_earned:
            auditor.answered(request, plan, brevity, record.context, answer, bounding.directive)


class _Continued:
    """The events of a stream, and those of its continuation; closing it closes both."""

    def __init__(
        self,
        runner: Runner[ChatRequest, FrontierPlan],
        lengths: AnswerLengths,
        request: ChatRequest,
        bounding: _Bounding,
        record: RequestRecord,
        first: OutcomeStream,
        completed: Callable[[str], None],
    ) -> None:
        self._runner = runner
        self._lengths = lengths
        self._completed = completed
        self._request = request
        self._bounding = bounding
        self._record = record
        self._first = first
        self._second: OutcomeStream | None = None
        self._text: list[str] = []
        self._finish: str | None = None
        self._events = self._all()

    def __aiter__(self) -> "_Continued":
        return self

    async def __anext__(self) -> dict[str, Any]:
        return await anext(self._events)

    async def aclose(self) -> None:
        await self._events.aclose()
        for stream in (self._first, self._second):
            close = None if stream is None else getattr(stream.events, "aclose", None)
            if close is not None:
                await close()

    def served(self) -> Served:
        """Return what both calls served so far."""
        first = self._bounding.claimed(self._first.served())
        return first if self._second is None else _both(first, self._second.served())

    async def _all(self) -> AsyncGenerator[dict[str, Any], None]:
        head: Mapping[str, Any] = {}
        last: list[dict[str, Any]] = []
        async for event in self._first.events:
            head = head or {n: event[n] for n in ("id", "created", "model") if n in event}
            self._take(event)
            if last or (self._bounding.is_ours and self._finish == "length"):
                # How it ends is not known yet.
                last.append(event)
            else:
                yield event
        if not last:
            self._ended("complete" if self._finish == "stop" else None)
            if self._finish == "stop":
                self._completed("".join(self._text))
            return
        second = await self._opened()
        if second is None:
            self._ended("cut")
            for event in last:
                yield event
            return
        for event in last:
            if (left := _unfinished(event)) is not None:
                yield left
        self._second = second
        async for event in self._rest(second, head, last):
            yield event
        self._ended("continued" if self._finish == "stop" else "cut")

    async def _opened(self) -> OutcomeStream | None:
        """Return the stream of the continuation; None where there can be none."""
        plan, text = self._bounding.plan, "".join(self._text)
        usage = self._first.served().usage
        if not _may_continue(self._request, plan, text, usage):
            return None
        request = _continuing(self._request, text, usage)
        try:
            found = await self._runner.stream(request, _continuation(plan), self._record)
        except NarrowgateError:
            return None
        assert isinstance(found, OutcomeStream)
        return found

    async def _rest(
        self, second: OutcomeStream, head: Mapping[str, Any], last: Sequence[Mapping[str, Any]]
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the continuation, or what there is of it and the end of the first call: last."""
        try:
            async for event in self._continued(second, head):
                yield event
        except NarrowgateError:
            # What was paid for is sent: the answer ends where the second call left it.
            self._finish = "length"
            for one in last:
                yield {**_cut(one), **head}

    async def _continued(
        self, second: OutcomeStream, head: Mapping[str, Any]
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield the continuation without the words that it repeats."""
        begun = "".join(self._text)
        held, is_joined, is_declined = "", False, False
        try:
            async for event in second.events:
                event = {**event, **head}
                self._take(event)
                is_declined = is_declined or _is_other(event)
                if not is_joined:
                    held += _delta(event)
                    is_end = not event.get("choices") or _is_finished(event)
                    if len(held) < _SEARCHED and not is_end:
                        continue
                    is_joined = True
                    is_declined = is_declined or not held.strip() or declines(held)
                    if not is_declined:
                        yield _of_text(event, without_overlap(begun, held))
                    if not is_end:
                        continue
                    event = _without_text(event)
                if is_declined:
                    event = _cut(event)
                    self._finish = "length"
                if event.get("usage"):
                    # What the second call served is known only behind this event.
                    before = self._first.served().usage
                    own = {} if before is None else openai_usage(before)
                    event = {**event, "usage": _summed(own, event["usage"])}
                yield event
        except NarrowgateError:
            if not is_joined and not is_declined and not declines(held):
                yield {**_of_text({}, without_overlap(begun, held)), **head}
            raise

    def _take(self, event: Mapping[str, Any]) -> None:
        self._text.append(_delta(event))
        for choice in event.get("choices") or ():
            self._finish = choice.get("finish_reason") or self._finish

    def _ended(self, outcome: str | None) -> None:
        usage = self.served().usage
        if outcome is not None and usage is not None:
            bounding = self._bounding
            self._lengths.ended(bounding.scopes, bounding.arm, outcome, usage.output_tokens)


def drawn(request_id: str, secret: bytes) -> float:
    """Return a number in [0, 1) that a request keeps when this process tries it again."""
    return int.from_bytes(hmac.digest(secret, request_id.encode(), "sha256")[:4]) / 2**32


def _may_continue(request: ChatRequest, plan: FrontierPlan, text: str, usage: Usage | None) -> bool:
    """Return whether an answer that ended at a limit can be continued.

    Only one that our limit cut: a full context window and other ends are `length`, too. Not where
    the model reasoned before it, nor where the client's own limit is reached.
    """
    if usage is None or usage.output_tokens < _CUT_SHARE * plan.bounds.max_tokens:
        return False
    has_reasoned = usage.reasoning_tokens > 0
    is_used_up = request.max_tokens is not None and _left(request.max_tokens, usage) < 1
    may = bool(text.strip()) and not has_reasoned and not is_used_up
    return may and plan.deadline.remaining_s() >= _LEAST_S


def _left(max_tokens: int, usage: Usage | None) -> int:
    """Return what the first call left of the client's limit; nothing where that is not known."""
    return 0 if usage is None else max_tokens - usage.output_tokens


def _continuing(request: ChatRequest, text: str, usage: Usage | None) -> ChatRequest:
    """Return the second call's request. Both calls together keep the client's limit."""
    begun = Message("assistant", text)
    messages = (*request.messages, begun, Message("user", CONTINUE))
    limit = None if request.max_tokens is None else _left(request.max_tokens, usage)
    return replace(request, messages=messages, max_tokens=limit)


def _continuation(plan: FrontierPlan) -> FrontierPlan:
    """Return the plan of the second call: more room, and no second request for brevity."""
    bounds = replace(plan.bounds, max_tokens=2 * plan.bounds.max_tokens, directive=None)
    return replace(plan, bounds=bounds)


def _text(outcome: Outcome) -> str | None:
    """Return the text of a chat's only choice; None where it is anything else."""
    if not isinstance(outcome.content, dict):
        return None
    choices = outcome.content.get("choices") or [{}]
    message = choices[0].get("message") or {}
    text = message.get("content")
    is_plain = isinstance(text, str) and not message.get("tool_calls") and len(choices) == 1
    return text if is_plain else None


def _finish(outcome: Outcome) -> str | None:
    assert isinstance(outcome.content, dict)
    found: str | None = outcome.content["choices"][0].get("finish_reason")
    return found


def _joined(first: Outcome, second: Outcome, text: str) -> Outcome:
    """Return both answers as one; the first alone, with what both cost, where it is not continued.

    A model that declines to continue says so in words that are no part of the answer.
    """
    more = _text(second)
    if first.served is None or second.served is None:
        return first
    assert isinstance(first.content, dict)
    assert isinstance(second.content, dict)
    served = _both(first.served, second.served)
    choice = first.content["choices"][0]
    if more is not None and more.strip() and not declines(more):
        message = {**choice["message"], "content": text + without_overlap(text, more)}
        finish = second.content["choices"][0].get("finish_reason")
        choice = {**choice, "message": message, "finish_reason": finish}
    content = {**first.content, "choices": [choice]}
    if served.usage is not None:
        content["usage"] = openai_usage(served.usage)
    return replace(first, content=content, served=served)


def _both(first: Served, second: Served) -> Served:
    """Return what two calls served together. The first answered, with the tokens of both."""
    usage = first.usage
    if usage is not None and second.usage is not None:
        names = Usage.model_fields
        usage = Usage(**{n: getattr(first.usage, n) + getattr(second.usage, n) for n in names})
    return replace(first, usage=usage, attempts=(*first.attempts, *second.attempts))


def _summed(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    """Return two usages in OpenAI's shape together."""
    found: dict[str, Any] = {**left, **right}
    for name in left.keys() & right.keys():
        one, other = left[name], right[name]
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found[name] = _summed(one, other)
        elif isinstance(one, int) and isinstance(other, int):
            found[name] = one + other
    return found


def without_overlap(begun: str, more: str) -> str:
    """Return a continuation without what it repeats of the text before it.

    Where nothing is repeated, a space joins two words: models begin a message without one.
    """
    announced = _ANNOUNCED.match(more)
    for begin in (0, announced.end() if announced else 0):
        lead = _LEAD.match(more, begin)
        for start in (begin, lead.end() if lead else begin):
            if size := _repeated(begun, more[start : start + _SEARCHED]):
                return more[start + size :]
    glued = begun[-1:].isalnum() and more[:1].isalnum()
    return f" {more}" if glued else more


def _repeated(begun: str, more: str) -> int:
    """Return how many characters of a text's end begin another one; 0 where too few do."""
    least, most = _OVERLAP
    sizes = range(min(most, len(begun), len(more)), least - 1, -1)
    return next((size for size in sizes if more.startswith(begun[-size:])), 0)


def _delta(event: Mapping[str, Any]) -> str:
    choices = event.get("choices") or [{}]
    text = (choices[0].get("delta") or {}).get("content")
    return text if isinstance(text, str) else ""


def _without_text(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event without its text, which was sent already."""
    choices = [
        {
            **choice,
            "delta": {n: v for n, v in (choice.get("delta") or {}).items() if n != "content"},
        }
        for choice in event.get("choices") or ()
    ]
    return {**event, "choices": choices}


def _cut(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return an event of a continuation that was declined: no text, and an end at the limit."""
    choices = [
        {
            **choice,
            "delta": {},
            "finish_reason": "length" if choice.get("finish_reason") else None,
        }
        for choice in event.get("choices") or ()
    ]
    return {**event, "choices": choices}


def _of_text(event: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Return an event of a text alone."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return {**event, "object": "chat.completion.chunk", "choices": [choice], "usage": None}


def _is_finished(event: Mapping[str, Any]) -> bool:
    return any(choice.get("finish_reason") for choice in event.get("choices") or ())


def _is_other(event: Mapping[str, Any]) -> bool:
    """Return whether an event holds what continues no text: a refusal, or a call of a tool."""
    deltas = [choice.get("delta") or {} for choice in event.get("choices") or ()]
    return any(delta.get(name) for delta in deltas for name in _NO_TEXT)


def _unfinished(event: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the text of a last event without its end; None where it has none."""
    if not _delta(event):
        return None
    choices = [{**choice, "finish_reason": None} for choice in event["choices"]]
    return {**event, "choices": choices, "usage": None}
