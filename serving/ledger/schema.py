"""The ledger's tables, and the column types that store money and time exactly."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.engine import Dialect

PICODOLLARS = Decimal(10) ** 12
"""Picodollars in a dollar. Six decimals per million tokens are whole picodollars per token."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Usd(TypeDecorator[Decimal]):
    """US dollars as whole picodollars: exact, and summed exactly by both databases.

    Raises ValueError for an amount that is not a whole number of picodollars. The largest amount is
    $9.2 million.
    """

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:
        """Return the amount in picodollars."""
        if value is None:
            return None
        scaled = value * PICODOLLARS
        whole = int(scaled)
        if whole != scaled:
            raise ValueError(f"{value} is not a whole number of picodollars")
        return whole

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        """Return the amount in dollars. PostgreSQL's sums come as NUMERIC."""
        return None if value is None else Decimal(int(value)) / PICODOLLARS


class UtcTime(TypeDecorator[datetime]):
    """A moment, as microseconds since 1970 in UTC."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        """Return microseconds. Raises TypeError for a time without zone."""
        return None if value is None else (value - _EPOCH) // _MICROSECOND

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Return an aware time in UTC."""
        return None if value is None else _EPOCH + int(value) * _MICROSECOND


metadata = MetaData()

_OPEN = text("state = 'open'")


def _usage_columns() -> list[Column[Any]]:
    return [
        Column("uncached_input_tokens", BigInteger),
        Column("cache_read_tokens", BigInteger),
        Column("cache_write_5m_tokens", BigInteger),
        Column("cache_write_1h_tokens", BigInteger),
        Column("output_tokens", BigInteger),
        Column("reasoning_tokens", BigInteger),
    ]


