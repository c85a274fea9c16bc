"""Keeps a request's trailers out of its headers."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_on_headers_complete = HttpToolsProtocol.on_headers_complete


def ignore_trailers() -> None:
    """Make uvicorn's parser drop the trailers of chunked bodies, in this process.

    uvicorn appends them to the list that the request's scope holds. Where body and headers come in
    one packet that is before the application runs: what a proxy in front removes or sets, such as
    `Authorization`, could be set in a trailer. RFC 9110 (6.5.1) forbids to merge such fields.
    """
    HttpToolsProtocol.on_headers_complete = _without_trailers  # type: ignore[method-assign]


def _without_trailers(self: HttpToolsProtocol) -> None:
    _on_headers_complete(self)
    # The scope keeps the list that it has; what follows is a trailer.
    self.headers = []
