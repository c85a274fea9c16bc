"""Exits, the calls of models behind them, and the prices that the calls were charged at."""

import sqlalchemy as sa
from alembic import op

revision = "0001_books"
down_revision = None


def upgrade() -> None:
    """Create the tables."""
    _create_prices()
    _create_exits()
    _create_calls()


def _usage_columns() -> list[sa.Column[int]]:
    return [
        sa.Column("uncached_input_tokens", sa.BigInteger),
        sa.Column("cache_read_tokens", sa.BigInteger),
        sa.Column("cache_write_5m_tokens", sa.BigInteger),
        sa.Column("cache_write_1h_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("reasoning_tokens", sa.BigInteger),
    ]


def _create_prices() -> None:
    op.create_table(
        "prices",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("service_tier", sa.Text),
        sa.Column("over_input_tokens", sa.BigInteger, nullable=False),
        sa.Column("uncached_input_usd", sa.BigInteger),
        sa.Column("cache_read_usd", sa.BigInteger),
        sa.Column("cache_write_5m_usd", sa.BigInteger),
        sa.Column("cache_write_1h_usd", sa.BigInteger),
        sa.Column("output_usd", sa.BigInteger),
        sa.Column("replica_hour_usd", sa.BigInteger),
    )


def _create_exits() -> None:
    op.create_table(
        "exits",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("input_index", sa.Integer, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("task", sa.Text),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("route", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("outcome", sa.Text),
        sa.Column("valid", sa.Boolean),
        sa.Column("escalated", sa.Boolean, nullable=False),
        sa.Column("cached", sa.Boolean, nullable=False),
        *_usage_columns(),
        sa.Column("service_tier", sa.Text),
        sa.Column("cost_usd", sa.BigInteger),
        sa.Column("held_usd", sa.BigInteger),
        sa.Column("reference_usd", sa.BigInteger),
        sa.Column("reference_model", sa.Text),
        sa.Column("opened_at", sa.BigInteger, nullable=False),
        sa.Column("elapsed_us", sa.BigInteger),
        sa.Column("instance", sa.Text, nullable=False),
    )
    op.create_index("exits_by_time", "exits", ["opened_at"])
    op.create_index("exits_by_tenant", "exits", ["tenant", "opened_at"])


def _create_calls() -> None:
    op.create_table(
        "calls",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("exit_id", sa.Text, nullable=False),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text),
        *_usage_columns(),
        sa.Column("usage_source", sa.Text),
        sa.Column("service_tier", sa.Text),
        sa.Column("replica_us", sa.BigInteger),
        sa.Column("price_id", sa.Text, sa.ForeignKey("prices.id")),
        sa.Column("cost_usd", sa.BigInteger),
        sa.Column("held_usd", sa.BigInteger, nullable=False),
        sa.Column("day", sa.Text, nullable=False),
        sa.Column("month", sa.Text, nullable=False),
        sa.Column("opened_at", sa.BigInteger, nullable=False),
        sa.Column("elapsed_us", sa.BigInteger),
        sa.Column("instance", sa.Text, nullable=False),
    )
    op.create_index("calls_by_exit", "calls", ["exit_id"])
    op.create_index("calls_by_time", "calls", ["opened_at"])
    op.create_index("calls_by_state", "calls", ["state", "instance"])
