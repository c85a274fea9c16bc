"""Several engines' metrics come out as one valid exposition."""

from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

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


def test_a_price_table_that_nothing_calls_has_no_date() -> None:
    metrics = Metrics()
    name = "narrowgate_price_table_changed_seconds"
    assert f"\n{name}" not in metrics.exposition({}).decode()
    metrics.ledger.price_table_read("genai-prices 1", datetime(1970, 1, 2, tzinfo=UTC))
    assert f'{name}{{source="genai-prices 1"}} 86400.0' in metrics.exposition({}).decode()
