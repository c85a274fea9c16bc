"""One cached answer: what is kept of it, and whether it may be served now. Pure."""

import json
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, Self
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from serving.contracts.answer import Answer, CacheHit, CacheKind, Route, Usage
from serving.contracts.evidence import Evidence

Kind = Literal["chat", "task"]

SKEW = timedelta(minutes=1)
"""By which the clocks of replicas may differ: an entry may come from so far in the future."""


class DamagedEntry(ValueError):
    """A stored content is no entry of this version."""


@dataclass(frozen=True, slots=True)
class Content:
    """What is encrypted: the answer, and what it cost.

    document: of a chat as OpenAI's API has it, or a task's Answer. usage: tokens of the answer.
    cost_usd: of all calls that made it; None where unknown. guarantee: the header's value.
    """

    document: dict[str, Any]
    usage: Usage | None
    cost_usd: Decimal | None = None
    finish_reason: str = "stop"
    attestation: str | None = None
    guarantee: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerOrigin:
    """What an answer depended on. It may be served only while all of it is as it was.

    route, model: that made it. version: of the local model; empty for a frontier model. task: that
    the input belonged to. claim, action: under which a local answer was served. text: digest by
    which the claim lists texts that are often answered wrongly. guaranteed, evidence: of the
    ledger. reading: of a chat that was read as the task, the same digest of the chat, by the claim
    on its reading; None for other answers.
    """

    route: Route
    model: str
    version: str = ""
    task: str | None = None
    claim: str | None = None
    action: str | None = None
    text: str | None = None
    guaranteed: bool | None = None
    evidence: Evidence | None = None
    reading: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One cached answer.

    key: of the request; it includes the namespace. tenant, request_id, end_user: of the request
    whose answer this is; it is deleted with them. aside: why it is suspected and not served.
    """

    key: str
    namespace: str
    tenant: str
    request_id: str
    kind: Kind
    origin: AnswerOrigin
    content: Content
    created_at: datetime
    expires_at: datetime
    end_user: str | None = None
    id: str = field(default_factory=lambda: uuid4().hex)
    aside: str | None = None

    def is_live(self, now: datetime) -> bool:
        """Return whether an entry may still be served.

        Not before it was made, either: the clock was set back since, and it is older than it looks.
        """
        return self.created_at - SKEW <= now < self.expires_at

    def hit(self, now: datetime, kind: CacheKind = "exact", similarity: float = 1.0) -> CacheHit:
        """Return what a client is told about a hit."""
        age_s = max(0.0, (now - self.created_at).total_seconds())
        return CacheHit(
            entry=self.id, age_s=round(age_s, 3), kind=kind, similarity=round(similarity, 4)
        )

    def answer(self) -> Answer:
        """Return the answer of a task's entry."""
        return Answer.model_validate(self.content.document)


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """The last turn of a chat, by whose meaning its answer is found.

    fingerprint: digest of all that decides the answer besides it. vector: of unit length,
    (dimensions,) float32.
    """

    fingerprint: str
    text: str
    vector: NDArray[np.float32]

    def packed(self) -> bytes:
        """Return text and vector as bytes."""
        head = len(self.vector).to_bytes(2, "little")
        vector = self.vector.astype("<f4").tobytes()
        return head + vector + self.text.encode("utf-8", "surrogatepass")

    @classmethod
    def unpacked(cls, data: bytes, fingerprint: str) -> Self:
        """Return what was packed. Raises DamagedEntry."""
        try:
            end = 2 + 4 * int.from_bytes(data[:2], "little")
            vector = np.frombuffer(data[2:end], "<f4").astype(np.float32)
            if 4 * len(vector) + 2 != end:
                raise DamagedEntry("a cached question ends early")
            return cls(fingerprint, data[end:].decode("utf-8", "surrogatepass"), vector)
        except ValueError as error:
            raise DamagedEntry("a cached question cannot be read") from error


@dataclass(frozen=True, slots=True)
class PackedEntry:
    """An entry with its content as bytes, as it is stored before encryption.

    arrived_at: when the request arrived: an entry is not stored if it was deleted since. question:
    None where it is found by its key alone.
    """

    entry: Entry
    data: bytes
    arrived_at: datetime
    question: Question | None = None

    @classmethod
    def of(cls, entry: Entry, arrived_at: datetime, question: Question | None = None) -> Self:
        """Return an entry with its content packed."""
        content = entry.content
        body = {
            "document": content.document,
            "usage": None if content.usage is None else content.usage.model_dump(),
            "cost_usd": None if content.cost_usd is None else str(content.cost_usd),
            "finish_reason": content.finish_reason,
            "attestation": content.attestation,
            "guarantee": content.guarantee,
            "origin": asdict(entry.origin),
        }
        text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
        return cls(entry, text.encode("utf-8", "surrogatepass"), arrived_at, question)


def unpacked(data: bytes, kind: Kind) -> tuple[Content, AnswerOrigin]:
    """Return what was packed. Raises DamagedEntry."""
    try:
        body = json.loads(data.decode("utf-8", "surrogatepass"))
        usage, cost = body["usage"], body["cost_usd"]
        content = Content(
            body["document"],
            None if usage is None else Usage.model_validate(usage),
            None if cost is None else Decimal(cost),
            body["finish_reason"],
            body["attestation"],
            body["guarantee"],
        )
        if kind == "task":
            Answer.model_validate(content.document)
        return content, AnswerOrigin(**body["origin"])
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise DamagedEntry(f"a cache entry cannot be read: {type(error).__name__}") from error