# One input. state: open, closed, or unknown (its gateway was lost). outcome: `answered` or an error
# code. guaranteed: a local answer lies within its attested error bound. evidence, claim: what the
# bound rests on: `traffic`, `suite` or `none`; the ids of its claims, comma-separated. usage and
# service_tier: of the answer only. cost_usd: of all its calls whose cost is known; held_usd: the
# worst case of the others. reference_usd: cost of the same tokens at reference_model, and of those
# that were removed from a context under a claim. opened_at: arrival of the request. elapsed_us:
# from there to the exit, the queue included. lookup_us: time of the cache's lookup; NULL where
# nothing was looked up. cache_entry: id of the entry that was served. avoided_usd: what that
# entry's answer had cost, or what the tokens that were removed from a context under a claim would
# have cost. cache_kind: `exact`, `semantic` or `alias`. refined_route: route of the answer just
# before in the same conversation, where this request repeats or corrects its question. cluster: of
# an open-ended chat, and of what was asked to compare answers to it: `CLUSTERING/NUMBER/TIER`, the
# tier of the reference. lane: `interactive` or `batch`; NULL of inputs before there were lanes.
# purpose: that the metadata of the input's batch states.
exits = Table(
    "exits",
    metadata,
    Column("id", Text, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("input_index", Integer, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("key_id", Text),
    Column("endpoint", Text, nullable=False),
    Column("task", Text),
    Column("state", Text, nullable=False),
    Column("route", Text),
    Column("reason", Text),
    Column("model", Text),
    Column("outcome", Text),
    Column("valid", Boolean),
    Column("guaranteed", Boolean),
    Column("evidence", Text),
    Column("claim", Text),
    Column("escalated", Boolean, nullable=False),
    Column("cached", Boolean, nullable=False),
    *_usage_columns(),
    Column("service_tier", Text),
    Column("cost_usd", Usd),
    Column("held_usd", Usd),
    Column("reference_usd", Usd),
    Column("reference_model", Text),
    Column("cache_entry", Text),
    Column("lookup_us", BigInteger),
    Column("avoided_usd", Usd),
    Column("cache_kind", Text),
    Column("refined_route", Text),
    Column("cluster", Text),
    Column("lane", Text),
    Column("purpose", Text),
    Column("opened_at", UtcTime, nullable=False),
    Column("elapsed_us", BigInteger),
    Column("instance", Text, nullable=False),
    Index("exits_by_time", "opened_at"),
    Index("exits_by_tenant", "tenant", "opened_at"),
    # Only open rows: most rows are closed, and writing them does not touch this index.
    Index("exits_open", "instance", sqlite_where=_OPEN, postgresql_where=_OPEN),
)

# One call of a model. kind: local or frontier. state: open, closed, or unknown. outcome: `ok`, an
# error code, the reason for discarding a local answer, `hedge_lost`, `cancelled`, `not_made` (the
# caller gave up before the call was recorded), or `gateway_lost`. cost_usd: NULL while the call is
# open and where its usage is unknown; held_usd is then its worst case. replica_us: share of a local
# replica's time. day, month: the periods it is charged to, as the date of their first day. prefix:
# digest of the prompt's part that its provider could cache; NULL where there was none.
calls = Table(
    "calls",
    metadata,
    Column("id", Text, primary_key=True),
    Column("exit_id", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("outcome", Text),
    *_usage_columns(),
    Column("usage_source", Text),
    Column("service_tier", Text),
    Column("replica_us", BigInteger),
    Column("price_id", Text, ForeignKey("prices.id")),
    Column("cost_usd", Usd),
    Column("held_usd", Usd, nullable=False),
    Column("day", Text, nullable=False),
    Column("month", Text, nullable=False),
    Column("opened_at", UtcTime, nullable=False),
    Column("elapsed_us", BigInteger),
    Column("instance", Text, nullable=False),
    Column("prefix", Text),
    Index("calls_by_exit", "exit_id"),
    Index("calls_by_time", "opened_at"),
    Index("calls_by_state", "state", "instance"),
)

# Prices that calls were charged at: a call's cost is its tokens times its price. id: digest of the
# other columns. US dollars per token, and for local models US dollars per replica-hour.
prices = Table(
    "prices",
    metadata,
    Column("id", Text, primary_key=True),
    Column("model", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("service_tier", Text),
    Column("over_input_tokens", BigInteger, nullable=False),
    Column("uncached_input_usd", Usd),
    Column("cache_read_usd", Usd),
    Column("cache_write_5m_usd", Usd),
    Column("cache_write_1h_usd", Usd),
    Column("output_usd", Usd),
    Column("replica_hour_usd", Usd),
)

# Amounts that a tenant spent with providers, and the worst case of its open and unknown calls.
# period: day or month. start: date of its first day.
spending = Table(
    "spending",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("period", Text, primary_key=True),
    Column("start", Text, primary_key=True),
    Column("spent_usd", Usd, nullable=False),
    Column("held_usd", Usd, nullable=False),
)

# Gateway processes. seen_at: last heartbeat; the open rows of a silent process become unknown.
# replica_hour_usd: cost of all local replicas of the stack per hour, busy or idle.
instances = Table(
    "instances",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_started_at", UtcTime, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime),
    Column("replica_hour_usd", Usd, nullable=False),
)

tenants = Table(
    "tenants",
    metadata,
    Column("name", Text, primary_key=True),
    Column("day_usd", Usd),
    Column("month_usd", Usd),
    Column("requests_per_minute", Integer),
    Column("max_concurrent_requests", Integer),
    Column("created_at", UtcTime, nullable=False),
    Column("evidence_external", Boolean),
    Column("evidence_providers", Text),
)

# secret_sha256: hex. The secret has 256 random bits, so a slow hash would add nothing.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, ForeignKey("tenants.name")),
    Column("admin", Boolean, nullable=False),
    Column("label", Text, nullable=False),
    Column("secret_sha256", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("revoked_at", UtcTime),
    Column("evidence_external", Boolean),
)

# One row. Each transaction that appends evidence takes its numbers here and holds the row until it
# commits: the order of sequences is the order of commits, without a gap that is filled later.
evidence_sequence = Table(
    "evidence_sequence",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
)

# One row: which replica folds audits into states, and until when.
evidence_lease = Table(
    "evidence_lease",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("holder", Text, nullable=False),
    Column("until", UtcTime, nullable=False),
)

# The part of a claim that never changes. versions, shortcuts: JSON.
evidence_claims = Table(
    "evidence_claims",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenants", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("versions", Text, nullable=False),
    Column("shortcuts", Text, nullable=False),
    Column("pooled", Boolean, nullable=False),
    Column("shortcut", Text, nullable=False),
    Column("loss", Text, nullable=False),
    Column("target_error", Double, nullable=False),
    Column("reference", Text, nullable=False),
    Column("has_suite", Boolean, nullable=False),
    Column("opened_at", UtcTime, nullable=False),
)

# A claim's state as of a sequence, for replicas that do not fold. document: JSON. Derived: it can
# be computed again from audits and events.
evidence_states = Table(
    "evidence_states",
    metadata,
    Column("claim", Text, primary_key=True),
    Column("document", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
)


def _evidence_columns() -> list[Column[Any]]:
    return [
        Column("claim", Text, nullable=False),
        Column("input", Text, nullable=False),
        Column("group_id", Text, nullable=False),
        Column("text_digest", Text, nullable=False),
        Column("origin", Text, nullable=False),
        Column("coin", Double),
        Column("tenant", Text, nullable=False),
        Column("request_id", Text, nullable=False),
        Column("end_user", Text),
        Column("accepted", BigInteger, nullable=False),
        Column("hypothesis", BigInteger, nullable=False),
        Column("drawn_at", UtcTime, nullable=False),
    ]


# Inputs that are to be audited, written when they are drawn: an audit that a crash ends is missed.
evidence_draws = Table(
    "evidence_draws",
    metadata,
    Column("id", Text, primary_key=True),
    *_evidence_columns(),
    Index("evidence_draws_by_time", "drawn_at"),
)

# Verdicts, only appended; the first by (claim, input) counts. candidates: JSON.
evidence_audits = Table(
    "evidence_audits",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    *_evidence_columns(),
    Column("verdict", Text, nullable=False),
    Column("loss", Double),
    Column("reference", Text, nullable=False),
    Column("candidates", Text, nullable=False),
    Column("served", Text),
    Column("label", Text),
    Column("cost_usd", Usd),
    Column("judge_usd", Usd),
    Column("judged_at", UtcTime, nullable=False),
    Column("avoided_usd", Usd),
    UniqueConstraint("claim", "input", name="evidence_audits_once"),
    Index("evidence_audits_by_request", "request_id"),
)

# Changes of a claim's state and people's acts, only appended. action: JSON.
evidence_events = Table(
    "evidence_events",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("claim", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
    Column("after", BigInteger, nullable=False),
    Column("action", Text),
    Index("evidence_events_by_claim", "claim"),
)

# How many free-form answers had which length, for learned output bounds. scope: digest of tenant
# and model (`w`), or of them and the instructions (`n`). arm: `directed` where brevity was asked
# for, else `plain`. bucket: a length, 5 % wide; negative for cut (-1) and continued (-2) answers.
answer_lengths = Table(
    "answer_lengths",
    metadata,
    Column("scope", Text, primary_key=True),
    Column("arm", Text, primary_key=True),
    Column("bucket", Integer, primary_key=True),
    Column("answers", BigInteger, nullable=False),
    Column("used_at", UtcTime, nullable=False),
    Index("answer_lengths_by_use", "used_at"),
)

# Who labelled, withdrew, exported, read or deleted. Only appended.
evidence_acts = Table(
    "evidence_acts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("actor", Text, nullable=False),
    Column("act", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("at", UtcTime, nullable=False),
)

# What was deleted within the last day: audits that were running must not write it again.
# request_id, end_user_digest: NULL where every one of the tenant's is meant.
evidence_erasures = Table(
    "evidence_erasures",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("request_id", Text),
    Column("end_user_digest", Text),
    Column("at", UtcTime, nullable=False),
    Index("evidence_erasures_by_time", "at"),
)

# Audits that wait for a provider's batch: an input with its local answers, until the reference's
# answer to it is there. worst_usd: of the reference's call. batch: that it was collected into, NULL
# before. content: the input, its answers and the audit's row without a verdict, encrypted.
evidence_pending = Table(
    "evidence_pending",
    metadata,
    Column("id", Text, primary_key=True),
    Column("claim", Text, nullable=False),
    Column("input", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("reference", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("key_id", Text),
    Column("request_id", Text, nullable=False),
    Column("end_user", Text),
    Column("worst_usd", Usd, nullable=False),
    Column("batch", Text),
    Column("content", LargeBinary, nullable=False),
    Column("drawn_at", UtcTime, nullable=False),
    Index("evidence_pending_by_batch", "batch", "drawn_at"),
    Index("evidence_pending_by_request", "request_id"),
)

# Texts of audited inputs, for people to label. rank: drawn at random; the lowest ranks of a claim
# are kept, which is a random sample of its audited inputs. content: the text with its audit,
# encrypted.
evidence_texts = Table(
    "evidence_texts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("claim", Text, nullable=False),
    Column("input", Text, nullable=False),
    Column("rank", Double, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("end_user", Text),
    Column("content", LargeBinary, nullable=False),
    Column("kept_at", UtcTime, nullable=False),
    Index("evidence_texts_by_rank", "claim", "rank"),
    Index("evidence_texts_by_request", "request_id"),
    Index("evidence_texts_by_time", "kept_at"),
)
