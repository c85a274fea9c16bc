"""A hub on a loopback socket: the part of its HTTP interface that downloads use."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Handler(BaseHTTPRequestHandler):
    """Answers for one repository; the attributes are set in a subclass."""

    protocol_version = "HTTP/1.1"
    repo: str
    revision: str
    folder: Path

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        pass

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_file())

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{self.repo}/revision/{self.revision}"):
            siblings = [{"rfilename": name} for name in self._names()]
            self._send_json({"id": self.repo, "sha": self.revision, "siblings": siblings})
        elif path.startswith(f"/api/models/{self.repo}/tree/{self.revision}"):
            self._send_json([self._entry(self.folder / name) for name in self._names()])
        elif path.startswith(f"/{self.repo}/resolve/{self.revision}/"):
            self._send_file(path.rpartition("/")[2])
        else:
            self._send_json({"error": "not here"}, 404, "RepoNotFound")

    def _entry(self, path: Path) -> dict[str, object]:
        size = path.stat().st_size
        return {"type": "file", "path": path.name, "oid": _etag(path), "size": size}

    def _send_json(self, content: object, status: int = 200, error: str | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if error is not None:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def _send_file(self, name: str) -> None:
        if name not in self._names():
            self._send_json({}, 404, "EntryNotFound")
            return
        data = (self.folder / name).read_bytes()
        start, end, status = 0, len(data) - 1, 200
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(int(last or end), end), 206
        self.send_response(status)
        self.send_header("Content-Length", str(end - start + 1))
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.send_header("ETag", f'"{_etag(self.folder / name)}"')
        self.send_header("X-Repo-Commit", self.revision)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start : end + 1])


@contextmanager
def serve_hub(repo: str, revision: str, folder: Path) -> Iterator[str]:
    """Serve one repository at one commit and yield the endpoint."""
    handler = type("Handler", (_Handler,), {"repo": repo, "revision": revision, "folder": folder})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
