"""Signs DSSE envelopes, and reads those whose exact bytes a trusted key signed."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from serving.contracts.attestation import PAYLOAD_TYPE, canonical_envelope


class DamagedEnvelope(ValueError):
    """The bytes are not a DSSE envelope in canonical form."""


class UnsignedEnvelope(ValueError):
    """No trusted key signed the envelope. The message names the keys that did."""


def signed_envelope(payload: bytes, signer: Any) -> bytes:
    """Sign a payload and return the envelope's bytes. signer: of signing_key.load_signer."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    document: Mapping[str, Any] = envelope.to_dict()
    return canonical_envelope(document)


def verified_payload(content: bytes, keys: Sequence[Any]) -> tuple[bytes, str]:
    """Return the payload of an envelope and the id of the trusted key that signed it.

    keys: of trust.trusted_keys; one valid signature of any of them suffices.
    Raises DamagedEnvelope and UnsignedEnvelope. Their messages continue a sentence that begins with
    the envelope's name.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError

    try:
        document = json.loads(content)
        # Checked before the library reads it: it accepts other white space, and characters that
        # base64 decoders skip, which would then not be covered by the signature.
        _refuse_other_bytes(document, content)
        parsed = Envelope.from_dict(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedEnvelope("is not a DSSE envelope") from error
    if parsed.payload_type != PAYLOAD_TYPE:
        raise DamagedEnvelope(f"has the payload type {parsed.payload_type!r}, not {PAYLOAD_TYPE!r}")
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
        raise ValueError("not in canonical form")
    for text in (document["payload"], *(item["sig"] for item in document["signatures"])):
        if base64.b64encode(base64.b64decode(text, validate=True)).decode() != text:
            raise ValueError("not canonical base64")
