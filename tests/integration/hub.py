"""A hub on a loopback socket: the part of its HTTP interface that downloads use."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


class _Handler(BaseHTTPRequestHandler):
    """Answers for models and data sets; the attributes are set in a subclass."""

    protocol_version = "HTTP/1.1"
    repos: Mapping[str, Path]
    revision: str

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        # /api/KIND/OWNER/NAME/VERB/REVISION/PATH, or /[KIND/]OWNER/NAME/resolve/REVISION/PATH.
        path, _, query = unquote(self.path).partition("?")
        parts = path.removeprefix("/api").strip("/").split("/")
        if parts[0] in ("models", "datasets"):
            del parts[0]
        repo, verb, inner = "/".join(parts[:2]), parts[2:3], "/".join(parts[4:])
        if repo not in self.repos or parts[3:4] != [self.revision]:
            self._send_json({"error": "not here"}, 404, "RepoNotFound")
            return
        folder = self.repos[repo]
        if verb == ["revision"]:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            siblings = [{"rfilename": str(path.relative_to(folder))} for path in files]
            self._send_json({"id": repo, "sha": self.revision, "siblings": siblings})
        elif verb == ["tree"]:
            pattern = "**/*" if "recursive=true" in query else "*"
            self._send_json(_entries(folder, folder / inner, pattern))
        elif verb == ["resolve"] and (folder / inner).is_file():
            self._send_file(folder / inner)
        else:
            self._send_json({}, 404, "EntryNotFound")

    def _send_json(self, content: object, status: int = 200, error: str | None = None) -> None:
        headers = {"Content-Type": "application/json"}
        if error is not None:
            headers["X-Error-Code"] = error
        self._send(json.dumps(content).encode(), status, headers)

    def _send_file(self, path: Path) -> None:
        data = path.read_bytes()
        start, end, status = 0, len(data) - 1, 200
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(int(last or end), end), 206
        headers = {
            "Content-Range": f"bytes {start}-{end}/{len(data)}",
            "ETag": f'"{_etag(path)}"',
            "X-Repo-Commit": self.revision,
        }
        self._send(data[start : end + 1], status, headers)

    def _send(self, data: bytes, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@contextmanager
def serve_hub(repos: Mapping[str, Path], revision: str) -> Iterator[str]:
    """Serve repositories, by owner/name, at one commit and yield the endpoint."""
    handler = type("Handler", (_Handler,), {"repos": repos, "revision": revision})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _entries(folder: Path, inside: Path, pattern: str) -> list[dict[str, object]]:
    return [
        {
            "type": "directory" if path.is_dir() else "file",
            "path": str(path.relative_to(folder)),
            "oid": "0" if path.is_dir() else _etag(path),
            "size": path.stat().st_size,
        }
        for path in sorted(inside.glob(pattern))
    ]


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
