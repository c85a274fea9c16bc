"""What a call used: what its provider told, an estimate, or that nobody knows. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from serving.contracts.answer import Usage
from serving.contracts.errors import FrontierError
from serving.contracts.ledger import UsageSource
from serving.frontier.failures import may_be_billed, usage_of
from serving.frontier.prompt_cache import canonical
from serving.frontier.provider_api import StreamPart, WholeAnswer
from serving.frontier.usage import estimated


@dataclass(frozen=True, slots=True)
class Spent:
    """What a call used. usage: None where nothing was used, or nobody knows (`unknown`)."""

    usage: Usage | None
    source: UsageSource
    service_tier: str | None = None


NOTHING = Spent(None, "reported")
"""Of a call that was not made, or that the provider refused."""

UNKNOWN = Spent(None, "unknown")
"""Of a call that nobody waited for: the provider may have worked on it."""


def spent_on(answer: WholeAnswer, prompt_chars: Callable[[], int]) -> Spent:
    """Return what a whole answer used, estimated from its length where the provider did not tell.

    prompt_chars: counts the messages that were sent; called only then.
    """
    if answer.usage is not None:
        return Spent(answer.usage, "reported", answer.service_tier)
    guess = estimated(prompt_chars(), len(canonical(answer.body["choices"])))
    return Spent(guess, "estimated", answer.service_tier)


def spent_on_error(error: FrontierError) -> Spent:
    """Return what a call used that ended in an error before its answer began."""
    usage = usage_of(error)
    if usage is not None:
        return Spent(usage, "reported")
    return UNKNOWN if may_be_billed(error) else NOTHING


class Progress:
    """A stream so far."""

    def __init__(self, prompt_chars: Callable[[], int]) -> None:
        self._prompt_chars = prompt_chars
        self._answer_chars = 0
        self._told: Usage | None = None
        self._final = False
        self._service_tier: str | None = None

    def take(self, part: StreamPart) -> None:
        """Note a part. Counts that come with the end, or after it, are those of the answer."""
        self._service_tier = part.service_tier or self._service_tier
        self._told = part.usage or self._told
        choices = part.chunk.get("choices") or []
        if part.usage is not None:
            ended = any(choice.get("finish_reason") for choice in choices)
            self._final = self._final or ended or not choices
        for choice in choices:
            self._answer_chars += _length(choice.get("delta"))

    def spent(self) -> Spent:
        """Return what the answer used so far."""
        if self._final:
            return Spent(self._told, "reported", self._service_tier)
        guess = estimated(self._prompt_chars(), self._answer_chars, self._told)
        return Spent(guess, "estimated", self._service_tier)


def _length(delta: object) -> int:
    """Return how many characters of text, reasoning or arguments a delta brings."""
    if isinstance(delta, str):
        return len(delta)
    if isinstance(delta, dict):
        names = (name for name in delta if name not in {"role", "id", "type", "name", "index"})
        return sum(_length(delta[name]) for name in names)
    return sum(map(_length, delta)) if isinstance(delta, list) else 0
