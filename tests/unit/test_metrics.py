"""Several engines' metrics come out as one valid exposition."""

from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from serving.contracts.answer import Usage
from serving.contracts.exits import Exit
from serving.gateway.metrics import Metrics

ENGINE = """# HELP vllm:generation_tokens_total Generated tokens.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0"} 5.0
# HELP vllm:e2e_seconds Latency.
# TYPE vllm:e2e_seconds histogram
vllm:e2e_seconds_bucket{le="1.0"} 2.0
vllm:e2e_seconds_bucket{le="+Inf"} 3.0
vllm:e2e_seconds_count 3.0
vllm:e2e_seconds_sum 4.0
"""


def test_families_are_merged_and_samples_labelled() -> None:
    metrics = Metrics()
    text = metrics.exposition({"a": ENGINE, "b": ENGINE}).decode()
    assert text.count("# TYPE vllm:generation_tokens_total counter") == 1
    families = {family.name: family for family in text_string_to_metric_families(text)}
    tokens = families["vllm:generation_tokens"]
    assert {sample.labels["model"]: sample.value for sample in tokens.samples} == {
        "a": 5.0,
        "b": 5.0,
    }
    assert len(families["vllm:e2e_seconds"].samples) == 8


def test_models_that_clients_name_fill_no_memory() -> None:
    metrics = Metrics(["openai/known"])
    # Any number of names that no provider knows leave the labels to others.
    for number in range(500):
        metrics.called("anthropic", f"unknown-{number}", "frontier_unknown_model", 0.1)
        metrics.fell_back(f"anthropic/no-{number}", "openai/known", "frontier_unknown_model")
    for spelling in ("Real", "real@1", "REAL@2"):
        metrics.called("anthropic", spelling, "ok", 0.1)
    counted = metrics.registry.get_sample_value
    calls = "narrowgate_frontier_calls_total"
    real = {"provider": "anthropic", "model": "real", "outcome": "ok"}
    assert counted(calls, real) == 3
    assert "unknown-1" not in metrics.exposition({}).decode()
    # A provider that answers to every name.
    for number in range(500):
        name = f"m{number}" if number % 2 else "x" * number * 1000
        metrics.called("anthropic", name, "ok", 0.1)
        metrics.fell_back(f"anthropic/{name}", "openai/known", "frontier_unavailable")
        exit_ = Exit(
            "r", "chat", None, "frontier", "out_of_scope", f"anthropic/{name}",
            Usage(uncached_input_tokens=5, output_tokens=1), 0.1,
        )  # fmt: skip
        metrics.input_finished(exit_, None)
    metrics.called("openai", "known", "ok", 0.1)
    text = metrics.exposition({}).decode()
    lines = [line for line in text.splitlines() if line.startswith("narrowgate_frontier_calls_t")]
    assert 100 < len(lines) <= 103
    assert any('model="known"' in line for line in lines)
    assert any('model="other"' in line and line.endswith(" 401.0") for line in lines)
    assert len(text) < 1_000_000


def test_a_price_table_that_nothing_calls_has_no_date() -> None:
    metrics = Metrics()
    name = "narrowgate_price_table_changed_seconds"
    assert f"\n{name}" not in metrics.exposition({}).decode()
    metrics.ledger.price_table_read("genai-prices 1", datetime(1970, 1, 2, tzinfo=UTC))
    assert f'{name}{{source="genai-prices 1"}} 86400.0' in metrics.exposition({}).decode()
