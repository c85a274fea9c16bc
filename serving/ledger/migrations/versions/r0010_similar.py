"""Questions of cached answers, for lookups by meaning, and what the ledger says of such hits."""

import sqlalchemy as sa
from alembic import op

revision = "0010_similar"
down_revision = "0009_cached_prefix"


def upgrade() -> None:
    """Create the tables and add the columns. Earlier entries have no question."""
    op.add_column("exits", sa.Column("cache_kind", sa.Text))
    op.add_column("exits", sa.Column("refined_route", sa.Text))
    op.add_column("cache_entries", sa.Column("aside", sa.Text))
    op.create_table(
        "cache_questions",
        sa.Column(
            "entry",
            sa.Text,
            sa.ForeignKey("cache_entries.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("namespace", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
    )
    op.create_index(
        "cache_questions_by_sequence", "cache_questions", ["namespace", "fingerprint", "sequence"]
    )
    op.create_table(
        "cache_aliases",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column(
            "entry",
            sa.Text,
            sa.ForeignKey("cache_entries.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("similarity", sa.Double, nullable=False),
        sa.Column("made_by", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("cache_aliases_by_entry", "cache_aliases", ["entry"])
    sequence = op.create_table(
        "cache_sequence",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(sequence, [{"id": 1, "value": 0}])
