"""The batch lane: files, batches, lines, submissions, the lease, and the lane of an input."""

import sqlalchemy as sa
from alembic import op

revision = "0013_batch"
down_revision = "0012_cluster"


def upgrade() -> None:
    """Create the tables and add the column. Earlier inputs hold NULL: they were interactive."""
    op.add_column("exits", sa.Column("lane", sa.Text))
    _create_files()
    _create_batches()
    _create_lines()
    op.create_table(
        "batch_submissions",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("provider", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("provider_id", sa.Text),
        sa.Column("lines", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
    )
    op.create_index("batch_submissions_by_state", "batch_submissions", ["state", "created_at"])
    op.create_table(
        "batch_lease",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
    )


def _create_files() -> None:
    op.create_table(
        "batch_files",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_index("batch_files_by_tenant", "batch_files", ["tenant", "created_at", "id"])
    op.create_index("batch_files_by_address", "batch_files", ["address"])
    op.create_index("batch_files_by_expiry", "batch_files", ["expires_at"])


def _create_batches() -> None:
    moments = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling",
               "cancelled")  # fmt: skip
    op.create_table(
        "batches",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text),
        sa.Column("evidence_external", sa.Boolean),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("input_file", sa.Text, nullable=False),
        sa.Column("output_file", sa.Text),
        sa.Column("error_file", sa.Text),
        sa.Column("completion_window", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("stopped", sa.Text),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("problems", sa.Text, nullable=False),
        sa.Column("plan", sa.Text, nullable=False),
        sa.Column("output_ttl_us", sa.BigInteger),
        sa.Column("max_cost_usd", sa.BigInteger),
        sa.Column("cost_usd", sa.BigInteger),
        sa.Column("total", sa.Integer),
        sa.Column("completed", sa.Integer),
        sa.Column("failed", sa.Integer),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        *(sa.Column(f"{name}_at", sa.BigInteger) for name in moments),
    )
    op.create_index("batches_by_tenant", "batches", ["tenant", "created_at", "id"])
    op.create_index("batches_by_status", "batches", ["status", "created_at"])


def _create_lines() -> None:
    op.create_table(
        "batch_lines",
        sa.Column(
            "batch", sa.Text, sa.ForeignKey("batches.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("custom_id", sa.Text, nullable=False),
        sa.Column("start", sa.BigInteger, nullable=False),
        sa.Column("length", sa.Integer, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("holder", sa.Text),
        sa.Column("not_before", sa.BigInteger),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("target", sa.Text),
        sa.Column("worst_usd", sa.BigInteger),
        sa.Column("submission", sa.Text),
        sa.Column("error", sa.Text),
        sa.Column("result", sa.LargeBinary),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("cost_usd", sa.BigInteger),
    )
    op.create_index("batch_lines_by_state", "batch_lines", ["batch", "state", "number"])
    op.create_index("batch_lines_by_submission", "batch_lines", ["submission"])
