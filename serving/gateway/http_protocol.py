"""Changes of uvicorn's HTTP parser: no trailers in headers, no upgrades, errors in our shape."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.contracts.errors import InvalidRequest
from serving.contracts.openai import json_text
from serving.gateway.errors import error_body

_OF_BODIES = (b"content-length", b"transfer-encoding")
_on_headers_complete = HttpToolsProtocol.on_headers_complete


def change_http_protocol() -> None:
    """Make uvicorn's parser drop trailers, ignore upgrades and answer malformed requests.

    In this process.

    uvicorn appends the trailers of chunked bodies to the list that the request's scope holds. Where
    body and headers come in one packet that is before the application runs: what a proxy in front
    removes or sets, such as `Authorization`, could be set in a trailer. RFC 9110 (6.5.1) forbids to
    merge such fields. A request that the parser does not read, of an unknown method for one, never
    reaches the application; uvicorn answers it in plain text.

    After a request that asks for an upgrade, httptools reads no body: its bytes would be read as
    the next request, which a proxy in front takes for a body. The answers of that connection would
    then reach other clients than those who asked.
    """
    HttpToolsProtocol.on_headers_complete = _headers_complete  # type: ignore[method-assign]
    HttpToolsProtocol._should_upgrade = _never  # type: ignore[method-assign]
    HttpToolsProtocol.send_400_response = _malformed  # type: ignore[method-assign]


def _headers_complete(self: HttpToolsProtocol) -> None:
    asks_to_upgrade = self.parser.should_upgrade()
    if asks_to_upgrade and any(name in _OF_BODIES for name, _ in self.headers):
        # uvicorn answers 400 and closes the connection.
        raise ValueError("an upgrade with a body")
    _on_headers_complete(self)
    if asks_to_upgrade:
        self.cycle.keep_alive = False
    # The scope keeps the list that it has; what follows is a trailer.
    self.headers = []


def _never(self: HttpToolsProtocol) -> bool:
    return False


def _malformed(self: HttpToolsProtocol, msg: str) -> None:
    error = InvalidRequest(
        "the request is not HTTP/1.1 that this server reads, or its method is unknown",
        fix="send well-formed HTTP/1.1 with the method GET, HEAD, POST, DELETE or OPTIONS",
    )
    body = json_text({"error": error_body(error)}).encode()
    head = [
        "HTTP/1.1 400 Bad Request",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "x-should-retry: false",
        "connection: close",
    ]
    self.transport.write(("\r\n".join(head) + "\r\n\r\n").encode() + body)
    self.transport.close()
