"""Writes a claim as an in-toto statement signed with evidence's own key, and verifies one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from serving.artifacts.envelope import (
    DamagedEnvelope,
    UnsignedEnvelope,
    signed_envelope,
    verified_payload,
)
from serving.artifacts.signing_key import load_signer, read_key
from serving.artifacts.trust import trusted_keys
from serving.contracts.attestation import STATEMENT_TYPE
from serving.contracts.errors import AttestationRefused, InvalidSettings
from serving.contracts.evidence import Claim, claim_id
from serving.contracts.plain_file import read_plain
from serving.evidence.administration import document, require
from serving.evidence.store import EvidenceStore

PREDICATE_TYPE = "urn:narrowgate:evidence:claim:v1"
_CLAIM: TypeAdapter[Claim] = TypeAdapter(Claim)
_MAX_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class ExportedClaim:
    """A claim whose statement a trusted key signed. Reading it does not put it in force."""

    claim: Claim
    key_id: str


def export_claim(store: EvidenceStore, name: str, signing_key: Path | None, actor: str) -> bytes:
    """Return the DSSE envelope of a claim; blocking. Noted as an act.

    Raises NotFound, InvalidKey, and InvalidSettings where no key is named.
    """
    if signing_key is None:
        raise InvalidSettings(
            "evidence.signing_key is not set",
            field="evidence.signing_key",
            fix="name a key of its own that narrowgate keygen made; no key that attests models",
        )
    claim = require(store, name)
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": f"claim:{claim.scope.subject}", "digest": {"claim": claim.id}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": document(claim),
    }
    payload = json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()
    envelope = signed_envelope(payload, load_signer(read_key(signing_key), "the evidence key"))
    store.act(actor, "export", name)
    return envelope


def verify_claim(file: Path, trusted: Sequence[Path]) -> ExportedClaim:
    """Return the claim of an exported statement. Blocking.

    Raises AttestationRefused where no trusted key signed it, it states something else than a claim,
    or its id does not follow from what it states; InvalidKey for a key that cannot be read.
    """
    keys = trusted_keys(trusted, "trust")
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise AttestationRefused(f"{file} has more than {_MAX_BYTES} bytes")
        payload, key_id = verified_payload(read_plain(file, _MAX_BYTES), keys)
    except (DamagedEnvelope, UnsignedEnvelope) as error:
        raise AttestationRefused(f"{file} {error}", fix="trust the key that signed it") from error
    except OSError as error:
        raise AttestationRefused(f"{str(file)!r} cannot be read: {error.strerror}") from error
    statement = json.loads(payload)
    kind = statement.get("predicateType") if isinstance(statement, dict) else None
    if kind != PREDICATE_TYPE:
        raise AttestationRefused(
            f"{file} states {kind!r} and not {PREDICATE_TYPE!r}",
            fix="verify a model by its folder: narrowgate verify DIR",
        )
    try:
        claim = _CLAIM.validate_python(statement["predicate"])
    except (KeyError, ValidationError) as error:
        raise AttestationRefused(
            f"{file} is signed, and is not a claim that this version can read"
        ) from error
    expected = claim_id(claim.scope, claim.loss, claim.target_error, claim.reference)
    subject = statement.get("subject", [{}])[0].get("digest", {}).get("claim")
    if not expected == claim.id == subject:
        raise AttestationRefused(
            f"{file}: the id {claim.id!r} does not follow from the claim's scope ({expected!r})"
        )
    return ExportedClaim(claim, key_id)
