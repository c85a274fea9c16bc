"""What a processor computes fast decides the number format of a model that runs on it."""

from pathlib import Path

import pytest

from serving.artifacts.checkpoint import Checkpoint
from serving.contracts.settings import ModelSettings
from serving.host import processor
from serving.local.deployment import offline_arguments

AVX2 = "processor\t: 0\nmodel name\t: Model A\nflags\t\t: fpu fma avx avx2\n"
AVX512 = "processor\t: 0\nmodel name\t: Model B\nflags\t\t: fpu avx2 avx512f avx512bw avx512vl\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


def _with(monkeypatch: pytest.MonkeyPatch, folder: Path, cpuinfo: str) -> None:
    file = folder / "cpuinfo"
    file.write_text(cpuinfo)
    monkeypatch.setattr(processor, "_CPUINFO", file)


def _dtype(stated: str, kind: str) -> object:
    model = ModelSettings.model_validate(
        {"id": "m", "source": "/models/m", "accelerator": {"kind": kind}, "dtype": stated}
    )
    return offline_arguments(model, Checkpoint("/models/m", None))[0]["dtype"]


@pytest.mark.parametrize(("cpuinfo", "found"), [(AVX2, False), (AVX512, True), (ARM, True)])
def test_bfloat16_is_fast_with_avx512(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cpuinfo: str, found: bool
) -> None:
    _with(monkeypatch, tmp_path, cpuinfo)
    assert processor.multiplies_bfloat16() is found


@pytest.mark.parametrize(
    ("cpuinfo", "stated", "kind", "dtype"),
    [
        (AVX2, "auto", "cpu", "float32"),
        (AVX2, "bfloat16", "cpu", "bfloat16"),
        (AVX512, "auto", "cpu", "auto"),
        (AVX2, "auto", "gpu", "auto"),
    ],
)
def test_auto_is_float32_where_the_processor_has_no_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    cpuinfo: str,
    stated: str,
    kind: str,
    dtype: str,
) -> None:
    _with(monkeypatch, tmp_path, cpuinfo)
    assert _dtype(stated, kind) == dtype
