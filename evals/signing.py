"""The gate's statement about one model, and its signature."""

from typing import Any

from serving.artifacts.envelope import signed_envelope
from serving.contracts.attestation import (
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    GatePredicate,
    Statement,
    Subject,
)


def make_statement(name: str, root: str, predicate: GatePredicate) -> Statement:
    """Return the in-toto statement about one model, validated with in-toto's library.

    name: of the model, informative. root: its digest, hex.
    """
    statement = Statement(
        type=STATEMENT_TYPE,
        subject=(Subject.of(name, root),),
        predicate_type=PREDICATE_TYPE,
        predicate=predicate,
    )
    _check_as_in_toto(statement.to_payload())
    return statement


def sign(statement: Statement, signer: Any) -> bytes:
    """Sign a statement and return the DSSE envelope's bytes."""
    return signed_envelope(statement.to_payload(), signer)


def _check_as_in_toto(payload: bytes) -> None:
    from google.protobuf import json_format
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement as InTotoStatement

    parsed = json_format.Parse(payload, statement_pb2.Statement())
    InTotoStatement.copy_from_pb(parsed).validate()
