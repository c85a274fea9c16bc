"""Replicas and cost against arithmetic by hand, and what must hold for any load."""

import json
import math
from dataclasses import replace
from decimal import Decimal
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.cli import run_program
from serving.commands import plan as command
from serving.contracts.errors import InvalidRequest
from serving.kubernetes.capacity import (
    GPUS,
    LLAMA_3_8B,
    Precision,
    Workload,
    estimate,
    measured,
    plan,
    weight_bytes,
)

A10G = GPUS["a10g"]
LABEL = Workload(300, 250, 1)
PRECISIONS = get_args(Precision)


def planned(rps: float, rate: float, **other: Any) -> Any:
    given = {"headroom": 0.3, "spare": 1, "coverage": 0.7, "frontier_request_usd": None, **other}
    return plan(rps, measured(rate), Decimal("1.2"), **given)


def run(*words: str) -> int:
    return run_program("narrowgate", "test", {"plan": command}, ["plan", *words])


def test_a_label_of_fifty_new_tokens_is_bound_by_its_prefill() -> None:
    found = estimate(A10G, LLAMA_3_8B, "int8", LABEL)
    by_hand = 0.5 / (50 * 2 * 6.98e9 / 140e12)
    assert found.requests_per_s == pytest.approx(by_hand)
    assert found.bound == "prefill"


def test_a_translation_in_16_bits_is_bound_by_reading_the_weights() -> None:
    work = Workload(300, 250, 60)
    found = estimate(A10G, LLAMA_3_8B, "16bit", work)
    weights = 6.98e9 * 2 + 1.05e9 * 2
    left = 24e9 * 0.9 - weights - 1.5e9
    concurrent = math.floor(left / (360 * 131_072))
    assert found.concurrent == concurrent
    step = (weights / concurrent + 360 * 131_072) / 600e9
    assert found.requests_per_s == pytest.approx(0.5 / (50 * 2 * 6.98e9 / 70e12 + 59 * step))
    assert found.bound == "decode"


def test_the_weights_have_the_size_that_the_artifacts_have() -> None:
    assert [round(weight_bytes(LLAMA_3_8B, p) / 1e9, 1) for p in PRECISIONS] == [16.1, 9.1, 5.8]


def test_a_request_that_does_not_fit_is_refused() -> None:
    small = replace(A10G, memory_bytes=12e9)
    with pytest.raises(InvalidRequest, match=r"\(9\.1 GB\) leaves no room for a request of 8001"):
        estimate(small, LLAMA_3_8B, "int8", Workload(8_000, 0, 1))
    with pytest.raises(InvalidRequest, match="a request has 8193 tokens"):
        estimate(A10G, LLAMA_3_8B, "int8", Workload(8_000, 0, 193))


def test_replicas_and_cost_by_hand() -> None:
    found = planned(100.0, 20.0, frontier_request_usd=Decimal("0.0005"))
    # 20 x 0.7 = 14 usable, so 8 for 100 requests/s, and one spare.
    assert (found.needed, found.replicas) == (8, 9)
    assert found.utilisation == pytest.approx(100 / 160)
    assert found.gpu_hours_a_month == 9 * 730
    assert found.month_usd == Decimal("1.2") * 9 * 730
    assert found.local_usd == pytest.approx(Decimal("10.8") / 360_000 * 1_000_000)
    assert found.frontier_usd == Decimal(500)
    assert found.blended_usd == pytest.approx(found.local_usd + Decimal("0.3") * 500)
    # At the break-even rate the GPUs cost what the covered requests would have cost.
    assert found.break_even_rps == pytest.approx(10.8 / 3600 / 0.00035)


def test_a_free_frontier_model_never_breaks_even() -> None:
    assert planned(1.0, 1.0, frontier_request_usd=Decimal(0)).break_even_rps is None
    assert planned(1.0, 1.0, frontier_request_usd=Decimal(1), coverage=0.0).break_even_rps is None


