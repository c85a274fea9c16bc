"""Calls a gateway's files and batches over HTTP."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, Field, ValidationError

from serving.contracts.errors import InvalidRequest, NarrowgateError, NotFound, Unavailable
from serving.contracts.plain_file import opened_plain, plain_target

_TIMEOUT_S = 120.0
_PIECE_BYTES = 2**16

S = TypeVar("S", bound=BaseModel)

Moved = Callable[[int, int | None], None]
"""Reports the bytes that were moved so far, and their number where it is known."""


class BatchClient:
    """The batch endpoints of one gateway. Raises NarrowgateErrors; blocking.

    key_env: environment variable with the API key; without a value no key is sent. field: the
    option that names the gateway, for messages.
    """

    def __init__(self, url: str, key_env: str, *, field: str = "--url") -> None:
        key = os.environ.get(key_env, "").strip()
        self._field = field
        self._url = _address(url, field)
        self._key_env = key_env
        self._http = httpx.Client(
            base_url=f"{self._url}/v1/",
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=_TIMEOUT_S,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._http.close()

    def upload(self, file: Path, moved: Moved) -> str:
        """Upload a file of requests and return its id. Raises OSError."""
        with opened_plain(file) as content:
            size = os.fstat(content.fileno()).st_size
            watched: Any = _WatchedFile(content, size, moved)
            document = self._json(
                "POST", "files", data={"purpose": "batch"},
                files={"file": (file.name, watched, "application/jsonl")},
            )  # fmt: skip
        return self._read(_Document, document).id

    def delete_file(self, file_id: str) -> None:
        """Delete an uploaded file; it expires where that fails."""
        with suppress(NarrowgateError):
            self._json("DELETE", f"files/{_quoted(file_id)}")

    def check(self, order: dict[str, Any]) -> dict[str, Any]:
        """Return what is wrong with a file, and what it may cost."""
        return self._as(_Check, self._json("POST", "batches/check", json=order))

    def create(self, order: dict[str, Any]) -> dict[str, Any]:
        """Create a batch."""
        return self._as(_Batch, self._json("POST", "batches", json=order))

    def batch(self, batch_id: str) -> dict[str, Any]:
        """Return a batch."""
        return self._as(_Batch, self._json("GET", f"batches/{_quoted(batch_id)}"))

    def batches(self, limit: int, after: str | None = None) -> dict[str, Any]:
        """Return a page of batches, newest first. after: the last batch of the page before."""
        params = {"limit": limit} if after is None else {"limit": limit, "after": after}
        return self._as(_Batches, self._json("GET", "batches", params=params))

    def overview(self) -> dict[str, Any]:
        """Return every tenant's batches. The key must be an admin key."""
        return self._as(_Overview, self._json("GET", "admin/batches"))

    def cancel(self, batch_id: str) -> dict[str, Any]:
        """Start no further line of a batch."""
        return self._as(_Batch, self._json("POST", f"batches/{_quoted(batch_id)}/cancel"))

    def cancel_all(self, tenant: str) -> dict[str, Any]:
        """Start no further line of a tenant's batches. The key must be an admin key."""
        path = "admin/batches/cancel"
        return self._as(_Cancelled, self._json("POST", path, params={"tenant": tenant}))

    def download(self, file_id: str, out: Path | None, moved: Moved) -> int:
        """Write a file's content to `out`, or to standard output; return its size in bytes.

        `out` appears when it is whole. Raises OSError.
        """
        path, done = f"files/{_quoted(file_id)}/content", 0
        with self._answered(), self._http.stream("GET", path) as response:
            if response.status_code != 200:
                response.read()
                raise self._refused(response)
            length = response.headers.get("content-length")
            with _opened(out) as file:
                for piece in response.iter_bytes(_PIECE_BYTES):
                    file.write(piece)
                    done += len(piece)
                    moved(done, int(length) if length else None)
        return done

    def _as(self, shape: type[BaseModel], document: dict[str, Any]) -> dict[str, Any]:
        """Return a document that has a shape. Raises Unavailable for another server's."""
        self._read(shape, document)
        return document

    def _read(self, shape: type[S], document: dict[str, Any]) -> S:
        try:
            return shape.model_validate(document)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise self._no_gateway(f"{where} is missing or of another kind") from None

    def _json(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        with self._answered():
            response = self._http.request(method, path, **more)
        if response.status_code != 200:
            raise self._refused(response)
        try:
            document = response.json()
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise self._no_gateway("it is not a JSON object")
        return document

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise Unavailable(
                f"{self._url} gave no answer: {type(error).__name__}: {error}",
                field=self._field,
                fix=f"check {self._field}, and that the gateway runs; narrowgate serve prints the "
                "address",
            ) from error

    def _refused(self, response: httpx.Response) -> NarrowgateError:
        try:
            error = response.json()["error"]
            message, fix, field = error["message"], error.get("fix"), error.get("param")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return self._no_gateway(f"HTTP {response.status_code}: {response.text[:200]!r}")
        if response.status_code == 401:
            fix = f"put a key into the environment variable {self._key_env}"
        kind: type[NarrowgateError] = InvalidRequest
        if response.status_code >= 500:
            kind = Unavailable
        elif response.status_code == 404:
            kind = NotFound
        return kind(f"{self._url}: {message}", field=field, fix=fix)

    def _no_gateway(self, what: str) -> NarrowgateError:
        return Unavailable(
            f"the answer of {self._url} is not a gateway's: {what}",
            field=self._field,
            fix=f"check {self._field}; narrowgate serve prints the address",
        )


class _WatchedFile:
    """A file that reports how much of it was read."""

    def __init__(self, file: IO[bytes], size: int, moved: Moved) -> None:
        self._file = file
        self._size = size
        self._moved = moved

    def read(self, size: int = -1) -> bytes:
        piece = self._file.read(size)
        self._moved(self._file.tell(), self._size)
        return piece

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


@contextmanager
def _opened(out: Path | None) -> Iterator[IO[bytes]]:
    """Yield a file that takes the place of `out` when the body ends without an error."""
    if out is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    target = plain_target(out)
    partial = target.with_name(f".{target.name}.part")
    try:
        with os.fdopen(
            os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb"
        ) as file:
            yield file
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _address(url: str, field: str) -> str:
    """Return a gateway's address without a path. Raises InvalidRequest."""
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        is_usable = False
    if not is_usable:
        raise InvalidRequest(
            f"{field} is {url!r}", field=field, fix="send the address as http://HOST:PORT"
        )
    return url.rstrip("/").removesuffix("/v1")


def _quoted(id_: str) -> str:
    if id_.strip(".") == "":
        # The path of the list, or of another resource.
        raise InvalidRequest(
            f"{id_!r} is no id", field="ID", fix="narrowgate batch list shows the ids"
        )
    return quote(id_, safe="")


class _Document(BaseModel):
    """A resource. The gateway's documents have more than what is read of them here."""

    id: str = Field(min_length=1)


class _Counts(BaseModel):
    total: int | None = None
    completed: int | None = None
    failed: int | None = None


class _Problems(BaseModel):
    data: list[dict[str, Any]] | None = None


class _Ours(BaseModel):
    cost_usd: str | None = None
    plan: list[dict[str, Any]] | None = None


class _Batch(_Document):
    status: str
    request_counts: _Counts | None = None
    created_at: float | None = None
    expires_at: float | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: _Problems | None = None
    narrowgate: _Ours | None = None


class _Batches(BaseModel):
    data: list[_Batch]


class _Overview(BaseModel):
    data: list[dict[str, Any]]


class _Cancelled(BaseModel):
    tenant: str
    cancelled: int


class _Check(BaseModel):
    lines: int
    plan: list[dict[str, Any]] | None = None
    errors: _Problems | None = None
