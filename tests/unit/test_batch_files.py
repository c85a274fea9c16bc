"""Tenants' files: named by content, encrypted where a key is set, within quotas, deleted."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import insert, update

from serving.batch.blobs import BlobStore
from serving.batch.files import FileStore
from serving.batch.schema import batch_lines, batches
from serving.contracts.batch import PageRequest, StoredFile
from serving.contracts.batch_settings import BatchSettings
from serving.contracts.errors import (
    BodyTooLarge,
    FileInUse,
    InvalidKey,
    InvalidRequest,
    NarrowgateError,
    NotFound,
)
from serving.evidence.heads.cipher import VectorCipher
from serving.ledger.database import Database

from .authenticated import opened
from .cache_kit import NOW, Now

CIPHER = VectorCipher([b"k" * 32])
CONTENT = bytes(range(256)) * 1000
HOUR = 3600.0


@pytest.fixture
def database(ledger_url: SecretStr | None, state: Path) -> Any:
    found = opened(ledger_url, state)
    yield found
    found.close()


class Files:
    def __init__(
        self, database: Database, folder: Path, cipher: VectorCipher | None = None, **settings: Any
    ) -> None:
        self.now = Now()
        self.folder = folder
        self.blobs = BlobStore(folder, cipher)
        self.store = FileStore(database, self.blobs, BatchSettings(**settings), self.now)

    def put(
        self, data: bytes = CONTENT, tenant: str = "acme", ttl_s: float | None = None
    ) -> StoredFile:
        upload = self.store.begin(tenant)
        try:
            for start in range(0, len(data), 50_000):
                upload.write(data[start : start + 50_000])
            return upload.finish(tenant, "in.jsonl", "batch", ttl_s)
        finally:
            upload.abandon()

    def read(self, file: StoredFile) -> bytes:
        return b"".join(self.blobs.pieces(self.store.blob(file.tenant, file.id)))

    def on_disk(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture(params=[None, CIPHER], ids=["plain", "encrypted"])
def files(request: pytest.FixtureRequest, database: Database, state: Path) -> Files:
    return Files(database, state / "files", request.param)


def test_a_file_comes_back_whole_and_in_parts(files: Files) -> None:
    file = files.put()
    assert files.read(file) == CONTENT
    blob = files.store.blob("acme", file.id)
    for start, length in ((0, 10), (65_530, 20), (131_072, 65_536), (len(CONTENT) - 5, 5)):
        assert files.blobs.slice(blob, start, length) == CONTENT[start : start + length]


def test_equal_contents_of_a_tenant_are_stored_once_and_deleted_with_the_last(
    files: Files,
) -> None:
    first, second, other = files.put(), files.put(), files.put(tenant="globex")
    assert len(files.on_disk()) == 2
    files.store.delete("acme", first.id)
    assert files.read(second) == CONTENT
    files.store.delete("acme", second.id)
    assert files.read(other) == CONTENT
    assert len(files.on_disk()) == 1


def test_a_tenant_does_not_see_the_files_of_another(files: Files) -> None:
    file = files.put()
    for act in (files.store.find, files.store.blob, files.store.delete):
        with pytest.raises(NotFound):
            act("globex", file.id)
    assert files.store.listed("globex", None, PageRequest()).items == []
    with pytest.raises(NotFound):
        files.store.listed("globex", None, PageRequest(after=file.id))
    assert files.read(file) == CONTENT


def test_nothing_of_an_encrypted_file_is_readable_on_disk(database: Database, state: Path) -> None:
    files = Files(database, state / "files", CIPHER)
    files.put(b"the secret of acme" * 100)
    (path,) = files.on_disk()
    assert b"secret" not in path.read_bytes()


def test_an_encrypted_file_that_was_changed_cut_or_moved_is_refused(
    database: Database, state: Path
) -> None:
    files = Files(database, state / "files", CIPHER)
    file, other = files.put(), files.put(b"other" * 60_000, tenant="globex")
    place, its_place = (
        next(path for path in files.on_disk() if path.name == files.store.blob(*name).address)
        for name in (("acme", file.id), ("globex", other.id))
    )
    whole = place.read_bytes()
    for damaged in (
        whole[:70_000] + b"\x00" + whole[70_001:], whole[: 16 + 65_568], its_place.read_bytes(),
    ):  # fmt: skip
        place.write_bytes(damaged)
        with pytest.raises(NarrowgateError):
            files.read(file)
    with pytest.raises(NarrowgateError, match="no key"):
        list(BlobStore(files.folder).pieces(files.store.blob("globex", other.id)))


def test_limits_refuse_an_upload_and_leave_nothing_behind(database: Database, state: Path) -> None:
    files = Files(database, state / "files", max_file_bytes=1024, tenant_file_bytes=1500)
    files.put(b"x" * 1000)
    with pytest.raises(BodyTooLarge):
        files.put(b"x" * 1025)
    with pytest.raises(InvalidRequest, match="500 are left"):
        files.put(b"x" * 501)
    files.put(b"y" * 501, tenant="globex")
    assert len(files.on_disk()) == 2


def test_a_file_or_line_with_another_key_stops_the_start(database: Database, state: Path) -> None:
    old, new = VectorCipher([b"o" * 32]), VectorCipher([b"n" * 32])
    before = Files(database, state / "files", old)
    before.put(ttl_s=HOUR)

    def check(cipher: VectorCipher | None, later_s: float = 0.0) -> None:
        files = Files(database, state / "files", cipher)
        files.now.later(later_s)
        files.store.check_key()

    for cipher in (new, None):
        with pytest.raises(InvalidKey, match="another key") as caught:
            check(cipher)
        assert caught.value.field == "cache.encryption_key_file"
    check(VectorCipher([b"n" * 32, b"o" * 32]))
    # An expired file needs no key.
    check(new, HOUR + 1)
    line = {
        "batch": "batch_1", "number": 1, "custom_id": "a", "start": 0, "length": 1,
        "state": "succeeded", "attempt": 1, "key_id": old.key_ids[0],
    }  # fmt: skip
    batch = {
        "id": "batch_1", "tenant": "acme", "endpoint": "/v1/chat/completions", "input_file": "f",
        "completion_window": "24h", "status": "in_progress", "metadata": "{}", "problems": "[]",
        "plan": "[]", "created_at": NOW, "expires_at": NOW,
    }  # fmt: skip
    with database.begin() as connection:
        connection.execute(insert(batches), [batch])
        connection.execute(insert(batch_lines), [line])
    with pytest.raises(InvalidKey, match="another key"):
        check(new, HOUR + 1)
    with database.begin() as connection:
        connection.execute(update(batches).values(status="completed"))
    check(new, HOUR + 1)


def test_uploads_at_once_share_the_tenants_room(database: Database, state: Path) -> None:
    files = Files(database, state / "files", max_file_bytes=1024, tenant_file_bytes=1500)
    begun = [files.store.begin("acme") for _ in range(3)]
    for upload in begun:
        upload.write(b"x" * 700)
    for upload in begun[:2]:
        upload.finish("acme", "a.jsonl", "batch", None)
    with pytest.raises(InvalidRequest, match="100 are left"):
        begun[2].finish("acme", "a.jsonl", "batch", None)
    begun[2].abandon()
    assert files.store.left("acme") == 100
    # Equal contents are one file on disk.
    assert len(files.on_disk()) == 1


def test_an_expired_file_is_gone_at_once_and_then_deleted(files: Files) -> None:
    file, kept = files.put(ttl_s=HOUR), files.put(b"kept")
    files.now.later(HOUR + 1)
    with pytest.raises(NotFound):
        files.store.find("acme", file.id)
    assert files.store.sweep() == 1
    assert [path.name for path in files.on_disk()] == [files.store.blob("acme", kept.id).address]


def test_the_input_of_an_unfinished_batch_stays(files: Files, database: Database) -> None:
    file = files.put(ttl_s=HOUR)
    with database.begin() as connection:
        connection.execute(insert(batches), [{
            "id": "batch_1", "tenant": "acme", "endpoint": "/v1/chat/completions",
            "input_file": file.id, "completion_window": "24h", "status": "in_progress",
            "metadata": "{}", "problems": "[]", "plan": "[]", "created_at": NOW,
            "expires_at": NOW + timedelta(days=1),
        }])  # fmt: skip
    with pytest.raises(FileInUse):
        files.store.delete("acme", file.id)
    files.now.later(2 * HOUR)
    assert files.store.sweep() == 0
    assert len(files.on_disk()) == 1


def test_files_are_listed_in_pages(files: Files) -> None:
    made = []
    for number in range(5):
        files.now.later(1 if number != 3 else 0)
        made.append(files.put(str(number).encode()).id)
    for newest_first in (True, False):
        seen, after, more = [], None, True
        while more:
            page = files.store.listed("acme", "batch", PageRequest(2, after, newest_first))
            seen += [file.id for file in page.items]
            after, more = seen[-1], page.has_more
        assert len(seen) == 5
        assert set(seen) == set(made)
        times = [files.store.find("acme", file).created_at for file in seen]
        assert times == sorted(times, reverse=newest_first)
    assert files.store.listed("acme", "batch_output", PageRequest()).items == []


def test_an_upload_that_never_ended_is_deleted_after_a_day(files: Files) -> None:
    # A process that is killed leaves the file and closes it.
    files.folder.mkdir(parents=True)
    (files.folder / ".part-0").write_bytes(b"half")
    (part,) = files.on_disk()
    files.store.sweep()
    assert part.exists()
    files.blobs.sweep(0.0, part.stat().st_mtime + 1)
    assert files.on_disk() == []
