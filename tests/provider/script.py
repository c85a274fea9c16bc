"""The provider's script, its record of requests, and its bill."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

FaultKind = Literal[
    "status",  # an error document with `status`
    "raw",  # `body` as it is, with `status` and `headers`: whole, or as the events of a stream
    "hang",  # nothing at all
    "hang_up",  # the connection closes without a byte of an answer
    "hang_mid_stream",  # silence after `after_events` events
    "cut",  # the connection breaks after `after_events` events, or half of a whole body
    "end_early",  # a stream ends politely after `after_events` events, unfinished
    "slow",  # `delay_s` before the answer and between events
    "malformed",  # the body, or the event after `after_events`, is no JSON
    "truncated",  # half of a JSON document, politely ended
    "error_event",  # an error inside a stream after `after_events` events
    "no_usage",
    "negative_usage",
    "inconsistent_usage",
    "empty_choices",
    "html",  # a page of some proxy, with status 200
]


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    code, message: of the error document; {key} becomes the key. worked: the provider had made its
    answer, and bills it, before a proxy answered with `status`. body: of a `raw` answer, in pieces;
    aborts: the connection breaks behind them. bill: of a `raw` answer, in the wire format; that of
    the answer that it replaces where None, nothing where empty.
    """

    kind: FaultKind
    status: int = 500
    code: str = ""
    message: str = "something went wrong"
    headers: dict[str, str] = field(default_factory=dict)
    after_events: int = 0
    delay_s: float = 0.0
    worked: bool = False
    body: tuple[bytes, ...] = ()
    aborts: bool = False
    bill: dict[str, Any] | None = None


def rate_limited(retry_after: str | None = None, **headers: str) -> Fault:
    named = {"retry-after": retry_after} if retry_after is not None else {}
    extra = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault("status", 429, "rate_limit_exceeded", "slow down", {**named, **extra})


@dataclass
class Seen:
    """One request as it arrived, and how it ended.

    usage: of the whole answer, in the wire format. billed: what the provider charges for, in the
    wire format; None for a request that it refused. sent_tokens: of a stream so far.
    """

    api: Literal["openai", "anthropic"]
    headers: dict[str, str]
    body: dict[str, Any]
    text: str
    key: str
    disconnected: bool = False
    completed: bool = False
    in_flight: int = 0
    usage: dict[str, Any] | None = None
    billed: dict[str, Any] | None = None
    sent_tokens: int = 0

    @property
    def model(self) -> str:
        return str(self.body.get("model"))

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))


@dataclass(frozen=True)
class ToolCall:
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """The model's text. finish: in OpenAI's words. service_tier: the usual one where None."""

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish: str = "stop"
    reasoning_tokens: int = 0
    service_tier: str | None = None


Answer = Callable[[Seen], Reply | str | None]


class Script:
    """Faults to come, the answers to give, and the requests seen. Used from two threads.

    run_ahead_tokens: made and billed beyond what was sent when the client closes a stream.
    """

    def __init__(self) -> None:
        self.faults: deque[Fault | None] = deque()
        self.always: dict[str, Fault] = {}
        self.answer: Answer = lambda _: None
        self.seen: list[Seen] = []
        self.in_flight = 0
        self.run_ahead_tokens = 0

    def next(self, *faults: Fault | None) -> None:
        """The next requests meet these, in order; None is an answer."""
        self.faults.extend(faults)

    def on(self, model: str, fault: Fault) -> None:
        """Every request to a model meets this fault; `*` is any model."""
        self.always[model] = fault

    def fault_of(self, seen: Seen) -> Fault | None:
        if self.faults:
            return self.faults.popleft()
        return self.always.get(seen.model) or self.always.get("*")

    def reset(self) -> None:
        self.faults.clear()
        self.always.clear()
        self.answer = lambda _: None
        self.run_ahead_tokens = 0
        self.seen.clear()

    @property
    def completed(self) -> int:
        """How many answers were made to the end."""
        return sum(seen.completed for seen in self.seen)
