"""The bundled model's file is read once, and what is read is what the package gguf reads."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from serving.artifacts.gguf_reading import read_once

_WORDS = ["the", "ß", "", "a much longer word " * 20]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(_WORDS)
    writer.add_block_count(2)
    writer.add_tensor("output.weight", np.arange(64, dtype=np.float32).reshape(2, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_is_read_once_and_as_gguf_reads_it(file: Path) -> None:
    plain = gguf.GGUFReader(file)
    with read_once():
        reader = gguf.GGUFReader(file)
        assert gguf.GGUFReader(file) is reader
    assert list(reader.fields) == list(plain.fields)
    for name, field in plain.fields.items():
        assert reader.fields[name].contents() == field.contents()
        assert reader.fields[name].types == field.types
    assert reader.fields["tokenizer.ggml.tokens"].contents() == _WORDS
    [tensor], [expected] = reader.tensors, plain.tensors
    assert (tensor.name, tensor.tensor_type) == (expected.name, expected.tensor_type)
    assert np.array_equal(tensor.data, expected.data)


def test_names_of_tensors_are_mapped_once() -> None:
    plain = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    with read_once():
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
        assert gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2) is names
    assert names.mapping == plain.mapping


def test_the_package_is_as_before_afterwards_also_after_an_error(file: Path) -> None:
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    with pytest.raises(OSError, match=r"missing\.gguf"), read_once():
        gguf.GGUFReader(file.with_name("missing.gguf"))
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
