"""Changes of uvicorn's HTTP parser: no trailers in headers, malformed requests in our shape."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.contracts.errors import InvalidRequest
from serving.contracts.openai import json_text
from serving.gateway.errors import error_body

_on_headers_complete = HttpToolsProtocol.on_headers_complete


def change_http_protocol() -> None:
    """Make uvicorn's parser drop trailers and answer malformed requests, in this process.

    uvicorn appends the trailers of chunked bodies to the list that the request's scope holds. Where
    body and headers come in one packet that is before the application runs: what a proxy in front
    removes or sets, such as `Authorization`, could be set in a trailer. RFC 9110 (6.5.1) forbids to
    merge such fields. A request that the parser does not read, of an unknown method for one, never
    reaches the application; uvicorn answers it in plain text.
    """
    HttpToolsProtocol.on_headers_complete = _without_trailers  # type: ignore[method-assign]
    HttpToolsProtocol.send_400_response = _malformed  # type: ignore[method-assign]


def _without_trailers(self: HttpToolsProtocol) -> None:
    _on_headers_complete(self)
    # The scope keeps the list that it has; what follows is a trailer.
    self.headers = []


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
