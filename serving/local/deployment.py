"""Builds a ray.serve.llm deployment from model settings, with corrected defaults."""

from pathlib import Path
from typing import Any

from serving.artifacts.checkpoint import Checkpoint
from serving.artifacts.checkpoint_config import CONFIG_NAME, has_int4_weights, read_config
from serving.contracts.errors import UnsuitableModel, UnsuitableTarget
from serving.contracts.no_telemetry import NO_TELEMETRY
from serving.contracts.settings import CpuAccelerator, GpuAccelerator, ModelSettings
from serving.contracts.task_spec import MAX_LABELS
from serving.host.processor import has_int4_kernel, multiplies_bfloat16, processor_name
from serving.local.engine_log import CONFIG_FILE
from serving.local.kernels import EXTENSION

_HEALTH_CHECK_PERIOD_S = 5
_HEALTH_CHECK_TIMEOUT_S = 30
# A name, not the class: its module imports ray.serve.llm.
_CALLBACK = "serving.local.node_start.WithoutDownload"
# No client's text in the log of a replica or of its engine's processes.
_LOGGING = {"VLLM_LOGGING_CONFIG_PATH": str(CONFIG_FILE)}


def llm_config_arguments(
    model: ModelSettings, checkpoint: Checkpoint, drain_timeout_s: float
) -> dict[str, Any]:
    """Return the keyword arguments of ray.serve.llm.LLMConfig for a model, on this processor.

    Raises UnsuitableTarget as refuse_missing_kernel.
    """
    refuse_missing_kernel(model, checkpoint)
    arguments: dict[str, Any] = {
        "model_loading_config": {"model_id": model.id, "model_source": checkpoint.source},
        "engine_kwargs": _engine_arguments(model, checkpoint),
        "deployment_config": _deployment_options(model, drain_timeout_s),
        "runtime_env": {"env_vars": {**_environment(model, checkpoint), **_LOGGING}},
        # Otherwise streamed tokens are batched for up to 50 ms.
        "experimental_configs": {"stream_batching_interval_ms": 0},
        "callback_config": {"callback_class": _CALLBACK},
        # Off: vLLM then uses its own Prometheus registry, which the gateway's /metrics reads.
        "log_engine_metrics": False,
    }
    match model.accelerator:
        case CpuAccelerator(cores=cores):
            arguments["accelerator_config"] = {"kind": "cpu"}
            arguments["placement_group_config"] = {"bundles": [{"CPU": cores}]}
        case GpuAccelerator(type=gpu_type):
            arguments["accelerator_config"] = {"kind": "gpu"}
            if gpu_type is not None:
                arguments["accelerator_type"] = gpu_type
    return arguments


def offline_arguments(
    model: ModelSettings, checkpoint: Checkpoint
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return vllm.LLM's keyword arguments and the environment that serve the model offline.

    The same engine as the deployment's, for measurements. Raises UnsuitableTarget as
    refuse_missing_kernel.
    """
    arguments = llm_config_arguments(model, checkpoint, 0.0)
    engine_kwargs = {"model": checkpoint.source, **arguments["engine_kwargs"]}
    # An argument of the HTTP layer, which the offline engine does not have.
    engine_kwargs.pop("enable_prompt_tokens_details")
    # Without the replica's logging: errors here are reported in full to the caller.
    return engine_kwargs, _environment(model, checkpoint)


def refuse_missing_kernel(model: ModelSettings, checkpoint: Checkpoint) -> None:
    """Raise UnsuitableTarget for INT4 weights on a processor for which vLLM has no kernel.

    vLLM itself fails while it loads the model, with the name of a missing operator. A hub model
    that is not on this machine passes.
    """
    if not isinstance(model.accelerator, CpuAccelerator) or has_int4_kernel():
        return
    if has_int4_weights(_config(checkpoint).get("quantization_config")):
        raise UnsuitableTarget(
            f"{checkpoint.source!r} has INT4 weights, and vLLM has no INT4 kernel for this "
            f"processor ({processor_name()}, without AVX-512)",
            field="models.accelerator",
            fix="INT4 models need a GPU or a processor with AVX-512; use int8-w8a8",
        )


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the checkpoint's config.json; empty where it is not on this machine or unreadable."""
    folder = Path(checkpoint.source)
    if checkpoint.revision is not None:
        from huggingface_hub import try_to_load_from_cache

        file = try_to_load_from_cache(checkpoint.source, CONFIG_NAME, revision=checkpoint.revision)
        if not isinstance(file, str):
            return {}
        folder = Path(file).parent
    try:
        return read_config(folder, "models.source")
    except UnsuitableModel:
        # The engine reports the fault of the file.
        return {}


def _engine_arguments(model: ModelSettings, checkpoint: Checkpoint) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "max_model_len": model.max_model_len,
        "max_num_seqs": model.max_num_seqs,
        **_block_size(model),
        "dtype": _dtype(model),
        "enable_prefix_caching": True,
        # One scoring point may score every label.
        "max_logprobs": MAX_LABELS,
        # Explicit: the linter refuses overrides, since confidences are computed from these.
        "logprobs_mode": "raw_logprobs",
        # A checkpoint's generation_config.json must not change greedy decoding.
        "generation_config": "vllm",
        "seed": 0,
        # Reports the chosen kernels; a gate records them.
        "worker_extension_cls": EXTENSION,
        # Usage then has the number of prompt tokens that came from the prefix cache.
        "enable_prompt_tokens_details": True,
        **model.engine_args,
    }
    if checkpoint.revision is not None:
        arguments["revision"] = checkpoint.revision
        arguments["tokenizer_revision"] = checkpoint.revision
    if isinstance(model.accelerator, GpuAccelerator):
        arguments["tensor_parallel_size"] = model.accelerator.count
        arguments["gpu_memory_utilization"] = model.accelerator.memory_utilization
    return arguments