RATES = st.floats(0.01, 1e4)


@given(RATES, RATES, st.floats(0, 0.9), st.floats(1, 10))
def test_more_load_and_more_headroom_never_need_fewer_replicas(
    rps: float, rate: float, headroom: float, factor: float
) -> None:
    found = planned(rps, rate, headroom=headroom)
    assert planned(rps * factor, rate, headroom=headroom).replicas >= found.replicas
    assert planned(rps, rate, headroom=headroom + (0.99 - headroom) / 2).replicas >= found.replicas
    assert found.needed * rate * (1 - headroom) >= rps * (1 - 1e-9)


@given(st.sampled_from(PRECISIONS), st.integers(1, 400), st.integers(1, 200), st.integers(1, 50))
def test_longer_requests_never_raise_the_rate(
    precision: Any, tokens: int, output: int, more: int
) -> None:
    short = estimate(A10G, LLAMA_3_8B, precision, Workload(tokens, 0, output))
    long = estimate(A10G, LLAMA_3_8B, precision, Workload(tokens + more, 0, output + more))
    assert long.requests_per_s <= short.requests_per_s * (1 + 1e-9)


def test_the_command_states_figures_arithmetic_and_assumptions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = "anthropic/claude-sonnet-4-5"
    assert run("--rps", "200", "--frontier-model", model) == 0
    out = capsys.readouterr().out
    assert "replicas on a10g" in out
    assert "(estimated)" in out
    assert "prefill 50 tokens x 2 x 6.98e9 / 140e12 = 4.99 ms" in out
    assert f"per million at {model}" in out


def test_the_command_prints_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--rps", "100", "--measured-rps", "20", "--gpu-hour-usd", "1.2", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["replicas"], document["needed"], document["bound_by"]) == (9, 8, "measured")
    assert document["month_usd"] == "7884.00"
    assert document["usd_per_million"] == {"local": "30.00", "frontier": None, "blended": None}
    assert not any("was measured" in line for line in document["assumptions"])


@pytest.mark.parametrize(("gpu", "name"), [("a10g", "A10G"), ("l4", "L4"), ("l40s", "L40S")])
def test_an_estimate_names_the_card_that_was_not_measured(
    capsys: pytest.CaptureFixture[str], gpu: str, name: str
) -> None:
    assert run("--rps", "100", "--gpu", gpu, "--json") == 0
    assumptions = json.loads(capsys.readouterr().out)["assumptions"]
    assert f"the rate of a replica is an estimate; no {name} was measured" in assumptions


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rps", "0"], "--rps is 0"),
        (["--rps", "5", "--headroom", "1"], "--headroom is 1"),
        (["--rps", "5", "--coverage", "1.2"], "--coverage is 1.2"),
        (["--rps", "5", "--shared-tokens", "300"], "--shared-tokens is 300"),
        (["--rps", "5", "--measured-rps", "0"], "--measured-rps is 0"),
        (["--rps", "5", "--output-tokens", "0"], "--output-tokens is 0"),
        (["--rps", "5", "--input-tokens", "8192"], "8193 tokens, and Llama-3-8B a window of 8192"),
        (
            ["--rps", "5", "--headroom", "0.999999999999999999"],
            "--headroom is 0.999999999999999999",
        ),
        (["--rps", "999999999999999999"], "--rps is 999999999999999999"),
        (["--rps", "0.000000000000000001"], "--rps is 0.000000000000000001"),
        (["--rps", "5", "--measured-rps", "0.000000000000000001"], "--measured-rps is 0.00000"),
        (["--rps", "5", "--gpu-hour-usd", "10001"], "--gpu-hour-usd is 10001"),
        (["--rps", "5", "--frontier-model", "openai/nonsense"], "no price of 'openai/nonsense'"),
    ],
)
def test_values_outside_their_range_are_told(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    assert said in capsys.readouterr().err
