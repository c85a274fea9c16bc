"""Writes a claim as an in-toto statement, signed with evidence's own key."""

import json
from pathlib import Path

from serving.artifacts.envelope import signed_envelope
from serving.artifacts.signing_key import load_signer, read_key
from serving.contracts.attestation import STATEMENT_TYPE
from serving.contracts.errors import InvalidSettings
from serving.evidence.administration import document, require
from serving.evidence.store import EvidenceStore

PREDICATE_TYPE = "urn:narrowgate:evidence:claim:v1"


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
