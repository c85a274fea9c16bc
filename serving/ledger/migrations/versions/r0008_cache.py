"""Cached answers, and what a lookup and a hit say in the ledger."""

import sqlalchemy as sa
from alembic import op

revision = "0008_cache"
down_revision = "0007_texts"


def upgrade() -> None:
    """Create the table and add the columns. Earlier exits hold NULL: nothing was looked up."""
    op.add_column("exits", sa.Column("cache_entry", sa.Text))
    op.add_column("exits", sa.Column("lookup_us", sa.BigInteger))
    op.add_column("exits", sa.Column("avoided_usd", sa.BigInteger))
    op.create_table(
        "cache_entries",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("end_user", sa.Text),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("task", sa.Text),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("claim", sa.Text),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("hits", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("used_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("key", name="cache_entries_once"),
    )
    op.create_index("cache_entries_by_use", "cache_entries", ["namespace", "used_at", "bytes"])
    op.create_index("cache_entries_by_tenant", "cache_entries", ["tenant", "request_id"])
    op.create_index("cache_entries_by_expiry", "cache_entries", ["expires_at"])
    op.create_index("cache_entries_by_key_id", "cache_entries", ["key_id"])
