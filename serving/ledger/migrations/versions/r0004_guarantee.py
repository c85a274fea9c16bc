"""Whether a local answer lay within its attested error bound."""

import sqlalchemy as sa
from alembic import op

revision = "0004_guarantee"
down_revision = "0003_tenants"


def upgrade() -> None:
    """Add the column. Rows of earlier versions hold NULL: no guarantee is known of them."""
    op.add_column("exits", sa.Column("guaranteed", sa.Boolean))
