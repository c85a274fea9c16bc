"""The router's part of a request: tier, reason, decision, and the protocols around them."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from serving.contracts.answer import TaskRequest
from serving.contracts.requests import ChatRequest

RoutePreference = Literal["local_only", "auto", "frontier_only"]
AuditPreference = Literal["auto", "never"]
QualityPreference = Literal["auto", "reference"]
"""reference: no cheaper tier answers in the place of the one that the rules or settings name."""

CachePreference = Literal["use", "refresh", "bypass", "no-store"]
"""refresh: ask a model and replace the entry. bypass: neither look up nor store. no-store: look up,
and do not store."""

Tier = Literal["economy", "standard", "frontier"]
TIERS: tuple[Tier, ...] = get_args(Tier)

Reason = Literal[
    "narrow",  # a configured task, answered locally within its bound
    "requested",  # the client named the model or the route
    "out_of_scope",  # no configured task
    "below_threshold",  # answered locally, outside the certified bound
    "invalid_output",  # answered locally, unreadable
    "not_attested",  # the local model has no attestation for the task
    "overload",  # the local queue is full
    "local_failure",  # the local model failed or is not there
    "deadline_at_risk",  # the local model was too slow to leave time for a frontier model
    "shadow",  # the claim is being earned: the reference answered
    "withdrawn",  # the claim was withdrawn: the reference answered
    "audit",  # no client asked: an answer is compared with the reference's
    "explore",  # no client asked: a cheaper tier's answer, to be compared
    "judge",  # no client asked: two answers are compared
    "earned_tier",  # a cheaper tier answered under its claim on the cluster
    "cascade",  # a cheaper tier answered first, and its self-check was above its claim's threshold
    "cached",  # an equal request was answered before, or at the same moment
]

_LONGEST_END_USER = 256


def end_user_id(given: str) -> str:
    """Return the id under which an end user's rows are stored and deleted.

    It is what the client sent; of a longer id, its beginning and its SHA-256, 256 characters.
    """
    if len(given) <= _LONGEST_END_USER:
        return given
    digest = hashlib.sha256(given.encode("utf-8", "replace")).hexdigest()
    return f"{given[: _LONGEST_END_USER - 1 - len(digest)]}~{digest}"


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """A client's options for routing, cost and evidence.

    audit: `never` keeps the inputs from providers that would get them for evidence. deterministic:
    two equal calls get equal answers, so no shortcut is taken whose state may change between them.
    end_user: the client's id of the person that it serves, by which evidence is deleted. cache: how
    this request uses the cache. cache_ttl_s: age at which its entry ends; None for the namespace's.
    quality: `reference` keeps a chat from cheaper tiers.
    """

    route: RoutePreference = "auto"
    max_cost_usd: Decimal | None = None
    audit: AuditPreference = "auto"
    deterministic: bool = False
    end_user: str | None = None
    cache: CachePreference = "use"
    cache_ttl_s: float | None = None
    quality: QualityPreference = "auto"


@dataclass(frozen=True, slots=True)
class Vectors:
    """Embeddings of a request's texts, computed once and shared by all steps that compare texts.

    by_text: a text's vector, (dimensions,) float32. failure: code of the error that prevented them,
    `timeout` where they took too long; None where there was none.
    """

    by_text: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The router's decision about a chat with the model `auto`.

    task: the narrow task with its input, or None. certainty: probability of that task, or of no
    task. complexity: in [0, 1]; None where nothing was scored. tier: of the frontier model that
    answers where no local one does. because: the rule or the scores, for logs. labels: of a task
    with labels or entity types, those that the client named, each with the client's own word for
    it; None where it named none. An answer outside them must escalate; entities of other types are
    left out.
    """

    task: TaskRequest | None
    certainty: float
    complexity: float | None
    tier: Tier
    because: str
    labels: Mapping[str, str] | None = None


KnownVector = Callable[[str], NDArray[np.float32] | None]
"""Returns the vector of a text that was embedded before; None for other texts."""


class Router(Protocol):
    """Makes the decision about a chat before any model is called; serving.routing implements it."""

    async def vectors(self, request: ChatRequest, known: KnownVector | None = None) -> Vectors:
        """Return the vectors that `decide` needs. Never raises: see Vectors.failure.

        known: of texts that were embedded before.
        """
        ...

    def decide(self, request: ChatRequest, vectors: Vectors) -> Decision:
        """Return the decision about a chat. Pure; does not wait."""
        ...


class DecisionLog(Protocol):
    """Stores chats that went to a frontier model, to be labelled and to train the router."""

    def record(self, row: Mapping[str, Any]) -> None:
        """Queue a row to be written. Neither blocks nor raises."""
        ...

    def close(self) -> None:
        """Write queued rows. Blocking."""
        ...
