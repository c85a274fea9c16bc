"""The cluster of an open-ended chat."""

import sqlalchemy as sa
from alembic import op

revision = "0012_cluster"
down_revision = "0011_answer_lengths"


def upgrade() -> None:
    """Add the column. Earlier inputs hold NULL: they were not clustered."""
    op.add_column("exits", sa.Column("cluster", sa.Text))
