"""Tenants with their limits, and API keys."""

import sqlalchemy as sa
from alembic import op

revision = "0003_tenants"
down_revision = "0002_spending"


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "tenants",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("day_usd", sa.BigInteger),
        sa.Column("month_usd", sa.BigInteger),
        sa.Column("requests_per_minute", sa.Integer),
        sa.Column("max_concurrent_requests", sa.Integer),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenant", sa.Text, sa.ForeignKey("tenants.name")),
        sa.Column("admin", sa.Boolean, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("secret_sha256", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger),
    )
