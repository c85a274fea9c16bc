"""What the judge cost in shadow, apart from what the client's own answer cost."""

import sqlalchemy as sa
from alembic import op

revision = "0014_judge_cost"
down_revision = "0013_batch"


def upgrade() -> None:
    """Add the column. Earlier audits hold NULL: it was not counted."""
    op.add_column("evidence_audits", sa.Column("judge_usd", sa.BigInteger))
