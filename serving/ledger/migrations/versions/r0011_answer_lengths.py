"""Lengths of free-form answers, from which output bounds are learned."""

import sqlalchemy as sa
from alembic import op

revision = "0011_answer_lengths"
down_revision = "0010_similar"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "answer_lengths",
        sa.Column("scope", sa.Text, primary_key=True),
        sa.Column("arm", sa.Text, primary_key=True),
        sa.Column("bucket", sa.Integer, primary_key=True),
        sa.Column("answers", sa.BigInteger, nullable=False),
        sa.Column("used_at", sa.BigInteger, nullable=False),
    )
    op.create_index("answer_lengths_by_use", "answer_lengths", ["used_at"])
