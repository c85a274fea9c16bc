"""Public data sets through the hub's own client, from a hub on a loopback socket."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

COMMIT = "c0ffee" + "0" * 34


class _Handler(BaseHTTPRequestHandler):
    """The part of the hub's interface that `datasets` uses; `root` holds owner/name folders."""

    protocol_version = "HTTP/1.1"
    root: Path

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *args: object) -> None:
        pass

    def _answer(self) -> None:
        path, _, query = unquote(self.path).partition("?")
        parts = path.removeprefix("/api").strip("/").split("/")
        folder = self.root / "/".join(parts[1:3])
        verb, commit, inner = parts[3:4], parts[4:5], "/".join(parts[5:])
        if not folder.is_dir() or commit != [COMMIT]:
            self._send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        elif verb == ["revision"]:
            self._send_json({"id": "/".join(parts[1:3]), "sha": COMMIT, "siblings": []})
        elif verb == ["tree"]:
            inside = (folder / inner).glob("**/*" if "recursive=true" in query else "*")
            self._send_json([self._entry(found, folder) for found in sorted(inside)])
        elif verb == ["resolve"] and (folder / inner).is_file():
            data = (folder / inner).read_bytes()
            etag = hashlib.sha256(data).hexdigest()
            self._send(data, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        else:
            self._send(b"{}", 404, {"X-Error-Code": "EntryNotFound"})

    def _entry(self, found: Path, folder: Path) -> dict[str, object]:
        kind = "directory" if found.is_dir() else "file"
        size = found.stat().st_size
        return {"type": kind, "path": str(found.relative_to(folder)), "oid": "0", "size": size}

    def _send_json(self, content: object) -> None:
        self._send(json.dumps(content).encode(), 200, {"Content-Type": "application/json"})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@contextmanager
def serve(root: Path) -> Iterator[str]:
    handler = type("Handler", (_Handler,), {"root": root})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


CARD = """---
configs:
- config_name: default
  data_files:
  - split: validation
    path: data/validation-*
---
"""

FETCH = """
import json, sys
from evals.public_sets import fetch
from serving.contracts.errors import InvalidSuite
from serving.tasks.catalog import load_specs

specs = load_specs(None)
for name, task, commit in [item.split(",") for item in sys.argv[1:]]:
    try:
        found = fetch(name, specs[task], revision=commit, files=[], limit=None, seed=0)
    except InvalidSuite as error:
        found = str(error)
    print(json.dumps(found))
"""


def test_a_set_comes_from_the_hub_at_its_commit(tmp_path: Path) -> None:
    card, folder = tmp_path / "hub" / "stanfordnlp/sst2", tmp_path / "hub" / "leondz/wnut_17"
    (card / "data").mkdir(parents=True)
    (folder / "wnut_17" / "test").mkdir(parents=True)
    (card / "README.md").write_text(CARD, encoding="utf-8")
    table = pa.table({"idx": [0, 1], "sentence": ["a dull tale", "a bright tale"], "label": [0, 1]})
    pq.write_table(table, card / "data" / "validation-00000-of-00001.parquet")
    table = pa.table({"tokens": [["The", "Quiet", "Owls", "sang"]], "ner_tags": [[0, 5, 6, 0]]})
    pq.write_table(table, folder / "wnut_17" / "test" / "0000.parquet")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    asked = [f"sst2,sentiment,{COMMIT}", f"wnut17,ner,{COMMIT}", f"ag_news,topic,{COMMIT}"]
    with serve(tmp_path / "hub") as endpoint:
        # Another process: huggingface_hub reads the endpoint while it is imported.
        done = subprocess.run(
            [sys.executable, "-c", FETCH, *asked], capture_output=True, text=True, check=False,
            env={**environment, "HF_ENDPOINT": endpoint}, timeout=100,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sst2, wnut17, absent = map(json.loads, done.stdout.splitlines())
    assert [(row["text"], row["label"]) for row in sst2] == [
        ("a dull tale", "negative"), ("a bright tale", "positive"),
    ]  # fmt: skip
    assert wnut17[0]["entities"] == [{"text": "Quiet Owls", "type": "organization"}]
    assert absent.startswith(f"fancyzhx/ag_news at {COMMIT} cannot be read")
