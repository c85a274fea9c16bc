"""The tables of the batch lane, in the ledger's database."""

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
    text,
)

from serving.ledger.schema import Usd, UtcTime, metadata

# A tenant's file. address: name of its content in the state folder; equal contents of a tenant
# share one. bytes: of the content as it was sent. key_id: names the encryption key; empty where it
# is not encrypted.
batch_files = Table(
    "batch_files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Index("batch_files_by_tenant", "tenant", "created_at", "id"),
    Index("batch_files_by_address", "address"),
    Index("batch_files_by_expiry", "expires_at"),
)

# A batch. key_id, evidence_external: of the caller, for the ledger and for audits. metadata,
# problems, plan: JSON. stopped: why no further line is started: `cancelled`, `expired`,
# `budget_exceeded` or `max_cost_exceeded`; NULL while lines may start. total, completed, failed:
# set when it ends; before that its lines are counted.
batches = Table(
    "batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("key_id", Text),
    Column("evidence_external", Boolean),
    Column("endpoint", Text, nullable=False),
    Column("input_file", Text, nullable=False),
    Column("output_file", Text),
    Column("error_file", Text),
    Column("completion_window", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("stopped", Text),
    Column("metadata", Text, nullable=False),
    Column("problems", Text, nullable=False),
    Column("plan", Text, nullable=False),
    Column("output_ttl_us", BigInteger),
    Column("max_cost_usd", Usd),
    Column("cost_usd", Usd),
    Column("total", Integer),
    Column("completed", Integer),
    Column("failed", Integer),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("in_progress_at", UtcTime),
    Column("finalizing_at", UtcTime),
    Column("completed_at", UtcTime),
    Column("failed_at", UtcTime),
    Column("expired_at", UtcTime),
    Column("cancelling_at", UtcTime),
    Column("cancelled_at", UtcTime),
    Index("batches_by_tenant", "tenant", "created_at", "id"),
    Index("batches_by_status", "status", "created_at"),
)

# One line of a batch. number: of the line in the file, from 1. start, length: its bytes in the
# file. holder: the process that runs it. attempt: how often it was started. target: a provider's
# model where one is named, or whose batch it waits for. worst_usd: its worst case where it is asked
# synchronously; NULL where none is known. batch_usd: its worst case in a provider's batch; NULL
# where it goes into none, and where worst_usd is already that. same_as: the number of an earlier
# line that is the same request. result: what the result files say of it, as JSON, encrypted where
# key_id is not empty; the provider's request of a line that waits for a provider's batch, or is in
# one; NULL once they are written. cost_usd: of all its calls; worst case of those whose cost is
# unknown.
batch_lines = Table(
    "batch_lines",
    metadata,
    Column("batch", Text, ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("custom_id", Text, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("length", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("holder", Text),
    Column("not_before", UtcTime),
    Column("started_at", UtcTime),
    Column("target", Text),
    Column("worst_usd", Usd),
    Column("batch_usd", Usd),
    Column("same_as", Integer),
    Column("submission", Text),
    Column("error", Text),
    Column("result", LargeBinary),
    Column("key_id", Text, nullable=False),
    Column("cost_usd", Usd),
    Index("batch_lines_by_state", "batch", "state", "number"),
    Index("batch_lines_by_submission", "submission"),
    Index(
        "batch_lines_by_same_as",
        "batch",
        "same_as",
        sqlite_where=text("same_as IS NOT NULL"),
        postgresql_where=text("same_as IS NOT NULL"),
    ),
)

# One batch at a provider. id: our key of the submission, written before the call. state: holding
# (worst cases are being held), intent (the call may have been made), submitted, ended or abandoned.
# provider_id: the provider's id.
batch_submissions = Table(
    "batch_submissions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("provider", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("provider_id", Text),
    Column("lines", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    Index("batch_submissions_by_state", "state", "created_at"),
)

# One row: which process runs batches, and until when.
batch_lease = Table(
    "batch_lease",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("holder", Text, nullable=False),
    Column("until", UtcTime, nullable=False),
)
