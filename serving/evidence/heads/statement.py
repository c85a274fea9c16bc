"""The signed statement about a head: an in-toto Statement v1 in a DSSE envelope.

Key and predicate type are evidence's own: a key that signs heads must not be trusted for models.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serving.artifacts.envelope import (
    DamagedEnvelope,
    UnsignedEnvelope,
    signed_envelope,
    verified_payload,
)
from serving.contracts.attestation import STATEMENT_TYPE, Count, Subject, canonical_envelope
from serving.contracts.errors import HeadRefused
from serving.evidence.heads.candidate import (
    Candidate,
    HeadScope,
    Kind,
    content_digest,
    parse_candidate,
)

HEAD_PREDICATE = "urn:narrowgate:evidence:head:v1"
_REFIT = "delete it; it is fitted again from its examples"


class HeadPredicate(BaseModel):
    """What the statement says about one head. examples: on which it was fitted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    narrowgate: str
    date: datetime
    tenants: str
    pooled: bool
    task: str
    spec_digest: str
    kind: Kind
    version: Count
    encoder: str
    model: str
    method: str
    examples: Count
    examples_digest: str


class HeadStatement(BaseModel):
    """An in-toto Statement v1 about one head."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: tuple[Subject] = Field(description="exactly one")
    predicate_type: Literal["urn:narrowgate:evidence:head:v1"] = Field(alias="predicateType")
    predicate: HeadPredicate


@dataclass(frozen=True, slots=True)
class Head:
    """A verified head. key_id: of the key that signed it."""

    candidate: Candidate
    predicate: HeadPredicate
    key_id: str

    @property
    def name(self) -> str:
        """Return the name in answers and claims, such as `head@3`."""
        return self.candidate.named(self.predicate.version)


@dataclass(frozen=True, slots=True)
class SignedHead:
    """A head as it is stored. content: of the candidate. envelope: about it."""

    content: bytes
    envelope: bytes

    def exported(self) -> bytes:
        """Return one file with both: canonical JSON."""
        envelope: Any = json.loads(self.envelope)
        content = base64.b64encode(self.content).decode()
        return canonical_envelope({"content": content, "envelope": envelope})


def sign_head(candidate: Candidate, version: int, scope: HeadScope, signer: Any) -> SignedHead:
    """Return a candidate of a scope with its signed statement.

    signer: of signing_key.load_signer.
    """
    provenance = candidate.provenance
    predicate = HeadPredicate(
        narrowgate=metadata.version("narrowgate"),
        date=datetime.now(UTC),
        tenants=scope.tenants,
        pooled=scope.pooled,
        version=version,
        **_facts(candidate),
    )
    name = f"head:{provenance.task}@{version}"
    statement = HeadStatement(
        type=STATEMENT_TYPE,
        subject=(Subject.of(name, candidate.digest.removeprefix("sha256:")),),
        predicate_type=HEAD_PREDICATE,
        predicate=predicate,
    )
    payload = statement.model_dump_json(by_alias=True).encode()
    return SignedHead(candidate.content, signed_envelope(payload, signer))


def verified_head(signed: SignedHead, keys: Sequence[Any]) -> Head:
    """Return a head whose statement a trusted key signed about exactly these bytes.

    keys: evidence's, of trust.trusted_keys. Raises HeadRefused.
    """
    digest = content_digest(signed.content)
    try:
        payload, key_id = verified_payload(signed.envelope, keys)
        statement = HeadStatement.model_validate_json(payload)
    except UnsignedEnvelope as error:
        raise HeadRefused(
            f"the statement about head {digest!r} {error}",
            field="evidence.trusted_keys",
            fix="trust the key that signed it, or delete the head",
        ) from error
    except DamagedEnvelope as error:
        raise HeadRefused(f"the statement about head {digest!r} {error}", fix=_REFIT) from error
    except ValidationError as error:
        raise HeadRefused(
            f"the statement about {digest!r} is signed, and is not about a head", fix=_REFIT
        ) from error
    stated = "sha256:" + statement.subject[0].digest.sha256
    candidate = parse_candidate(signed.content, stated)
    predicate = statement.predicate
    told = {name: getattr(predicate, name) for name in _facts(candidate)}
    scope = HeadScope(predicate.tenants, predicate.task, predicate.spec_digest, predicate.pooled)
    if told != _facts(candidate) or scope.id != candidate.provenance.scope:
        raise HeadRefused(f"head {digest!r} and its statement name different facts", fix=_REFIT)
    return Head(candidate, predicate, key_id)


def _facts(candidate: Candidate) -> dict[str, Any]:
    """Return what the statement repeats of the candidate's own bytes."""
    provenance = candidate.provenance
    return {
        "task": provenance.task,
        "spec_digest": provenance.spec_digest,
        "kind": candidate.kind,
        "encoder": provenance.encoder,
        "model": provenance.model,
        "method": provenance.method,
        "examples": provenance.rows,
        "examples_digest": provenance.rows_digest,
    }
