"""Audits that wait for a provider's batch."""

import sqlalchemy as sa
from alembic import op

revision = "0016_pending_audits"
down_revision = "0015_purpose"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "evidence_pending",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("claim", sa.Text, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("reference", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("end_user", sa.Text),
        sa.Column("worst_usd", sa.BigInteger, nullable=False),
        sa.Column("batch", sa.Text),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("drawn_at", sa.BigInteger, nullable=False),
    )
    op.create_index("evidence_pending_by_batch", "evidence_pending", ["batch", "drawn_at"])
    op.create_index("evidence_pending_by_request", "evidence_pending", ["request_id"])
