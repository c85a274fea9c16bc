"""Files and folders that hold nothing usable, for everything that reads a file."""

from pathlib import Path

CONTENTS = {
    "empty": b"", "binary": bytes(range(256)), "deep.json": b"[" * 20_000,
    "deep.jsonl": b'{"a":' * 20_000 + b"\n", "deep.yaml": b"a: " + b"[" * 20_000,
    "digits": b'{"a": ' + b"1" * 6000 + b"}", "list": b"[1, null, {}]\n",
    "object": b'{"a": {"b": [1, "x"]}}\n', "text": b"x", "half": b'{"text": "\\ud800"}\n',
    "date": b"2026-11-27: 1\n", "latin": b'{"text": "\xe9"}\n', "huge": b'{"a": 1e999}\n',
    "types": b'{"text": 5, "label": []}\n',
    "key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
}  # fmt: skip


def write_odd_files(folder: Path) -> list[str]:
    """Write the files into a folder; return their paths and those of other unusable places."""
    for name, content in CONTENTS.items():
        (folder / name).write_bytes(content)
    (folder / "folder").mkdir()
    inside = [str(folder / name) for name in (*CONTENTS, "folder", "missing", "text/below")]
    return [*inside, "/", ".", "/dev/null", "x" * 256]
