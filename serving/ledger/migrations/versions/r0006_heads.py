"""What heads learn from, the heads, and which scope is fitted next."""

import sqlalchemy as sa
from alembic import op

revision = "0006_heads"
down_revision = "0005_evidence"


def upgrade() -> None:
    """Create the tables."""
    _create_scopes()
    _create_examples()
    _create_heads()


def _create_scopes() -> None:
    op.create_table(
        "head_scopes",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenants", sa.Text, nullable=False),
        sa.Column("pooled", sa.Boolean, nullable=False),
        sa.Column("task", sa.Text, nullable=False),
        sa.Column("spec_digest", sa.Text, nullable=False),
        sa.Column("labels", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("fitted_examples", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("requested_at", sa.BigInteger),
        sa.Column("request", sa.Text),
        sa.Column("erased_at", sa.BigInteger),
        sa.Column("holder", sa.Text),
        sa.Column("held_until", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )


def _create_examples() -> None:
    op.create_table(
        "head_examples",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("scope", sa.Text, sa.ForeignKey("head_scopes.id"), nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("end_user_digest", sa.Text),
        sa.Column("text_digest", sa.Text, nullable=False),
        sa.Column("encoder", sa.Text, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("scope", "text_digest", name="head_examples_once"),
    )
    op.create_index("head_examples_by_scope", "head_examples", ["scope", "created_at"])
    op.create_index("head_examples_by_tenant", "head_examples", ["tenant"])
    op.create_index("head_examples_by_request", "head_examples", ["request_id"])
    op.create_index("head_examples_by_end_user", "head_examples", ["end_user_digest"])
    op.create_index("head_examples_by_time", "head_examples", ["created_at"])


def _create_heads() -> None:
    op.create_table(
        "heads",
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("scope", sa.Text, sa.ForeignKey("head_scopes.id"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("content", sa.LargeBinary, nullable=False),
        sa.Column("envelope", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("erased_at", sa.BigInteger),
    )
    op.create_index("heads_by_scope", "heads", ["scope", "version"])
