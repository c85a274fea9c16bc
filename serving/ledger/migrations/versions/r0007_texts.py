"""Texts of audited inputs that people may label."""

import sqlalchemy as sa
from alembic import op

revision = "0007_texts"
down_revision = "0006_heads"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "evidence_texts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("claim", sa.Text, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("rank", sa.Double, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("end_user", sa.Text),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("kept_at", sa.BigInteger, nullable=False),
    )
    op.create_index("evidence_texts_by_rank", "evidence_texts", ["claim", "rank"])
    op.create_index("evidence_texts_by_request", "evidence_texts", ["request_id"])
    op.create_index("evidence_texts_by_time", "evidence_texts", ["kept_at"])
