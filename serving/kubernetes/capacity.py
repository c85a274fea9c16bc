"""How many GPU replicas a load needs and what that costs, by arithmetic from data sheets.

The estimate is a roofline: the time of a request is its work divided by what the card can do at
best, and half of that rate is taken as reachable. A measured rate takes its place.
"""

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from serving.contracts.errors import InvalidRequest

Precision = Literal["16bit", "int8", "int4"]
HOURS_A_MONTH = 730
_SECONDS_AN_HOUR = 3600
_EFFICIENCY = 0.5
# vLLM's default of max_num_seqs.
_MOST_CONCURRENT = 256
_MEMORY_UTILISATION = 0.90
# Graphs, activations and buffers of the engine.
_ENGINE_BYTES = 1.5e9
_TEN_TO_SIX = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card. flops: dense, a second, in 16 bits; int8 a second in 8. hour_usd: of one node."""

    name: str
    memory_bytes: float
    bandwidth: float
    flops: float
    int8_flops: float
    hour_usd: Decimal
    source: str


GPUS: dict[str, Gpu] = {
    gpu.name: gpu
    for gpu in (
        Gpu("a10g", 24e9, 600e9, 70e12, 140e12, Decimal("1.212"),
            "NVIDIA A10G data sheet; AWS g5.2xlarge, on demand, us-east-1, list price of 2025"),
        Gpu("l4", 24e9, 300e9, 121e12, 242e12, Decimal("0.978"),
            "NVIDIA L4 data sheet; AWS g6.2xlarge, on demand, us-east-1, list price of 2025"),
        Gpu("l40s", 48e9, 864e9, 362e12, 733e12, Decimal("2.242"),
            "NVIDIA L40S data sheet; AWS g6e.2xlarge, on demand, us-east-1, list price of 2025"),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder. parameters: all; layer_parameters: without embedding and output head.

    kv_bytes: of one token, in 16 bits. window: of input and output, tokens.
    """

    name: str
    parameters: float
    layer_parameters: float
    kv_bytes: float
    window: int


LLAMA_3_8B = Model("Llama-3-8B", 8.03e9, 6.98e9, 131_072, 8_192)
"""32 layers, 8 KV heads of 128, a vocabulary of 128,256; the embedding stays in 16 bits."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A mean request, in tokens. shared_tokens: of the input, which the prefix cache holds."""

    input_tokens: int
    shared_tokens: int
    output_tokens: int

    @property
    def new_tokens(self) -> int:
        """Return the input tokens that are computed for each request."""
        return self.input_tokens - self.shared_tokens


