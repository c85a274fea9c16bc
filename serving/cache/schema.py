"""The table of cache entries, in the ledger's database."""

from sqlalchemy import BigInteger, Column, Index, LargeBinary, Table, Text, UniqueConstraint

from serving.ledger.schema import UtcTime, metadata

# One answer. key: digest of the request, namespace included. content: the answer, encrypted where
# key_id is not empty. key_id: names the encryption key. bytes: size of content. used_at: last hit,
# to the minute.
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
    UniqueConstraint("key", name="cache_entries_once"),
    Index("cache_entries_by_use", "namespace", "used_at", "bytes"),
    Index("cache_entries_by_tenant", "tenant", "request_id"),
    Index("cache_entries_by_expiry", "expires_at"),
    Index("cache_entries_by_key_id", "key_id"),
)
