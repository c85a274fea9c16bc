"""What a shortcut avoids on a compared input: whether comparing pays is decided by it."""

import sqlalchemy as sa
from alembic import op

revision = "0019_avoided"
down_revision = "0018_erasures"


def upgrade() -> None:
    """Add the column."""
    op.add_column("evidence_audits", sa.Column("avoided_usd", sa.BigInteger))