@dataclass(frozen=True, slots=True)
class Capacity:
    """What one replica answers. requests_per_s: reachable. bound: `prefill` or `decode`, or
    `measured`. concurrent: requests that fit at once; None where the rate was measured.
    """

    requests_per_s: float
    bound: str
    concurrent: int | None
    arithmetic: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Replicas and cost of a load. Costs in US dollars; frontier_usd: of a million requests."""

    rps: float
    capacity: Capacity
    needed: int
    spare: int
    utilisation: float
    gpu_hours_a_month: int
    month_usd: Decimal
    local_usd: Decimal
    frontier_usd: Decimal | None
    blended_usd: Decimal | None
    break_even_rps: float | None

    @property
    def replicas(self) -> int:
        """Return the replicas, spares included."""
        return self.needed + self.spare


def weight_bytes(model: Model, precision: Precision) -> float:
    """Return the size of the weights: the layers in their precision, the rest in 16 bits."""
    width = {"16bit": 2.0, "int8": 1.0, "int4": 0.53125}[precision]
    return model.layer_parameters * width + (model.parameters - model.layer_parameters) * 2


def estimate(gpu: Gpu, model: Model, precision: Precision, work: Workload) -> Capacity:
    """Return what one replica answers by arithmetic.

    Raises InvalidRequest where the model does not fit the card, or a request not its window or the
    KV cache.
    """
    weights = weight_bytes(model, precision)
    left = gpu.memory_bytes * _MEMORY_UTILISATION - weights - _ENGINE_BYTES
    context = work.input_tokens + work.output_tokens
    if context > model.window:
        raise InvalidRequest(
            f"a request has {context} tokens, and {model.name} a window of {model.window}",
            field="input_tokens",
            fix="plan shorter requests; for another model give --measured-rps",
        )
    concurrent = min(int(left // (context * model.kv_bytes)), _MOST_CONCURRENT)
    if concurrent < 1:
        raise InvalidRequest(
            f"{model.name} in {precision} ({weights / 1e9:.1f} GB) leaves no room for a request of "
            f"{context} tokens on {gpu.name} ({gpu.memory_bytes / 1e9:.0f} GB)",
            field="gpu",
            fix="choose a larger card, fewer bits, or shorter requests",
        )
    # INT4 weights are multiplied in 16 bits.
    flops = gpu.int8_flops if precision == "int8" else gpu.flops
    prefill_s = work.new_tokens * 2 * model.layer_parameters / flops
    # The first output token comes with the prefill.
    decoded = max(work.output_tokens - 1, 0)
    read_s = (weights / concurrent + context * model.kv_bytes) / gpu.bandwidth
    step_s = max(read_s, 2 * model.parameters / flops)
    decode_s = decoded * step_s
    best = 1 / max(prefill_s + decode_s, 1e-9)
    return Capacity(
        best * _EFFICIENCY,
        "prefill" if prefill_s >= decode_s else "decode",
        concurrent,
        (
            f"weights {weights / 1e9:.1f} GB, {left / model.kv_bytes:,.0f} tokens of KV cache, "
            f"{concurrent} requests at once",
            f"prefill {work.new_tokens} tokens x 2 x {model.layer_parameters / 1e9:.2f}e9 / "
            f"{flops / 1e12:.0f}e12 = {prefill_s * 1e3:.2f} ms",
            f"decode {decoded} steps of {step_s * 1e3:.3f} ms a request = {decode_s * 1e3:.2f} ms",
            f"{best:.1f} requests/s at best, of which {_EFFICIENCY:.0%} is taken",
        ),
    )


def measured(requests_per_s: float) -> Capacity:
    """Return a rate that was measured on one replica."""
    return Capacity(
        requests_per_s, "measured", None, (f"{requests_per_s:g} requests/s, as measured",)
    )


def plan(
    rps: float,
    capacity: Capacity,
    hour_usd: Decimal,
    *,
    headroom: float,
    spare: int,
    coverage: float,
    frontier_request_usd: Decimal | None,
) -> Plan:
    """Return replicas and cost. rps: of the local model. headroom: share kept free, 0 to below 1.

    coverage: share of requests that the local model's answer is taken for; the rest is paid to the
    frontier model as well.
    """
    usable = capacity.requests_per_s * (1 - headroom)
    needed = max(math.ceil(rps / usable), 1)
    replicas = needed + spare
    hour = hour_usd * replicas
    local = hour / (Decimal(str(rps)) * _SECONDS_AN_HOUR) * _TEN_TO_SIX
    frontier = None if frontier_request_usd is None else frontier_request_usd * _TEN_TO_SIX
    escalated = Decimal(str(1 - coverage))
    saved = None if frontier_request_usd is None else frontier_request_usd * Decimal(str(coverage))
    return Plan(
        rps=rps,
        capacity=capacity,
        needed=needed,
        spare=spare,
        utilisation=rps / (needed * capacity.requests_per_s),
        gpu_hours_a_month=replicas * HOURS_A_MONTH,
        month_usd=hour * HOURS_A_MONTH,
        local_usd=local,
        frontier_usd=frontier,
        blended_usd=None if frontier is None else local + frontier * escalated,
        break_even_rps=float(hour / _SECONDS_AN_HOUR / saved) if saved else None,
    )
