"""The tables of the cache, in the ledger's database."""

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from serving.ledger.schema import UtcTime, metadata

# One answer. key: digest of the request, namespace included. content: the answer, encrypted where
# key_id is not empty. key_id: names the encryption key. bytes: size of content. used_at: last hit,
# to the minute. aside: why it is suspected and not served; NULL where it is not.
cache_entries = Table(
    "cache_entries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("key", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("end_user", Text),
    Column("kind", Text, nullable=False),
    Column("task", Text),
    Column("model", Text, nullable=False),
    Column("claim", Text),
    Column("key_id", Text, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("hits", BigInteger, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("used_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
    Column("aside", Text),
    UniqueConstraint("key", name="cache_entries_once"),
    Index("cache_entries_by_use", "namespace", "used_at", "bytes"),
    Index("cache_entries_by_tenant", "tenant", "request_id"),
    Index("cache_entries_by_expiry", "expires_at"),
    Index("cache_entries_by_key_id", "key_id"),
)

# The question that an entry answers, for lookups by meaning. sequence: increasing in the order of
# commits. fingerprint: of all that decides the answer besides the last turn. content: the question
# and its vector, encrypted as the answer is.
cache_questions = Table(
    "cache_questions",
    metadata,
    Column("entry", Text, ForeignKey("cache_entries.id", ondelete="CASCADE"), primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("content", LargeBinary, nullable=False),
    Index("cache_questions_by_sequence", "namespace", "fingerprint", "sequence"),
)

# Another exact key of an entry: an accepted wording. made_by: `audit` or `operator`.
cache_aliases = Table(
    "cache_aliases",
    metadata,
    Column("key", Text, primary_key=True),
    Column("entry", Text, ForeignKey("cache_entries.id", ondelete="CASCADE"), nullable=False),
    Column("similarity", Double, nullable=False),
    Column("made_by", Text, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Index("cache_aliases_by_entry", "entry"),
)

# What was deleted by request within the last days: an answer that was being made meanwhile is not
# stored. Fields that are NULL match every entry.
cache_erasures = Table(
    "cache_erasures",
    metadata,
    Column("id", Text, primary_key=True),
    Column("namespace", Text),
    Column("tenant", Text),
    Column("request_id", Text),
    Column("end_user_digest", Text),
    Column("at", UtcTime, nullable=False),
    Index("cache_erasures_by_time", "at"),
)

# One row, locked from a writer's first sequence to its commit: no reader skips a row that is
# committed later under a lower number.
cache_sequence = Table(
    "cache_sequence",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
)
