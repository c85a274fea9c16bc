"""Named arrays as bytes, with one form that is accepted: no pickles, nothing is executed.

Layout: a magic line, the length of the header, the header (canonical JSON: types, shapes, content),
then the arrays in the order of their names, row by row, little-endian.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAGIC = b"narrowgate arrays 1\n"
_LENGTH = struct.Struct("<I")
_START = len(_MAGIC) + _LENGTH.size
_MAX_HEADER_BYTES = 256 * 2**10
_MAX_DIMENSIONS = 2
_DTYPES = ("<f4", "<f8", "<i2", "<i4", "|u1")

Array = NDArray[Any]


class DamagedArrays(ValueError):
    """The bytes are not what `pack` writes. The message says where they differ."""


@dataclass(frozen=True, slots=True)
class Packed:
    """content: what `pack` was given beside the arrays, JSON. arrays: read-only."""

    content: Mapping[str, Any]
    arrays: Mapping[str, Array]


def pack(content: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Return content and arrays as bytes. Equal arguments give equal bytes.

    content: a JSON object. arrays: of at most two dimensions; float32, float64, int16, int32 or
    uint8. Raises ValueError for others.
    """
    names = sorted(arrays)
    parts = [np.ascontiguousarray(arrays[name]) for name in names]
    listed = []
    for name, part in zip(names, parts, strict=True):
        if part.dtype.str not in _DTYPES or part.ndim > _MAX_DIMENSIONS:
            raise ValueError(f"array {name!r} is {part.dtype.str!r} with {part.ndim} dimensions")
        listed.append({"name": name, "dtype": part.dtype.str, "shape": list(part.shape)})
    header = _canonical({"arrays": listed, "content": dict(content)})
    if len(header) > _MAX_HEADER_BYTES:
        raise ValueError(f"the header has {len(header)} bytes, the limit is {_MAX_HEADER_BYTES}")
    return b"".join([_MAGIC, _LENGTH.pack(len(header)), header, *(p.tobytes() for p in parts)])


def unpack(data: bytes) -> Packed:
    """Return what was packed. Raises DamagedArrays for any bytes that `pack` would not write.

    Floats that are not finite are refused. Allocates nothing beyond the data.
    """
    if not data.startswith(_MAGIC) or len(data) < _START:
        raise DamagedArrays("it does not begin as packed arrays do")
    (size,) = _LENGTH.unpack_from(data, len(_MAGIC))
    if size > min(_MAX_HEADER_BYTES, len(data) - _START):
        raise DamagedArrays(f"its header claims {size} bytes")
    header = data[_START : _START + size]
    content, listed = _read_header(header)
    arrays: dict[str, Array] = {}
    start = _START + size
    for name, dtype, shape in listed:
        count = math.prod(shape)
        end = start + count * dtype.itemsize
        if end > len(data):
            raise DamagedArrays(f"array {name!r} is cut off")
        array = np.frombuffer(data, dtype, count, start).reshape(shape)
        if dtype.kind == "f" and not np.isfinite(array).all():
            raise DamagedArrays(f"array {name!r} holds a value that is not finite")
        arrays[name] = array
        start = end
    if start != len(data):
        raise DamagedArrays(f"{len(data) - start} bytes follow the last array")
    return Packed(content, arrays)


Listed = list[tuple[str, np.dtype[Any], tuple[int, ...]]]


def _read_header(header: bytes) -> tuple[dict[str, Any], Listed]:
    try:
        document = json.loads(header)
        if _canonical(document) != header or set(document) != {"arrays", "content"}:
            raise DamagedArrays("its header is not in canonical form")
        listed = [_described(item) for item in document["arrays"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, DamagedArrays):
            raise
        raise DamagedArrays(f"its header cannot be read: {type(error).__name__}") from error
    names = [name for name, _, _ in listed]
    if names != sorted(set(names)) or not isinstance(document["content"], dict):
        raise DamagedArrays("its header is not in canonical form")
    return document["content"], listed


def _described(item: Any) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    name, dtype, shape = item["name"], item["dtype"], item["shape"]
    if set(item) != {"name", "dtype", "shape"} or not isinstance(name, str):
        raise DamagedArrays("its header is not in canonical form")
    if dtype not in _DTYPES:
        raise DamagedArrays(f"array {name!r} has the type {dtype!r}")
    # bool is an int to isinstance.
    if len(shape) > _MAX_DIMENSIONS or any(type(n) is not int or n < 0 for n in shape):
        raise DamagedArrays(f"array {name!r} has the shape {shape!r}")
    return name, np.dtype(dtype), tuple(shape)


def _canonical(document: Any) -> bytes:
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return text.encode()
