"""Everything about a request that is not its content: caller, options, deadline, arrival."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from serving.contracts.deadline import Deadline
from serving.contracts.ledger import Caller
from serving.contracts.routing import RequestOptions


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One client request. arrived_at: when its headers had been read; arrived_s: the same moment
    on the monotonic clock, from which latency is measured."""

    request_id: str
    caller: Caller
    options: RequestOptions
    deadline: Deadline
    arrived_at: datetime = field(default_factory=_now)
    arrived_s: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Return the seconds since the request arrived."""
        return time.monotonic() - self.arrived_s
