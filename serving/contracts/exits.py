"""How each input of a request ended. The ledger and the metrics get it once per input."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, Protocol

from serving.contracts.answer import CacheKind, Route, Usage
from serving.contracts.evidence import Evidence
from serving.contracts.routing import Reason

NO_MODEL = "none"
"""The local model of a task where none is configured."""

HEAD_PREFIX = "head:"
"""Prefix of the model's name where a learned head answered: it takes no local replica's time."""

DEFERRED = "deferred"
"""Outcome of an attempt of a batch's line that a provider's batch is to answer, or did not run: no
failure. The line's next attempt is another input."""

Endpoint = Literal["task", "chat", "completions", "audit"]
"""audit: no client waits for it; evidence compares its answer with one that was served."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call of a model whose answer was not sent to the client.

    model: `provider/model` or a local model's id. error: its code, or the reason for which the
    answer was set aside. usage: None where unknown. replica_s: share of a local replica's time,
    seconds; None for providers.
    """

    model: str
    error: str
    elapsed_s: float
    usage: Usage | None = None
    replica_s: float | None = None


@dataclass(frozen=True, slots=True)
class Exit:
    """How one input ended.

    task: None where the input belongs to no task. route: `none` where it ended in an error. reason:
    why it took this route. model: the one that answered, in whole or in part. usage: of the answer
    alone; attempts: calls made before it, which are paid for too. elapsed_s: since the request
    arrived. valid: the answer could be read in full. error: its code. replica_s: share of a local
    replica's time that the answer took, seconds; None where no local model answered. service_tier:
    of the answer, as the provider names it. guaranteed: a local answer is within its attested error
    bound; None where no local model answered a task. A cached answer has that of the answer that
    was stored; one of a frontier model is True. evidence: what that bound rests on. claim: the ids
    of the claims under which it was served, comma-separated. reference_usage: what the reference
    model would have used, an estimate; None where `usage` says that. lookup_s: time of the cache's
    lookup, seconds; None where nothing was looked up. cache_entry: id of the cached answer that was
    served. avoided_usd: what that answer had cost, or what the tokens that were removed from a
    context under a claim would have cost; None where unknown. cache_kind: how it was found.
    refined_route: route of the answer just before in the conversation, where this input repeats or
    corrects its question; None elsewhere. cluster: of an open-ended chat, as serving.tiers names
    it; None elsewhere.
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
    evidence: Evidence | None = None
    claim: str | None = None
    reference_usage: Usage | None = None
    lookup_s: float | None = None
    cache_entry: str | None = None
    avoided_usd: Decimal | None = None
    cache_kind: CacheKind | None = None
    refined_route: Route | None = None
    cluster: str | None = None


class ExitObserver(Protocol):
    """Counts exits; the gateway's metrics implement it."""

    def input_finished(self, exit_: Exit, cost_usd: Decimal | None) -> None:
        """Count one exit; called once per input.

        cost_usd: of all its calls; None where one of them is unknown.
        """
        ...
