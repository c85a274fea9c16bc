"""Requests to frontier APIs and their answers, in the shape of OpenAI's chat completions."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol

from serving.contracts.answer import Usage
from serving.contracts.deadline import Deadline
from serving.contracts.errors import NarrowgateError
from serving.contracts.exits import Attempt
from serving.contracts.ledger import Entry


@dataclass(frozen=True, slots=True)
class OutputBounds:
    """How long an answer may get. The client's own limits win where they are lower.

    max_tokens: hard limit. stop: added where the client names no stop sequences.
    directive: a sentence for the system prompt that asks for this length; None adds nothing.
    thinking: False turns off the reasoning of models that reason by default and count it in
    max_tokens.
    """

    max_tokens: int
    stop: tuple[str, ...] = ()
    directive: str | None = None
    thinking: bool = True


@dataclass(frozen=True, slots=True)
class FrontierCall:
    """One request that may be paid for once.

    body: fields of OpenAI's chat completions; `model`, `stream` and `stream_options` are set per
    target. targets: `provider/model`, tried in this order. purpose: the task, or `chat`.
    max_cost_usd: targets whose worst case exceeds it are left out. entry: the input's ledger entry,
    in which every call is written before it is made.
    """

    body: dict[str, Any]
    targets: tuple[str, ...]
    bounds: OutputBounds
    deadline: Deadline
    request_id: str
    entry: Entry
    purpose: str = "chat"
    max_cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. body: an OpenAI `chat.completion`, whose model is `provider/model`."""

    body: dict[str, Any]
    model: str
    usage: Usage
    attempts: tuple[Attempt, ...] = ()
    service_tier: str | None = None

    @property
    def text(self) -> str:
        """Return the first choice's text, empty where it has none. Parts are joined."""
        content = self.body["choices"][0]["message"].get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        texts = (part.get("text") for part in parts if isinstance(part, dict))
        return "".join(text for text in texts if isinstance(text, str))


@dataclass(slots=True)
class CompletionStream:
    """An answer that has begun: its first event has arrived, so no other target is called.

    events: OpenAI `chat.completion.chunk` documents. No chunk but the last has `usage`, and the
    last has no choices; the usage is estimated where none was reported. Raises FrontierStreamBroken
    where the answer ends unfinished. Closing the iterator (`aclose`), also before its first event,
    ends the call: the connection is closed, or a short rest is read in the background for its
    usage, and the ledger's call is closed then, possibly after the exit.
    usage: received so far, set when the events end or are closed. service_tier: as the
    provider names it, set then.
    """

    model: str
    events: AsyncIterator[dict[str, Any]]
    attempts: tuple[Attempt, ...] = ()
    usage: Usage | None = field(default=None)
    service_tier: str | None = field(default=None)


class Frontier(Protocol):
    """All configured providers; serving.frontier implements it."""

    def configured(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of the targets whose provider has a key (or needs none)."""
        ...

    async def complete(self, call: FrontierCall) -> Completion:
        """Return the answer of the first target that gives one.

        Raises FrontierNotConfigured, UnsupportedParameter and InvalidRequest (a field that is not
        passed on, or a malformed limit), UnpricedModel, MaxCostExceeded before anything is sent;
        BudgetExceeded and LedgerUnavailable instead of a call, DeadlineExceeded, or the last
        target's FrontierError. Errors carry the attempts: see attempts_of.
        """
        ...

    async def stream(self, call: FrontierCall) -> CompletionStream:
        """Return the answer of the first target that begins one. Raises as `complete`."""
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


def with_attempts(error: NarrowgateError, attempts: tuple[Attempt, ...]) -> NarrowgateError:
    """Attach to an error the calls that led to it, for the ledger; does not cross processes."""
    error.__dict__["attempts"] = attempts
    return error


def attempts_of(error: NarrowgateError) -> tuple[Attempt, ...]:
    """Return the calls that led to an error."""
    attempts: tuple[Attempt, ...] = error.__dict__.get("attempts", ())
    return attempts
