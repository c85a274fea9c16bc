"""Calls a provider through its vendor's SDK: a whole answer, or a stream of parts.

A vendor's class derives from SdkApi and adds its wire format.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, ClassVar, Protocol

import httpx2
from pydantic import SecretStr

from serving.contracts.errors import FrontierError, FrontierStreamBroken
from serving.frontier.http_errors import (
    error_of,
    names_error,
    refusal_from,
    unreadable,
    unsendable,
)
from serving.frontier.provider_api import KEEP_ALIVE, StreamPart, WholeAnswer
from serving.frontier.provider_data import (
    END,
    longest_stream,
    read_events,
    read_json,
    read_rest,
    repaired,
    stream_fault,
    within,
)

_MAX_ANSWER_BYTES = 32 * 2**20
_UNREAD: Any = {"headers": {"X-Stainless-Raw-Response": "stream"}}
"""Options by which both SDKs return a response whose body has not been read."""


class StreamReader(Protocol):
    """Reads the events of one stream in a vendor's format, in order.

    first_event: what an answer begins with, for a message. has_response: the provider accepted the
    request.
    """

    first_event: ClassVar[str]
    has_response: bool

    @property
    def has_begun(self) -> bool:
        """Return whether a chunk was returned."""
        ...

    @property
    def is_finished(self) -> bool:
        """Return whether every choice has its finish reason."""
        ...

    def event(self, data: str) -> object:
        """Return an event's document; END where it ends the answer. Raises ValueError."""
        ...

    def names_error(self, event: dict[str, Any]) -> bool:
        """Return whether an event is an error."""
        ...

    def failed(self, event: dict[str, Any], error: FrontierError) -> FrontierError:
        """Return the error that an event names, with what it was billed."""
        ...

    def read(self, event: object) -> StreamPart | None:
        """Return an event's part; None for an event without content. Raises ValueError."""
        ...


