"""The tables of examples and heads, in the ledger's database."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from serving.ledger.schema import UtcTime, metadata

# One scope. labels: JSON, in the order of the task. fitted_examples: number of examples at the last
# fit. version: of the last fit that gave a new head. requested_at, request: since when a fit is
# wanted, and why. erased_at: an example that a head was fitted on was erased, and no fit without it
# is done yet. holder, held_until: the replica that fits now.
head_scopes = Table(
    "head_scopes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenants", Text, nullable=False),
    Column("pooled", Boolean, nullable=False),
    Column("task", Text, nullable=False),
    Column("spec_digest", Text, nullable=False),
    Column("labels", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("fitted_examples", BigInteger, nullable=False),
    Column("version", Integer, nullable=False),
    Column("requested_at", UtcTime),
    Column("request", Text),
    Column("erased_at", UtcTime),
    Column("holder", Text),
    Column("held_until", UtcTime),
    Column("created_at", UtcTime, nullable=False),
)

# One labelled text, without the text. content: vector, label, length and log-probabilities,
# encrypted. text_digest, end_user_digest: keyed.
head_examples = Table(
    "head_examples",
    metadata,
    Column("id", Text, primary_key=True),
    Column("scope", Text, ForeignKey("head_scopes.id"), nullable=False),
    Column("tenant", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("end_user_digest", Text),
    Column("text_digest", Text, nullable=False),
    Column("encoder", Text, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    UniqueConstraint("scope", "text_digest", name="head_examples_once"),
    Index("head_examples_by_scope", "scope", "created_at"),
    Index("head_examples_by_tenant", "tenant"),
    Index("head_examples_by_request", "request_id"),
    Index("head_examples_by_end_user", "end_user_digest"),
    Index("head_examples_by_time", "created_at"),
)

# One fitted candidate. content: its arrays. envelope: the signed statement about them. erased_at:
# when an example that it was fitted on was erased.
heads = Table(
    "heads",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("scope", Text, ForeignKey("head_scopes.id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("erased_at", UtcTime),
    Index("heads_by_scope", "scope", "version"),
)
