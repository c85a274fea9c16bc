"""Damaged files for every command that reads one: a sentence and a documented exit status.

Each input is a valid file of one kind with one to three changes, of its bytes or of its values. The
files are those that users write or move: models, attestations, tasks, settings, suites, recipes and
calibration texts.
"""

import contextlib
import copy
import io
import json
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from serving.cli import main as narrowgate
from serving.contracts.attestation import FILE as ATTESTATION
from serving.tasks.catalog import load_specs

from ..unit.attested import attest, make_key, predicate, result, write_model
from ..unit.checkpoints import write
from .rounds import Checks, parser, run_rounds

STATUSES = {0, 1, 2, 3}
"""Pass, fail, usage, inconclusive. 70 is a defect, 74 a disk that fails: no file causes them."""

ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**30, -(10**30), 1e308, float("nan"), float("inf"), "", " ",
    "0", "nan", "x" * 5000, "\u200b", "\u0000", "\ud83d", "../..", "/dev/null", "%s", "{}", [], {},
    [[]], [None], {"": None}, {"a": {"a": {"a": []}}}, [1, "1", None], list(range(1000)),
]  # fmt: skip
"""Values that take the place of others."""

BYTES = [
    b"", b"\x00", b"\xff\xfe", b"\xe9", b"\n", b"\t", b"{", b"}", b"[" * 2000, b'"', b",", b"&a ",
    b"*a", b"!!python/object:os.system ", b"!!bool ", b"---\n", b"\xef\xbb\xbf", b"9" * 400,
    b"\xed\xa0\xbd", b"2024-99-99", b"&a [*a]", b"&a {a: *a}", b"!!float .inf", b"!!int 1_0",
]  # fmt: skip
"""Bytes that are put into files."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of file. content: a valid one. lay: writes what the command needs beside the file.

    name: where the file lies. arguments: of the command, for a folder. form: how values change.
    """

    name: str
    content: bytes = field(repr=False)
    arguments: Callable[[Path], list[str]]
    lay: Callable[[Path], None] = lambda folder: None
    form: Literal["document", "lines", "safetensors"] = "document"

    def damaged(self) -> SearchStrategy[bytes]:
        """Return damaged contents."""
        return st.one_of(st.builds(self._bytes, _cuts()), st.builds(self._values, _swaps()))

    def _bytes(self, cuts: list[tuple[float, int, bytes]]) -> bytes:
        content = self.content
        for place, length, put in cuts:
            start = int(place * len(content))
            content = content[:start] + put + content[start + length :]
        return content

    def _values(self, swaps: list[tuple[int, int, bool]]) -> bytes:
        document = self._parsed()
        for place, number, remove in swaps:
            document = _swapped(document, place, ODD[number], remove=remove)
        if self.form == "lines" and isinstance(document, list):
            return "\n".join(json.dumps(row) for row in document).encode()
        text = json.dumps(document).encode()
        if self.form == "safetensors":
            return struct.pack("<Q", len(text)) + text + self.content[8 + self._header_size() :]
        return text

    def _parsed(self) -> Any:
        match self.form:
            case "lines":
                return [json.loads(line) for line in self.content.splitlines()]
            case "safetensors":
                return json.loads(self.content[8 : 8 + self._header_size()])
            case _:
                return yaml.safe_load(self.content)

    def _header_size(self) -> int:
        (size,) = struct.unpack("<Q", self.content[:8])
        return int(size)


def _cuts() -> SearchStrategy[list[tuple[float, int, bytes]]]:
    places = st.floats(0.0, 1.0, allow_nan=False)
    put = st.one_of(st.sampled_from(BYTES), st.binary(max_size=4))
    return st.lists(st.tuples(places, st.integers(0, 40), put), min_size=1, max_size=3)


def _swaps() -> SearchStrategy[list[tuple[int, int, bool]]]:
    swap = st.tuples(st.integers(0, 400), st.integers(0, len(ODD) - 1), st.booleans())
    return st.lists(swap, min_size=1, max_size=3)


def _swapped(document: Any, place: int, value: Any, *, remove: bool) -> Any:
    """Return the document with another value at its n-th place, or without that place."""
    changed = copy.deepcopy(document)
    places = list(_places(changed))
    if not places:
        return value
    holder, key = places[place % len(places)]
    if remove:
        del holder[key]
    else:
        holder[key] = value
    return changed


def _places(value: Any) -> Any:
    keys = list(value) if isinstance(value, dict) else range(len(value))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def holds(kind: Kind, content: bytes) -> None:
    """Run the command on a damaged file; assert a documented status and one JSON document."""
    with tempfile.TemporaryDirectory(prefix="narrowgate-fuzz-") as name:
        folder = Path(name)
        kind.lay(folder)
        path = folder / kind.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = narrowgate([*kind.arguments(folder), "--json"])
    assert status in STATUSES, (status, out.getvalue(), err.getvalue())
    assert "Traceback" not in out.getvalue() + err.getvalue()
    document = json.loads(out.getvalue())
    if status == 2:
        assert document["error"]["message"]


