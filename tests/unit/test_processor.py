"""A processor's instructions decide a model's number format, and which models run on it."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantize.compare.measure import Materials, Subject, measure
from quantize.compare.workload import Passages
from quantize.hardware import Machine
from serving.artifacts.checkpoint import Checkpoint
from serving.cli import main
from serving.contracts.errors import UnsuitableTarget
from serving.contracts.settings import ModelSettings
from serving.host import processor
from serving.local.deployment import llm_config_arguments, offline_arguments

from .checkpoints import config, write

AVX2 = "processor\t: 0\nmodel name\t: Model A\nflags\t\t: fpu fma avx avx2\n"
AVX512 = "processor\t: 0\nmodel name\t: Model B\nflags\t\t: fpu avx2 avx512f avx512bw avx512vl\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd bf16\n"


def _with(monkeypatch: pytest.MonkeyPatch, folder: Path, cpuinfo: str) -> None:
    file = folder / "cpuinfo"
    file.write_text(cpuinfo)
    monkeypatch.setattr(processor, "_CPUINFO", file)


def _model(kind: str, **more: Any) -> ModelSettings:
    return ModelSettings.model_validate(
        {"id": "m", "source": "/models/m", "accelerator": {"kind": kind}, **more}
    )


def _dtype(stated: str, kind: str) -> object:
    model = _model(kind, dtype=stated)
    return offline_arguments(model, Checkpoint("/models/m", None))[0]["dtype"]


def _weights(bits: int, kind: str = "int") -> dict[str, Any]:
    group = {"weights": {"num_bits": bits, "type": kind}, "input_activations": None}
    eight = {"weights": {"num_bits": 8, "type": "int"}}
    return {"quant_method": "compressed-tensors", "config_groups": {"a": eight, "b": group}}


def _quantized(folder: Path, stated: object) -> Path:
    return write(folder, description={**config(), "quantization_config": stated})


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


@pytest.mark.parametrize(
    "stated",
    [
        _weights(4),
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "w_bit": 4},
    ],
)
def test_int4_weights_are_refused_where_no_kernel_computes_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stated: dict[str, Any]
) -> None:
    checkpoint = Checkpoint(str(_quantized(tmp_path / "int4", stated)), None)
    _with(monkeypatch, tmp_path, AVX2)
    with pytest.raises(UnsuitableTarget, match="no INT4 kernel") as caught:
        offline_arguments(_model("cpu"), checkpoint)
    assert "Model A" in caught.value.message
    assert caught.value.fix == ("INT4 models need a GPU or a processor with AVX-512; use int8-w8a8")
    with pytest.raises(UnsuitableTarget):
        llm_config_arguments(_model("cpu"), checkpoint, 1.0)
    offline_arguments(_model("gpu"), checkpoint)
    for cpuinfo in (AVX512, ARM):
        _with(monkeypatch, tmp_path, cpuinfo)
        offline_arguments(_model("cpu"), checkpoint)


@pytest.mark.parametrize(
    "stated",
    [
        None,
        "int4",
        [4],
        _weights(8),
        _weights(4, "float"),
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 8},
        {"quant_method": "compressed-tensors", "config_groups": [4]},
    ],
)
def test_other_weights_are_left_to_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stated: object
) -> None:
    _with(monkeypatch, tmp_path, AVX2)
    offline_arguments(_model("cpu"), Checkpoint(str(_quantized(tmp_path / "m", stated)), None))
    (tmp_path / "m" / "config.json").write_bytes(b"\xff{")
    offline_arguments(_model("cpu"), Checkpoint(str(tmp_path / "m"), None))
    offline_arguments(_model("cpu"), Checkpoint("nobody/nothing", "0" * 40))


def test_gate_and_comparison_refuse_int4_before_they_load_a_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _with(monkeypatch, tmp_path, AVX2)
    baseline, int4 = write(tmp_path / "baseline"), _quantized(tmp_path / "int4", _weights(4))
    assert main(["keygen", "--out", str(tmp_path / "key")]) == 0
    gate = [
        "gate", "--baseline", str(baseline), "--candidate", str(int4), "--suite", "builtin",
        "--task", "topic", "--key", str(tmp_path / "key"),
    ]  # fmt: skip
    capsys.readouterr()
    assert main([*gate, "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert (error["code"], error["field"]) == ("unsuitable_target", "models.accelerator")
    assert "AVX-512" in error["fix"]
    materials = Materials(Passages("x", ()), None, 1, Machine("a", 1, 2**40, None))
    reports: list[str] = []
    with pytest.raises(UnsuitableTarget):
        measure(
            [Subject("baseline", baseline), Subject("int4", int4)], materials, tmp_path,
            reports.append,
        )  # fmt: skip
    assert reports == []
