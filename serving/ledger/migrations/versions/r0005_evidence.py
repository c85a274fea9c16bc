"""Claims, audits, acts of people, and what tenants and keys allow."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0005_evidence"
down_revision = "0004_guarantee"


def upgrade() -> None:
    """Create the tables and add the columns. Tenants and keys hold NULL: the settings decide."""
    op.add_column("tenants", sa.Column("evidence_external", sa.Boolean))
    op.add_column("tenants", sa.Column("evidence_providers", sa.Text))
    op.add_column("api_keys", sa.Column("evidence_external", sa.Boolean))
    op.add_column("exits", sa.Column("evidence", sa.Text))
    op.add_column("exits", sa.Column("claim", sa.Text))
    _create_state()
    _create_rows()
    _create_acts()
    op.execute("INSERT INTO evidence_sequence (id, value) VALUES (1, 0)")


def _create_state() -> None:
    op.create_table(
        "evidence_sequence",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("value", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "evidence_lease",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "evidence_claims",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("tenants", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("versions", sa.Text, nullable=False),
        sa.Column("shortcuts", sa.Text, nullable=False),
        sa.Column("pooled", sa.Boolean, nullable=False),
        sa.Column("shortcut", sa.Text, nullable=False),
        sa.Column("loss", sa.Text, nullable=False),
        sa.Column("target_error", sa.Double, nullable=False),
        sa.Column("reference", sa.Text, nullable=False),
        sa.Column("has_suite", sa.Boolean, nullable=False),
        sa.Column("opened_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "evidence_states",
        sa.Column("claim", sa.Text, primary_key=True),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
    )


def _columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("claim", sa.Text, nullable=False),
        sa.Column("input", sa.Text, nullable=False),
        sa.Column("group_id", sa.Text, nullable=False),
        sa.Column("text_digest", sa.Text, nullable=False),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("coin", sa.Double),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("end_user", sa.Text),
        sa.Column("accepted", sa.BigInteger, nullable=False),
        sa.Column("hypothesis", sa.BigInteger, nullable=False),
        sa.Column("drawn_at", sa.BigInteger, nullable=False),
    ]


def _create_rows() -> None:
    op.create_table("evidence_draws", sa.Column("id", sa.Text, primary_key=True), *_columns())
    op.create_index("evidence_draws_by_time", "evidence_draws", ["drawn_at"])
    op.create_table(
        "evidence_audits",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        *_columns(),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("loss", sa.Double),
        sa.Column("reference", sa.Text, nullable=False),
        sa.Column("candidates", sa.Text, nullable=False),
        sa.Column("served", sa.Text),
        sa.Column("label", sa.Text),
        sa.Column("cost_usd", sa.BigInteger),
        sa.Column("judged_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("claim", "input", name="evidence_audits_once"),
    )
    op.create_index("evidence_audits_by_request", "evidence_audits", ["request_id"])
    op.create_table(
        "evidence_events",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("claim", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("after", sa.BigInteger, nullable=False),
        sa.Column("action", sa.Text),
    )
    op.create_index("evidence_events_by_claim", "evidence_events", ["claim"])


def _create_acts() -> None:
    op.create_table(
        "evidence_acts",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("act", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
    )