class SdkApi(ABC):
    """One provider. Implements ProviderApi, but for the wire format, which a vendor's class adds.

    client: the vendor's SDK. _path: of its endpoint. _errors: every class that a call through it
    may raise on purpose. _stream_fields: added to the request of a stream.
    """

    thinks_by_default: bool
    client: Any
    _path: ClassVar[str]
    _errors: ClassVar[tuple[type[Exception], ...]]
    _stream_fields: ClassVar[Mapping[str, Any]] = {"stream": True}

    def __init__(self, name: str, key: SecretStr | None) -> None:
        self._name = name
        self._secret = key.get_secret_value() if key else None

    @abstractmethod
    def read(self, document: dict[str, Any], model: str) -> WholeAnswer:
        """Return an answer that has arrived. Raises FrontierError where it is none."""

    @abstractmethod
    def _reader(self, model: str) -> StreamReader:
        """Return a reader of a stream. model: `provider/model`."""

    @abstractmethod
    def _translated(self, error: Exception) -> FrontierError:
        """Return the NarrowgateError for one of `_errors`. It must not quote the key."""

    async def whole(self, request: dict[str, Any]) -> WholeAnswer:
        """Send a request and read its answer."""
        try:
            async with self._posted(request) as response:
                document = await read_document(response.aiter_bytes(), self._name, self._errors)
                return self.read(document, request["model"])
        except self._errors as error:
            # Not `from error`: it holds the request, key included, and text that may quote it.
            raise self._translated(error) from None
        except (TypeError, ValueError) as error:
            raise unsendable(self._name, error) from None

    async def stream(self, request: dict[str, Any]) -> AsyncGenerator[StreamPart, None]:
        """Send a request and yield its parts."""
        reader = self._reader(f"{self._name}/{request['model']}")
        try:
            async with (
                self._posted({**request, **self._stream_fields}) as response,
                aclosing(self._parts(response, reader, longest_stream(request))) as parts,
            ):
                async for part in parts:
                    yield part
        except self._errors as error:
            if not reader.is_finished:
                raise self._broken(self._translated(error), reader) from None
            # A complete answer stays complete; only its usage may be missing.
            yield StreamPart(None, is_finished=True, is_cut=True)
        except (TypeError, ValueError) as error:
            if not reader.has_response:
                raise unsendable(self._name, error) from None
            if not reader.is_finished:
                raise self._broken(unreadable(self._name, stream_fault(error)), reader) from None
            yield StreamPart(None, is_finished=True, is_cut=True)

    async def aclose(self) -> None:
        """Close all connections."""
        await self.client.close()

    def _refused(self, document: Mapping[str, Any]) -> FrontierError:
        """Return the error that a response with status 200 names."""
        return error_of(refusal_from(self._name, 200, document), self._secret)

    @asynccontextmanager
    async def _posted(self, request: Mapping[str, Any]) -> AsyncIterator[httpx2.Response]:
        """Post a request; yield its response, with the body unread.

        The connection is closed at the end unless the body was read to its end. By its path,
        because the SDK's method for it first transforms some thirty arguments by their types, which
        takes as long as the HTTP. Raises the SDK's errors, for a status of 400 and above as well.
        """
        response = await self.client.post(
            self._path, cast_to=httpx2.Response, body=request, options=_UNREAD
        )
        try:
            yield response
        finally:
            await response.aclose()

    async def _parts(
        self, response: httpx2.Response, reader: StreamReader, most_bytes: int
    ) -> AsyncGenerator[StreamPart, None]:
        reader.has_response = True
        skipped: dict[str, Any] = {}
        body = within(response.aiter_bytes(), most_bytes)
        async with aclosing(read_events(body)) as events:
            async for data in events:
                if not data:
                    yield KEEP_ALIVE
                    continue
                event = reader.event(data)
                if event is END:
                    await read_rest(events)
                    break
                if isinstance(event, dict) and reader.names_error(event):
                    if reader.is_finished:
                        yield StreamPart(None, is_finished=True, is_cut=True)
                        break
                    raise self._broken(reader.failed(event, self._refused(event)), reader)
                part = reader.read(event)
                yield part or KEEP_ALIVE
                if part is None and isinstance(event, dict):
                    skipped = event
        self._require_answer(reader, skipped)

    def _require_answer(self, reader: StreamReader, skipped: dict[str, Any]) -> None:
        """Raise unless a whole answer was read. skipped: the last event without content."""
        if not reader.has_begun and names_error(skipped, is_whole=True):
            raise reader.failed(skipped, self._refused(skipped))
        if not reader.has_begun:
            raise unreadable(self._name, f"the stream has no event {reader.first_event}")
        if not reader.is_finished:
            raise self._broken(unreadable(self._name, "it ended unfinished"), reader)

    def _broken(self, error: FrontierError, reader: StreamReader) -> FrontierError:
        if not reader.has_begun:
            return error
        return FrontierStreamBroken(
            f"the answer of provider {self._name!r} broke off: {error.message}", fix=error.fix
        )


async def read_document(
    body: AsyncIterable[bytes], provider: str, vendor_errors: tuple[type[Exception], ...]
) -> dict[str, Any]:
    """Return the JSON object of an answer whose headers have arrived. body: the rest, unpacked.

    Raises FrontierInvalidResponse where the body breaks off, is too long or is not a JSON object.
    """
    data = bytearray()
    try:
        async for piece in body:
            data += piece
            if len(data) > _MAX_ANSWER_BYTES:
                raise unreadable(provider, f"it is longer than {_MAX_ANSWER_BYTES} bytes")
        document = repaired(read_json(bytes(data)))
    except vendor_errors as error:
        raise unreadable(provider, f"it broke off ({type(error).__name__})") from None
    except ValueError:
        raise unreadable(provider, "it is not JSON") from None
    if not isinstance(document, dict):
        raise unreadable(provider, "it is not a JSON object")
    return document