def _dtype(model: ModelSettings) -> str:
    if model.dtype != "auto" or not isinstance(model.accelerator, CpuAccelerator):
        return model.dtype
    return "auto" if multiplies_bfloat16() else "float32"


def _block_size(model: ModelSettings) -> dict[str, int]:
    # The prefix cache holds whole blocks. On a processor vLLM's default block has 128 tokens, so up
    # to 127 tokens of a task's prompt were computed again for every request: 13.6 requests/s of
    # label scoring, against 35 with blocks of 32, the smallest that its kernels take.
    return {"block_size": 32} if isinstance(model.accelerator, CpuAccelerator) else {}


def _deployment_options(model: ModelSettings, drain_timeout_s: float) -> dict[str, Any]:
    replicas = model.replicas
    options: dict[str, Any] = {
        # ray.serve.llm's own defaults are 1e9: no push-back, and autoscaling that never acts.
        "max_ongoing_requests": replicas.max_ongoing_requests,
        "max_surge_percent": replicas.max_surge_percent,
        "health_check_period_s": _HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": _HEALTH_CHECK_TIMEOUT_S,
        "graceful_shutdown_timeout_s": (
            drain_timeout_s if replicas.drain_timeout_s is None else replicas.drain_timeout_s
        ),
        "graceful_shutdown_wait_loop_s": 0.2,
        # A line for every call costs as much as the call; the gateway logs requests.
        "logging_config": {"enable_access_log": False},
        # The placement group's bundle carries the resources; the server itself is light.
        "ray_actor_options": {"num_cpus": 0},
    }
    if replicas.min == replicas.max:
        options["num_replicas"] = replicas.min
    else:
        options["autoscaling_config"] = {
            "min_replicas": replicas.min,
            "max_replicas": replicas.max,
            "target_ongoing_requests": replicas.target_ongoing_requests,
        }
    return options


def _environment(model: ModelSettings, checkpoint: Checkpoint) -> dict[str, str]:
    environment = {**NO_TELEMETRY, "VLLM_LOGGING_LEVEL": "WARNING"}
    if checkpoint.revision is None:
        # A local folder is complete; a look-up at a hub could fail or return other files.
        environment["HF_HUB_OFFLINE"] = "1"
    if isinstance(model.accelerator, CpuAccelerator):
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(model.accelerator.kv_cache_gib)
        if model.engine_args.get("enforce_eager"):
            # vLLM compiles parts of its sampler even then: 8 s in the first request, and a C++
            # compiler needed at run time, without a measurable gain on a processor.
            environment["TORCH_COMPILE_DISABLE"] = "1"
    else:
        # FlashInfer's sampler is compiled by nvcc, which images with only the CUDA libraries lack;
        # vLLM 0.29.0 chooses it by compute capability alone and fails at its start.
        environment["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    return environment
