"""Cache entries in both databases: limits, deletion, encryption, damage."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update

from serving.cache.entry_store import EVERY_ENTRY, EntryFilter, EntryStore, open_store
from serving.cache.schema import cache_entries
from serving.contracts.cache_settings import CacheSettings
from serving.contracts.errors import InvalidKey
from serving.evidence.heads.cipher import VectorCipher
from serving.ledger.database import Database

from .authenticated import opened
from .cache_kit import NOW, USAGE, entry, packed

KEY = VectorCipher([b"k" * 32])
OTHER_KEY = VectorCipher([b"o" * 32])


@pytest.fixture
def database(ledger_url: SecretStr | None, state: Path) -> Iterator[Database]:
    found = opened(ledger_url, state)
    yield found
    found.close()


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def entries(database: Database, request: pytest.FixtureRequest) -> EntryStore:
    return EntryStore(database, request.param)


def ids(store: EntryStore, chosen: EntryFilter = EVERY_ENTRY) -> set[str]:
    return {row["id"] for row in store.listed(chosen)}


def test_an_entry_is_found_as_it_was_written(entries: EntryStore) -> None:
    one = entry(1, end_user="ann", text="Ünïcode \x00 \U0001f600")
    entries.write([packed(0), packed(1, end_user="ann", text="Ünïcode \x00 \U0001f600")])
    found = entries.find([one.key, "f" * 64])
    assert found.entries == {one.key: one}
    assert found.unreadable == 0


def test_a_later_entry_of_one_key_replaces_the_earlier_one(entries: EntryStore) -> None:
    entries.write([packed(1)])
    entries.write([packed(1, id="e8", text="8"), packed(1, id="e9", text="9")])
    assert ids(entries) == {"e9"}
    (found,) = entries.find([entry(1).key]).entries.values()
    assert found.content.document["choices"][0]["message"]["content"] == "9"


def test_over_the_limits_the_least_recently_used_are_deleted(entries: EntryStore) -> None:
    for number in range(6):
        at = NOW + timedelta(seconds=number)
        entries.write([packed(number, created_at=at)])
    entries.write([packed(9, namespace="tenant/other")])
    entries.used({"e0": 3}, NOW + timedelta(minutes=1))
    swept = entries.sweep(NOW + timedelta(minutes=2), CacheSettings(max_entries=3))
    assert ids(entries) == {"e0", "e5", "e4", "e9"}
    assert (swept.expired, swept.evicted) == (0, 3)
    assert [size.entries for size in swept.sizes] == [3, 1]


def test_the_limit_of_bytes_is_of_the_stored_content(entries: EntryStore) -> None:
    entries.write([packed(n, text="x" * 2000, created_at=NOW + timedelta(seconds=n))
                   for n in range(4)])  # fmt: skip
    rows = entries.listed(EVERY_ENTRY)
    largest = max(row["bytes"] for row in rows)
    assert largest > 2000
    entries.sweep(NOW + timedelta(minutes=1), CacheSettings(max_bytes=2 * largest))
    assert ids(entries) == {"e2", "e3"}
    assert entries.sizes()["tenant/acme"].bytes <= 2 * largest


def test_expired_entries_are_deleted(entries: EntryStore) -> None:
    entries.write([packed(0), packed(1, expires_at=NOW + timedelta(hours=5))])
    swept = entries.sweep(NOW + timedelta(hours=1), CacheSettings())
    assert ids(entries) == {"e1"}
    assert (swept.expired, swept.evicted) == (1, 0)


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (EntryFilter(entry="e1"), ["e2", "e3", "e4"]),
        (EntryFilter(tenant="acme"), ["e4"]),
        (EntryFilter(tenant="acme", request_id="r2"), ["e1", "e3", "e4"]),
        (EntryFilter(tenant="acme", end_user="ann"), ["e1", "e2", "e4"]),
        (EntryFilter(namespace="tenant/other"), ["e1", "e2", "e3"]),
        (EntryFilter(namespace="tenant/other", tenant="acme"), ["e1", "e2", "e3", "e4"]),
        (EntryFilter(entry="e4", tenant="acme"), ["e1", "e2", "e3", "e4"]),
        (EntryFilter(entry="\x00\ud800"), ["e1", "e2", "e3", "e4"]),
        (EntryFilter(end_user=""), ["e1", "e2", "e3", "e4"]),
        (EVERY_ENTRY, []),
    ],
    ids=str,
)
def test_every_given_condition_must_match(
    entries: EntryStore, chosen: EntryFilter, left: list[str]
) -> None:
    entries.write([
        packed(1), packed(2), packed(3, end_user="ann"),
        packed(4, namespace="tenant/other", tenant="other", end_user="ann"),
    ])  # fmt: skip
    assert entries.delete(chosen) == 4 - len(left)
    assert ids(entries) == set(left)


def test_hits_are_counted(entries: EntryStore) -> None:
    entries.write([packed(1), packed(2)])
    entries.used({"e1": 2, "gone": 1}, NOW)
    entries.used({"e1": 1}, NOW)
    (stats,) = entries.stats(EVERY_ENTRY)
    assert (stats["namespace"], stats["entries"], stats["hits"]) == ("tenant/acme", 2, 3)


def test_every_entry_is_exported_once(entries: EntryStore) -> None:
    entries.write([packed(number) for number in range(1200)])
    found = [one.id for one in entries.entries(EVERY_ENTRY)]
    assert len(found) == len(set(found)) == 1200


def stored(database: Database) -> bytes:
    with database.read() as connection:
        return bytes(connection.execute(select(cache_entries.c.content)).scalar_one())


def test_an_encrypted_answer_is_not_in_the_database(database: Database) -> None:
    EntryStore(database).write([packed(1, text="a secret answer")])
    assert b"a secret answer" in stored(database)
    EntryStore(database, KEY).write([packed(1, text="a secret answer")])
    assert b"secret" not in stored(database)


def test_a_wrong_key_is_an_error_and_not_an_empty_cache(database: Database) -> None:
    EntryStore(database, KEY).write([packed(1)])
    for cipher in (OTHER_KEY, None):
        with pytest.raises(InvalidKey, match="another key") as caught:
            EntryStore(database, cipher).check_key()
        assert caught.value.field == "cache.encryption_key_file"
        with pytest.raises(InvalidKey):
            list(EntryStore(database, cipher).entries(EVERY_ENTRY))
        found = EntryStore(database, cipher).find([entry(1).key])
        assert (dict(found.entries), found.unreadable) == ({}, 1)
    both = VectorCipher([b"o" * 32, b"k" * 32])
    EntryStore(database, both).check_key()
    assert EntryStore(database, both).find([entry(1).key]).entries
    EntryStore(database, KEY).check_key()


def test_an_answer_moved_to_another_tenants_row_is_not_read(database: Database) -> None:
    store = EntryStore(database, KEY)
    store.write([packed(1)])
    moved = {"namespace": "tenant/other", "tenant": "other"}
    with database.begin() as connection:
        connection.execute(update(cache_entries).values(**moved))
    assert store.find([entry(1).key]).unreadable == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"\xff", b"[1]", b'{"document": {}}', b"null", packed(1).data[:-9]],
    ids=repr,
)
def test_a_damaged_entry_is_a_miss(database: Database, content: bytes) -> None:
    store = EntryStore(database)
    store.write([packed(1), packed(2)])
    with database.begin() as connection:
        damaged = update(cache_entries).where(cache_entries.c.id == "e1")
        connection.execute(damaged.values(content=content))
    found = store.find([entry(1).key, entry(2).key])
    assert list(found.entries) == [entry(2).key]
    assert found.unreadable == 1


def test_a_tasks_entry_without_an_answer_is_a_miss(database: Database) -> None:
    store = EntryStore(database)
    store.write([packed(1, kind="task")])
    assert store.find([entry(1).key]).unreadable == 1


def test_the_key_file_is_read_and_checked(database: Database, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(base64.b64encode(b"k" * 32))
    file.chmod(0o644)
    settings = CacheSettings(encryption_key_file=file)
    with pytest.raises(InvalidKey, match="read by others") as caught:
        open_store(database, settings)
    assert caught.value.field == "cache.encryption_key_file"
    file.chmod(0o600)
    open_store(database, settings).write([packed(1)])
    EntryStore(database, KEY).check_key()


def test_a_content_keeps_its_usage_and_cost(entries: EntryStore) -> None:
    content = replace(entry(1).content, cost_usd=None, attestation="sha256:a", guarantee="g")
    entries.write([packed(1, content=content)])
    (found,) = entries.find([entry(1).key]).entries.values()
    assert (found.content, found.content.usage) == (content, USAGE)
