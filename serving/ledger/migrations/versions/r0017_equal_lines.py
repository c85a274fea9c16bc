"""What a line costs in a provider's batch, and which lines of a batch are equal."""

import sqlalchemy as sa
from alembic import op

revision = "0017_equal_lines"
down_revision = "0016_pending_audits"


def upgrade() -> None:
    """Add the columns and the index."""
    op.add_column("batch_lines", sa.Column("batch_usd", sa.BigInteger))
    op.add_column("batch_lines", sa.Column("same_as", sa.Integer))
    is_equal = sa.text("same_as IS NOT NULL")
    op.create_index(
        "batch_lines_by_same_as", "batch_lines", ["batch", "same_as"],
        sqlite_where=is_equal, postgresql_where=is_equal,
    )  # fmt: skip
