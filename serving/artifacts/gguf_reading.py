"""GGUF files read once: transformers reads one four times to make a model and its tokenizer."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def read_once() -> Iterator[None]:
    """Keep what the package gguf has read of a file until the block ends.

    A vocabulary is 100,000 strings, each read through numpy: 6 s on a slow core, four times. The
    map of tensor names is made anew for each submodule of a model. Not for two threads at once.
    """
    import gguf

    # Its names are set anew, which its types do not allow.
    package: Any = gguf
    saved = package.GGUFReader, package.get_tensor_name_map

    class Reader(gguf.GGUFReader):
        """A reader that slices a plain array: slices of a memmap are five times as slow."""

        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = np.asarray(mapped)

    package.GGUFReader = functools.cache(Reader)
    package.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    try:
        yield
    finally:
        package.GGUFReader, package.get_tensor_name_map = saved
