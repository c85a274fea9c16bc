"""What was deleted of evidence within the last day."""

import sqlalchemy as sa
from alembic import op

revision = "0018_erasures"
down_revision = "0017_equal_lines"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "evidence_erasures",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text),
        sa.Column("end_user_digest", sa.Text),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_index("evidence_erasures_by_time", "evidence_erasures", ["at"])
