"""DSSE envelopes: signed, and read again only if a trusted key signed exactly these bytes."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from serving.contracts.attestation import PAYLOAD_TYPE, canonical_envelope


class DamagedEnvelope(ValueError):
    """The bytes are no envelope in the form in which they are written."""


class UnsignedEnvelope(ValueError):
    """No trusted key signed the envelope. The message names the keys that did."""


def signed_envelope(payload: bytes, signer: Any) -> bytes:
    """Return an envelope's bytes, as they are stored. signer: of signing_key.load_signer."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    document: Mapping[str, Any] = envelope.to_dict()
    return canonical_envelope(document)


def verified_payload(content: bytes, keys: Sequence[Any]) -> tuple[bytes, str]:
    """Return the payload of an envelope and the id of the trusted key that signed it.

    keys: of trust.trusted_keys; one valid signature of any of them suffices.
    Raises DamagedEnvelope and UnsignedEnvelope, whose messages follow the envelope's name.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError

    try:
        document = json.loads(content)
        # Before the library reads it: white space, or what base64 decoders skip, could otherwise
        # change without notice.
        _refuse_other_bytes(document, content)
        parsed = Envelope.from_dict(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedEnvelope("is no DSSE envelope") from error
    if parsed.payload_type != PAYLOAD_TYPE:
        raise DamagedEnvelope(f"holds {parsed.payload_type!r}, not {PAYLOAD_TYPE!r}")
    try:
        accepted = parsed.verify(list(keys), 1)
    except VerificationError as error:
        signed_by = ", ".join(sorted(parsed.signatures)) or "nobody"
        raise UnsignedEnvelope(
            f"has no valid signature of a trusted key (signed by {signed_by})"
        ) from error
    return parsed.payload, next(iter(accepted))


def _refuse_other_bytes(document: Any, content: bytes) -> None:
    if canonical_envelope(document) != content:
        raise ValueError("not as it is written")
    for text in (document["payload"], *(item["sig"] for item in document["signatures"])):
        if base64.b64encode(base64.b64decode(text, validate=True)).decode() != text:
            raise ValueError("not canonical base64")
