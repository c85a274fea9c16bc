"""The one seam through which every input of every request leaves."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Protocol

from serving.contracts.answer import Route, Usage
from serving.contracts.frontier import Attempt
from serving.contracts.routing import Reason

Endpoint = Literal["task", "chat", "completions"]


@dataclass(frozen=True, slots=True)
class Exit:
    """How one input left.

    task: None for what is no task. route: `none` where it ended in an error. reason: why it went
    that way. model: who answered. usage: of the answer alone; attempts: what was tried besides and
    is paid for all the same. valid: the answer could be read in full. error: its code.
    replica_s: share of a local replica's time that the answer took, seconds; None where no local
    model answered. service_tier: of the answer, as its provider names it. guaranteed: a local
    answer lies within its attested error bound; None where no local model answered.
    """

    request_id: str
    endpoint: Endpoint
    task: str | None
    route: Route | Literal["none"]
    reason: Reason | None
    model: str | None
    usage: Usage | None
    elapsed_s: float
    attempts: tuple[Attempt, ...] = ()
    valid: bool = True
    error: str | None = None
    replica_s: float | None = None
    service_tier: str | None = None
    guaranteed: bool | None = None


class ExitObserver(Protocol):
    """Whoever keeps the books."""

    def left(self, exit_: Exit, cost_usd: Decimal | None) -> None:
        """An input was answered, refused or abandoned; called once for each.

        cost_usd: of all its calls; None where one of them is unknown.
        """
        ...
