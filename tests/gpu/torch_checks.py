"""Checks of a GPU's arithmetic that need only torch and transformers.

    python tests/gpu/torch_checks.py --model FILE --out DIR

FILE is what `pack_model.py` wrote, or a folder that holds one such file (*.packed). Writes
DIR/torch_checks.json. The status is 1 where a check fails and 2 where there is no GPU; with
`--rehearse` everything runs on the CPU with small sizes.

1. Label log-probabilities of the bundled model on the GPU, in float32, bfloat16 and float16, agree
   with those of the CPU in float32.
2. Weights in the layouts of compressed-tensors (W8A8 and W4A16, made here) dequantize to the same
   bits on the CPU and on the GPU, and the INT8 multiplication is exact.
3. Throughput: prefill with and without a shared prefix, and decoding steps, of the bundled model
   and of layers in the shape of Llama-3-8B.
"""

import argparse
import json
import lzma
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

MAGIC = b"NGPK0001"
# Largest accepted difference of a log-probability over the labels from float32 on the CPU, nats.
# float32 leaves the order of sums; bfloat16 has 8 bits of mantissa and float16 11.
TOLERANCE = {"float32": 0.01, "bfloat16": 0.30, "float16": 0.05}
_GROUP = 64
_REPEATS = 5


def main() -> int:
    """Run every check and return the process's status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, small sizes")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.rehearse:
        print("no GPU: nothing was checked", file=sys.stderr)
        return 2
    device = "cpu" if args.rehearse else "cuda"
    # TF32 would make float32 on the GPU another format.
    torch.backends.cuda.matmul.allow_tf32 = False
    file = args.model if args.model.is_file() else next(args.model.glob("*.packed"))
    model, prompts = unpacked(file)
    report: dict[str, Any] = {"device": _device(device), "torch": torch.__version__, "checks": []}

    def check(name: str, passed: bool, **facts: object) -> None:
        report["checks"].append({"name": name, "passed": passed, **facts})
        print(f"{'pass' if passed else 'FAIL'}  {name}  {facts}", flush=True)

    _check_labels(model, prompts, device, check)
    _check_formats(model, prompts, device, args.out, check)
    small = args.rehearse
    report["throughput"] = [
        *_throughput("bundled model", model, device, small=small),
        *_throughput("8 layers of Llama-3-8B", _llama_layers(device, small=small), device,
                     small=small),
    ]  # fmt: skip
    if device == "cuda":
        report["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "torch_checks.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    failed = [found["name"] for found in report["checks"] if not found["passed"]]
    print("failed: " + ", ".join(failed) if failed else "all checks passed")
    return 1 if failed else 0


def unpacked(file: Path) -> tuple[LlamaForCausalLM, list[dict[str, Any]]]:
    """Return the model, in float32 on the CPU, and the prompts."""
    data = file.read_bytes()
    if data[:8] != MAGIC:
        raise SystemExit(f"{str(file)!r} was not written by pack_model.py")
    (length,) = struct.unpack("<I", data[8:12])
    header = json.loads(data[12 : 12 + length])
    config = LlamaConfig(**header["config"])
    offset = 12 + length
    weights = {}
    for tensor in header["tensors"]:
        parts = []
        for size in tensor["parts"]:
            parts.append(lzma.decompress(data[offset : offset + size]))
            offset += size
        value = _dequantized(tensor["kind"], parts, tensor["shape"])
        weights[tensor["name"]] = _as_loaded(tensor["name"], value, config)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to_empty(device="cpu").float()
    # to_empty leaves rotary frequencies unset: take them from a fresh module.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert missing == ["lm_head.weight"], missing
    model.tie_weights()
    return model.eval(), header["prompts"]


def _dequantized(kind: str, parts: list[bytes], shape: list[int]) -> torch.Tensor:
    """Return GGUF blocks as the bundled checkpoint has them: rounded to bfloat16."""
    raw = [torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in parts]
    if kind == "F32":
        return raw[0].view(torch.float32).reshape(shape)
    if kind == "Q8_0":
        blocks = raw[0].reshape(-1, 34)
        scale = blocks[:, :2].contiguous().view(torch.float16).float()
        return (scale * blocks[:, 2:].contiguous().view(torch.int8)).reshape(shape)
    assert kind == "Q4_1", kind
    scales = raw[0].reshape(4, -1).T.contiguous().view(torch.float16).float()
    nibbles = raw[1].reshape(-1, 16)
    values = torch.cat([nibbles & 15, nibbles >> 4], dim=1)
    return (scales[:, :1] * values + scales[:, 1:]).reshape(shape)


def _as_loaded(name: str, value: torch.Tensor, config: LlamaConfig) -> torch.Tensor:
    # GGUF orders the rows of query and key for another layout of rotary positions.
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if f".{part}." in name:
            rows, columns = value.shape
            halves = value.reshape(count, rows // count // 2, 2, columns)
            value = halves.transpose(1, 2).reshape(rows, columns)
    return value.to(torch.bfloat16).float()


def label_logprobs(model: LlamaForCausalLM, prompts: list[dict[str, Any]]) -> torch.Tensor:
    """Return log-probabilities over each prompt's labels, (n_values,), natural log."""
    device = next(model.parameters()).device
    found = []
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt["ids"]], device=device)
            logits = model(ids, logits_to_keep=1).logits[0, -1].float()
            found.append(torch.log_softmax(logits[prompt["labels"]], dim=-1).cpu())
    return torch.cat(found)


