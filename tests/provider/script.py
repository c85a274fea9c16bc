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
    "slow",  # `delay_s` before the answer and between events; `raw` takes it after each piece
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
    wire format; None for a request that it refused. sent_tokens: of a stream so far. batch_id,
    custom_id: of a line of a batch, which costs half.
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
    batch_id: str | None = None
    custom_id: str | None = None

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
    """The model's text. finish: in OpenAI's words. service_tier: the usual one where None.

    logprob: of each word, where the request asks for it (OpenAI's format); None for none.
    """

    text: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish: str = "stop"
    reasoning_tokens: int = 0
    service_tier: str | None = None
    logprob: float | None = None


Answer = Callable[[Seen], Reply | str | None]

BatchOperation = Literal[
    "upload", "file", "create", "list", "state", "results", "cancel", "delete"
]  # `file`: the description of a file, or its deletion


@dataclass(frozen=True)
class BatchPlan:
    """How one batch goes.

    ends: `failed` is a refusal of the whole batch after its creation, which only OpenAI knows.
    code, message: of that refusal. answered: the share of the lines, in their order, that is
    answered before an expiry or a cancellation; a completed batch answers all. polls, seconds: how
    many requests of its state, and how much time, pass before it ends. unlisted: how many lists
    leave it out. lost: how many requests about it say that it does not exist. duplicated: lines
    that its results hold twice. strangers: results of lines that nobody sent. is_ordered: whether
    results come in the order of the lines. late_files: how many states of a batch that has ended
    name none of its files. errors: in place of what OpenAI's shape has there. `cancelled`: by
    someone in the provider's own console. omits_unrun: whether results and OpenAI's counts leave
    out lines that did not run.
    """

    ends: Literal["completed", "expired", "failed", "cancelled"] = "completed"
    code: str = "invalid_request"
    message: str = "the batch is refused"
    answered: float = 1.0
    polls: int = 1
    seconds: float = 0.0
    unlisted: int = 0
    lost: int = 0
    duplicated: int = 0
    strangers: int = 0
    is_ordered: bool = False
    late_files: int = 0
    errors: Any = None
    omits_unrun: bool = False


class Script:
    """Faults to come, the answers to give, and the requests seen. Used from two threads.

    run_ahead_tokens: made and billed beyond what was sent when the client closes a stream.
    batch_plans: of the next batches, in order; then batch_plan. batch_faults: of the next requests
    of each operation; None is an answer. line_fault: why a line of a batch gets an error, if it
    does. batch_requests: the operations so far, with the id that each names or makes.
    """

    def __init__(self) -> None:
        self.faults: deque[Fault | None] = deque()
        self.always: dict[str, Fault] = {}
        self.answer: Answer = lambda _: None
        self.seen: list[Seen] = []
        self.in_flight = 0
        self.run_ahead_tokens = 0
        self.batch_plans: deque[BatchPlan] = deque()
        self.batch_plan = BatchPlan()
        self.batch_faults: dict[BatchOperation, deque[Fault | None]] = {}
        self.line_fault: Callable[[Seen], Fault | None] = lambda _: None
        self.batch_requests: list[tuple[BatchOperation, str]] = []

    def next(self, *faults: Fault | None) -> None:
        """The next requests meet these, in order; None is an answer."""
        self.faults.extend(faults)

    def on(self, model: str, fault: Fault) -> None:
        """Every request to a model meets this fault; `*` is any model."""
        self.always[model] = fault

    def next_batch(self, *plans: BatchPlan) -> None:
        """The next batches go like these, in order."""
        self.batch_plans.extend(plans)

    def on_batch(self, operation: BatchOperation, *faults: Fault | None) -> None:
        """The next requests of an operation on batches meet these, in order."""
        self.batch_faults.setdefault(operation, deque()).extend(faults)

    def batch_fault_of(self, operation: BatchOperation) -> Fault | None:
        faults = self.batch_faults.get(operation)
        return faults.popleft() if faults else None

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
        self.batch_plans.clear()
        self.batch_plan = BatchPlan()
        self.batch_faults.clear()
        self.line_fault = lambda _: None
        self.batch_requests.clear()

    @property
    def completed(self) -> int:
        """How many answers were made to the end."""
        return sum(seen.completed for seen in self.seen)
