"""The usage of a call: reported by its provider, estimated, or unknown. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.contracts.answer import Usage
from serving.contracts.errors import FrontierError
from serving.contracts.ledger import UsageSource
from serving.contracts.text_length import quarter_tokens
from serving.frontier.failures import may_be_billed, usage_of
from serving.frontier.provider_api import StreamPart, WholeAnswer
from serving.frontier.usage import TokenLimits, is_credible

_TEXT_FIELDS = ("content", "refusal", "reasoning", "reasoning_content")


@dataclass(frozen=True, slots=True)
class Spent:
    """The usage of a call.

    usage: None where nothing was used. Where the source is `unknown`, the part that was received.
    """

    usage: Usage | None
    source: UsageSource
    service_tier: str | None = None


NOTHING = Spent(None, "reported")
"""Of a call that was not made, or that the provider refused."""

UNKNOWN = Spent(None, "unknown")
"""Of a call that the provider may have billed without reporting its usage."""


@dataclass(frozen=True, slots=True)
class RequestFacts:
    """The facts of a request that its usage is checked against.

    limits: the most tokens that it may be billed. prompt_quarters: the estimated length of its
    messages in quarters of a token; called only where no usage is reported.
    """

    limits: TokenLimits
    prompt_quarters: Callable[[], int]


def spent_on(answer: WholeAnswer, facts: RequestFacts) -> Spent:
    """Return the usage of a whole answer, estimated where the reported usage is not credible."""
    messages = [choice["message"] for choice in answer.body["choices"]]
    texts = [text for message in messages for text in _texts(message)]
    chars = sum(map(len, texts))
    if answer.usage is not None and is_credible(answer.usage, facts.limits, chars):
        return Spent(answer.usage, "reported", answer.service_tier)
    guess = _estimated(facts, sum(map(quarter_tokens, texts)))
    return Spent(guess, "estimated", answer.service_tier)


def spent_on_error(error: FrontierError, limits: TokenLimits) -> Spent:
    """Return the usage of a call that failed before its answer began."""
    usage = usage_of(error)
    if usage is not None and is_credible(usage, limits, 0):
        return Spent(usage, "reported")
    return UNKNOWN if may_be_billed(error) else NOTHING


class Progress:
    """The part of a stream that has been received. is_finished: the answer is complete."""

    def __init__(self, facts: RequestFacts) -> None:
        self._facts = facts
        self._chars = 0
        self._quarters = 0
        self._reported: Usage | None = None
        self._service_tier: str | None = None
        self.is_finished = False
        self._is_final = False
        self._is_cut = False

    def take(self, part: StreamPart) -> None:
        """Add a part. Counts that come with the end of the answer, or after it, are the whole's."""
        self._service_tier = part.service_tier or self._service_tier
        self.is_finished = self.is_finished or part.is_finished
        self._is_cut = self._is_cut or part.is_cut
        if part.usage is not None:
            self._reported = part.usage
            self._is_final = self.is_finished
        for choice in part.chunk.get("choices", []) if part.chunk else []:
            for text in _texts(choice["delta"]):
                self._chars += len(text)
                self._quarters += quarter_tokens(text)

    @property
    def output_tokens(self) -> int:
        """Return the estimated length of the received part, tokens."""
        return -(-self._quarters // 4)

    def spent(self) -> Spent:
        """Return the usage of the answer so far.

        `reported` once its final usage has arrived, `estimated` where it ended without one,
        `unknown` before its end, because the provider may have made more than it sent, and where it
        broke off behind its text, because the usage is lost.
        """
        reported, limits = self._reported, self._facts.limits
        if reported is not None and self._is_final and is_credible(reported, limits, self._chars):
            return Spent(reported, "reported", self._service_tier)
        if reported is not None and not is_credible(reported, limits, self._chars, is_whole=False):
            reported = None
        guess = _estimated(self._facts, self._quarters, None if self._is_final else reported)
        is_whole = self.is_finished and not self._is_cut
        return Spent(guess, "estimated" if is_whole else "unknown", self._service_tier)


def _estimated(facts: RequestFacts, answer_quarters: int, reported: Usage | None = None) -> Usage:
    """Return a rough usage. reported: counts from before the answer's end: the input's hold.

    A provider bills no more than the request allows, whatever it sends: that much is held.
    """
    output = min(-(-answer_quarters // 4), facts.limits.output_tokens)
    if reported is not None:
        shown = max(reported.output_tokens, output - reported.reasoning_tokens)
        return reported.model_copy(update={"output_tokens": shown})
    asked = min(-(-facts.prompt_quarters() // 4), facts.limits.input_tokens)
    return Usage(uncached_input_tokens=asked, output_tokens=output)


def _texts(message: Mapping[str, Any]) -> list[str]:
    """Return the text, reasoning and arguments of a message or a delta."""
    texts = [text for name in _TEXT_FIELDS for text in _in_content(message.get(name))]
    calls = message.get("tool_calls")
    functions = (
        [call.get("function") for call in calls or [] if isinstance(call, Mapping)]
        if (isinstance(calls, list))
        else []
    )
    for function in [*functions, message.get("function_call")]:
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(arguments, str):
            texts.append(arguments)
    return texts


def _in_content(content: object) -> list[str]:
    if isinstance(content, str):
        return [content]
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in parts]
    return [text for text in texts if isinstance(text, str)]