def _check_labels(
    model: LlamaForCausalLM, prompts: list[dict[str, Any]], device: str, check: Callable[..., None]
) -> None:
    reference = label_logprobs(model, prompts)
    for name, tolerance in TOLERANCE.items():
        dtype = getattr(torch, name)
        other = _advance(model, device, dtype)
        found = label_logprobs(other, prompts)
        differences = (found - reference).abs()
        same_machine = label_logprobs(_advance(model, "cpu", dtype), prompts)
        check(
            f"label log-probabilities, {name}",
            bool(differences.max() <= tolerance),
            largest=round(differences.max().item(), 5),
            mean=round(differences.mean().item(), 5),
            against_cpu_same_format=round((found - same_machine).abs().max().item(), 5),
            tolerance=tolerance,
            values=len(reference),
        )


def _advance(model: LlamaForCausalLM, device: str, dtype: torch.dtype) -> LlamaForCausalLM:
    other = LlamaForCausalLM(model.config)
    other.load_state_dict(model.state_dict())
    return other.to(device=device, dtype=dtype).eval()


def _check_formats(
    model: LlamaForCausalLM,
    prompts: list[dict[str, Any]],
    device: str,
    out: Path,
    check: Callable[..., None],
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    weights = {
        name: value for name, value in model.state_dict().items()
        if name.endswith("_proj.weight")
    }  # fmt: skip
    for form, pack, unpack in (("W8A8", _pack_int8, _unpack_int8),
                               ("W4A16", _pack_int4, _unpack_int4)):  # fmt: skip
        file = out / f"{form}.safetensors"
        save_file({k: v for n, w in weights.items() for k, v in pack(n, w).items()}, file)
        on_cpu, on_device = load_file(file), load_file(file, device=device)
        file.unlink()
        both = [(unpack(n, on_cpu), unpack(n, on_device).cpu()) for n in weights]
        check(
            f"{form} dequantizes to the same bits",
            all(torch.equal(old, new) for old, new in both),
            tensors=len(both),
        )
        state = {**model.state_dict(), **{n: w for n, (w, _) in zip(weights, both, strict=True)}}
        restored = LlamaForCausalLM(model.config)
        restored.load_state_dict(state)
        reference = label_logprobs(restored.eval(), prompts)
        found = label_logprobs(_advance(restored, device, torch.bfloat16), prompts)
        largest = (found - reference).abs().max().item()
        check(
            f"{form} answers alike on CPU and GPU",
            largest <= TOLERANCE["bfloat16"],
            largest=round(largest, 5),
            tolerance=TOLERANCE["bfloat16"],
        )
        if form == "W8A8":
            _check_int8_product(on_device, next(iter(weights)), check)


def _pack_int8(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = weight.abs().amax(dim=1, keepdim=True) / 127
    values = torch.round(weight / scale).clamp(-128, 127).to(torch.int8)
    return {name: values, f"{name}_scale": scale.to(torch.bfloat16)}


def _unpack_int8(name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return tensors[name].float() * tensors[f"{name}_scale"].float()


def _pack_int4(name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Pack as compressed-tensors does: eight 4-bit values, offset by 8, in each int32."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // _GROUP, _GROUP)
    scale = (groups.abs().amax(dim=2, keepdim=True) / 7).to(torch.bfloat16)
    values = torch.round(groups / scale.float()).clamp(-8, 7).to(torch.int32) + 8
    eights = values.reshape(rows, columns // 8, 8)
    packed = torch.zeros(rows, columns // 8, dtype=torch.int32)
    for i in range(8):
        packed |= eights[:, :, i] << (4 * i)
    return {f"{name}_packed": packed, f"{name}_scale": scale.squeeze(2)}


def _unpack_int4(name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    packed, scale = tensors[f"{name}_packed"], tensors[f"{name}_scale"].float()
    shifts = torch.arange(0, 32, 4, device=packed.device, dtype=torch.int32)
    values = ((packed.unsqueeze(2) >> shifts) & 15).reshape(packed.shape[0], -1).float() - 8
    return values * scale.repeat_interleave(_GROUP, dim=1)


def _check_int8_product(
    tensors: dict[str, torch.Tensor], name: str, check: Callable[..., None]
) -> None:
    """Compare the INT8 multiplication with the product of the dequantized numbers."""
    weight = tensors[name]
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, weight.shape[1], generator=generator).to(weight.device)
    scale = inputs.abs().amax(dim=1, keepdim=True) / 127
    quantized = torch.round(inputs / scale).clamp(-128, 127).to(torch.int8)
    product = torch._int_mm(quantized, weight.T.contiguous())
    exact = quantized.double() @ weight.T.double()
    check("INT8 multiplication is exact", bool((product.double() == exact).all()), size=64)


def _llama_layers(device: str, *, small: bool) -> LlamaForCausalLM:
    size = {"hidden_size": 256, "intermediate_size": 512} if small else {}
    config = LlamaConfig(
        **{
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 8,
            "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 1024,
            "max_position_embeddings": 8192, **size,
        }
    )  # fmt: skip
    with torch.device(device):
        return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def _throughput(
    name: str, model: LlamaForCausalLM, device: str, *, small: bool
) -> list[dict[str, Any]]:
    """Measure prompts of 300 tokens, 250 of which may be shared, and decoding steps."""
    prefix, rest = (50, 14) if small else (250, 50)
    batches = (1, 4) if small else (1, 8, 64, 256)
    model = model.to(device=device, dtype=torch.bfloat16)
    layers = sum(p.numel() for n, p in model.named_parameters() if "layers" in n)
    found = []
    with torch.inference_mode():
        for batch in batches:
            ids = torch.randint(0, model.config.vocab_size, (batch, prefix + rest), device=device)
            whole = _seconds(lambda: model(ids, logits_to_keep=1), device)  # noqa: B023
            shared = _seconds(lambda: _with_prefix(model, ids, prefix), device)  # noqa: B023
            cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
            step = _seconds(lambda: _decode(model, cache, ids[:, -1:]), device)  # noqa: B023
            tokens = batch * (prefix + rest)
            found.append(
                {
                    "model": name,
                    "batch": batch,
                    "prompts_per_s": batch / whole,
                    "prompts_per_s_shared_prefix": batch / shared,
                    "shared_prefix_speedup": whole / shared,
                    "prefill_tflop_per_s": 2 * layers * tokens / whole / 1e12,
                    "decode_tokens_per_s": batch / step,
                    "decode_weight_gb_per_s": 2 * layers / step / 1e9,
                }
            )
            print(found[-1], flush=True)
    return found


def _with_prefix(model: LlamaForCausalLM, ids: torch.Tensor, prefix: int) -> None:
    # The prefix is computed once and repeated for the batch: its cost is part of the measurement.
    cache: DynamicCache = model(ids[:1, :prefix], use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(len(ids))
    model(ids[:, prefix:], past_key_values=cache, use_cache=True, logits_to_keep=1)


def _decode(model: LlamaForCausalLM, cache: DynamicCache, last: torch.Tensor) -> None:
    length = cache.get_seq_length()
    model(last, past_key_values=cache, use_cache=True)
    cache.crop(length)


def _seconds(run: Callable[[], object], device: str) -> float:
    """Return the median time of a call, after one that warms up."""
    times = []
    for _ in range(_REPEATS + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times[1:])[_REPEATS // 2]


def _device(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU (rehearsal)"


if __name__ == "__main__":
    sys.exit(main())
