"""Sums that tenants spent and hold, and gateway processes."""

import sqlalchemy as sa
from alembic import op

revision = "0002_spending"
down_revision = "0001_books"


def upgrade() -> None:
    """Create the tables, and the index by which open exits are found."""
    op.create_table(
        "spending",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("period", sa.Text, primary_key=True),
        sa.Column("start", sa.Text, primary_key=True),
        sa.Column("spent_usd", sa.BigInteger, nullable=False),
        sa.Column("held_usd", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "instances",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("process_started_at", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("replica_hour_usd", sa.BigInteger, nullable=False),
    )
    is_open = sa.text("state = 'open'")
    op.create_index(
        "exits_open", "exits", ["instance"], sqlite_where=is_open, postgresql_where=is_open
    )
    _fill_spending()


def _fill_spending() -> None:
    """Sum the spent and held amounts of the calls of earlier versions."""
    names = ["tenant", "period", "start", "spent_usd", "held_usd"]
    spending = sa.table("spending", *map(sa.column, names))
    calls = sa.table(
        "calls", *map(sa.column, ["tenant", "kind", "day", "month", "cost_usd", "held_usd"])
    )
    sums = [sa.func.coalesce(sa.func.sum(calls.c[name]), 0) for name in ("cost_usd", "held_usd")]
    for period in ("day", "month"):
        found = (
            sa.select(calls.c.tenant, sa.literal(period), calls.c[period], *sums)
            .where(calls.c.kind == "frontier")
            .group_by(calls.c.tenant, calls.c[period])
        )
        op.execute(sa.insert(spending).from_select(names, found))
