"""What was deleted of the cache by request within the last days."""

import sqlalchemy as sa
from alembic import op

revision = "0020_cache_erasures"
down_revision = "0019_avoided"


def upgrade() -> None:
    """Create the table."""
    op.create_table(
        "cache_erasures",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("namespace", sa.Text),
        sa.Column("tenant", sa.Text),
        sa.Column("request_id", sa.Text),
        sa.Column("end_user_digest", sa.Text),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
    op.create_index("cache_erasures_by_time", "cache_erasures", ["at"])
