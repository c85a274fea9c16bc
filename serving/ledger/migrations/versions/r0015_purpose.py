"""What an input's batch is for."""

import sqlalchemy as sa
from alembic import op

revision = "0015_purpose"
down_revision = "0014_judge_cost"


def upgrade() -> None:
    """Add the column. Earlier inputs hold NULL: their batches stated none."""
    op.add_column("exits", sa.Column("purpose", sa.Text))
