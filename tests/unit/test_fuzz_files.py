"""A small fixed share of the file fuzzer, and inputs that it found."""

import pytest

from ..fuzz.files import holds, kinds
from ..fuzz.rounds import run_once


@pytest.mark.parametrize("name", sorted(kinds()))
def test_a_damaged_file_is_a_sentence(name: str) -> None:
    kind = kinds()[name]
    holds(kind, kind.content)
    run_once("files", kind.damaged(), lambda content: holds(kind, content), seed=1, examples=4)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index", b'{"weight_map": 0}'),
        ("index", b'{"weight_map": {"model.norm.weight": "../model.safetensors"}}'),
        ("index", b"{"),
        ("config", b"[]"),
        ("config", b'{"architectures": -1}'),
        ("config", b'{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1e12}'),
        ("config", b'{"quantization_config": 4}'),
        ("weights", b"\x08\x00\x00\x00\x00\x00\x00\x00[1, 2, 3"),
        ("held out", b"[" * 3000),
        ("calibration", b'{"text": "\xed\xa0\xbd"}'),
    ],
)
def test_found_files_still_give_one_line_errors(name: str, content: bytes) -> None:
    holds(kinds()[name], content)
