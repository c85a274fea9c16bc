"""The arguments for ray.serve.llm: the defaults that would do harm are set explicitly."""

from typing import Any

from serving.artifacts.checkpoint import Checkpoint
from serving.contracts.settings import ModelSettings, Settings
from serving.local.deployment import llm_config_arguments

CPU = Settings().models[0]


def arguments(model: ModelSettings = CPU, revision: str | None = None) -> dict[str, Any]:
    source = "owner/name" if revision else "some-folder"
    return llm_config_arguments(model, Checkpoint(source, revision), 7.0)


def gpu(**changes: Any) -> ModelSettings:
    return ModelSettings.model_validate(
        {"id": "m", "source": "a/b", "accelerator": {"kind": "gpu", "type": "A10G", "count": 2}}
        | changes
    )


def test_push_back_surge_and_draining_are_explicit() -> None:
    options = arguments()["deployment_config"]
    assert options["max_ongoing_requests"] == 128
    assert options["max_surge_percent"] == 100
    assert options["num_replicas"] == 1
    assert options["graceful_shutdown_timeout_s"] == 7.0


def test_autoscaling_has_a_target() -> None:
    model = gpu(replicas={"min": 1, "max": 3, "target_ongoing_requests": 5})
    options = arguments(model)["deployment_config"]
    assert "num_replicas" not in options
    assert options["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 3,
        "target_ongoing_requests": 5,
    }


def test_streams_do_not_wait_for_company() -> None:
    assert arguments()["experimental_configs"] == {"stream_batching_interval_ms": 0}


def test_the_engine_scores_150_labels_from_raw_logprobs_with_prefix_caching() -> None:
    engine = arguments()["engine_kwargs"]
    assert engine["max_logprobs"] == 150
    assert engine["logprobs_mode"] == "raw_logprobs"
    assert engine["enable_prefix_caching"] is True


def test_a_hub_id_is_loaded_at_its_revision_and_a_folder_without_the_hub() -> None:
    pinned = arguments(gpu(), "a" * 40)
    assert pinned["engine_kwargs"]["revision"] == "a" * 40
    assert pinned["engine_kwargs"]["tokenizer_revision"] == "a" * 40
    assert "HF_HUB_OFFLINE" not in pinned["runtime_env"]["env_vars"]
    assert arguments()["runtime_env"]["env_vars"]["HF_HUB_OFFLINE"] == "1"


def test_accelerators() -> None:
    cpu = arguments()
    assert cpu["accelerator_config"] == {"kind": "cpu"}
    assert cpu["runtime_env"]["env_vars"]["VLLM_CPU_KVCACHE_SPACE"] == "1"
    two = arguments(gpu())
    assert two["accelerator_type"] == "A10G"
    assert two["engine_kwargs"]["tensor_parallel_size"] == 2
    assert two["engine_kwargs"]["gpu_memory_utilization"] == 0.9
    assert "VLLM_CPU_KVCACHE_SPACE" not in two["runtime_env"]["env_vars"]
