"""The prefix of a call's prompt that the provider could cache."""

import sqlalchemy as sa
from alembic import op

revision = "0009_cached_prefix"
down_revision = "0008_cache"


def upgrade() -> None:
    """Add the column. Earlier calls hold NULL: their prefixes were not recorded."""
    op.add_column("calls", sa.Column("prefix", sa.Text))