def _plan(*arguments: str) -> Callable[[Path], list[str]]:
    def of(folder: Path) -> list[str]:
        found = [argument.replace("FOLDER", str(folder)) for argument in arguments]
        return ["quantize", str(folder / "model"), *found, "--dry-run", "--target", "a10g"]

    return of


def _lay_model(folder: Path) -> None:
    write(folder / "model")


def _lay_attested(folder: Path) -> None:
    model = write_model(folder / "model")
    key = make_key(folder)
    specs = load_specs(None)
    attest(model, key, predicate(model, {"topic": result(specs["topic"])}))


def _verify(folder: Path) -> list[str]:
    return ["verify", str(folder / "model"), "--trust", str(folder / "keys" / "key.pub")]


def _lay_suite(folder: Path) -> None:
    (folder / "suite").mkdir()
    (folder / "suite" / "task.yaml").write_bytes(_yaml(_task()))
    (folder / "suite" / "test.jsonl").write_bytes(_SUITE)


_SUITE = b"".join(
    json.dumps({"id": n, "text": f"The tea number {n} is lovely.", "label": label}).encode() + b"\n"
    for n, label in enumerate(["positive", "negative", "neutral"] * 2)
)
_TEXTS = b'{"text": "A fine day."}\n{"task": "topic", "text": "Rain."}\n' + (
    b'{"messages": [{"role": "user", "content": "Hello"}]}\n'
)


def _task() -> dict[str, Any]:
    return load_specs(None)["sentiment"].model_dump(mode="json", exclude_none=True)


def _yaml(value: object) -> bytes:
    return yaml.safe_dump(value, sort_keys=False).encode()


@cache
def kinds() -> dict[str, Kind]:
    """Return every kind of file by name."""
    recipes = Path(__file__).parents[2] / "quantize" / "recipes"
    with tempfile.TemporaryDirectory() as name:
        _lay_model(Path(name))
        _lay_attested(Path(name) / "attested")
        model = Path(name) / "model"
        config = (model / "config.json").read_bytes()
        weights = (model / "model.safetensors").read_bytes()
        attestation = (Path(name) / "attested" / "model" / ATTESTATION).read_bytes()
    settings = {
        "port": 8001,
        "models": [{"id": "m", "source": "/nowhere"}],
        "auth": {"mode": "off"},
    }
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model.safetensors"}}
    int8 = ("--recipe", "bnb-int8")
    return {
        "config": Kind("model/config.json", config, _plan(*int8), _lay_model),
        "weights": Kind("model/model.safetensors", weights, _plan(*int8), _lay_model,
                        form="safetensors"),
        "index": Kind("model/model.safetensors.index.json", json.dumps(index).encode(),
                      _plan(*int8), _lay_model),
        "recipe": Kind("mine.yaml", (recipes / "int8-w8a8.yaml").read_bytes(),
                       _plan("--recipe", "FOLDER/mine.yaml"), _lay_model),
        "calibration": Kind("mine.jsonl", _TEXTS,
                            _plan("--recipe", "int8-w8a8", "--calibration", "FOLDER/mine.jsonl"),
                            _lay_model, form="lines"),
        "held out": Kind("held.jsonl", _SUITE,
                         _plan("--recipe", "int8-w8a8", "--held-out", "FOLDER/held.jsonl"),
                         _lay_model, form="lines"),
        "attestation": Kind(f"model/{ATTESTATION}", attestation, _verify, _lay_attested),
        "task": Kind("tasks/mine.yaml", _yaml(_task()),
                     lambda folder: ["tasks", "--tasks-dir", str(folder / "tasks")]),
        "settings": Kind("settings.yaml", _yaml(settings),
                         lambda folder: ["config", "--config", str(folder / "settings.yaml")]),
        "suite": Kind("suite/test.jsonl", _SUITE,
                      lambda folder: ["suite", "check", str(folder / "suite")], _lay_suite,
                      form="lines"),
        "suite's task": Kind("suite/task.yaml", _yaml(_task()),
                             lambda folder: ["suite", "check", str(folder / "suite")], _lay_suite),
    }  # fmt: skip


def checks() -> Checks:
    """Return damaged contents of each kind, and what must hold for them."""

    def check(kind: Kind) -> tuple[SearchStrategy[bytes], Callable[[bytes], None]]:
        return kind.damaged(), lambda content: holds(kind, content)

    return [check(kind) for kind in kinds().values()]


if __name__ == "__main__":
    args = parser("Damaged files for every command that reads one.").parse_args()
    run_rounds("files", checks(), args.seconds, args.seed)
