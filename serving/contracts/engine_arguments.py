"""Which vLLM engine arguments and environment variables may be set, by what they can change.

An argument that cannot change an answer (memory, parallelism, scheduling, logging) is free. The
gate records those that can in the attestation, and they must be equal when the model is loaded.
Every other argument is refused.
"""

from collections.abc import Mapping

FREE_ARGUMENTS = frozenset({
    # memory
    "cpu_offload_gb", "gpu_memory_utilization", "kv_cache_memory_bytes", "max_model_len",
    "num_gpu_blocks_override",
    # parallelism
    "cpu_distributed_timeout_seconds", "disable_custom_all_reduce", "distributed_timeout_seconds",
    "max_parallel_loading_workers", "numa_bind", "pipeline_parallel_size", "tensor_parallel_size",
    # scheduling
    "async_scheduling", "enable_chunked_prefill", "enable_prefix_caching",
    "long_prefill_token_threshold", "max_cudagraph_capture_size", "max_num_batched_tokens",
    "max_num_queued_reqs", "max_num_queued_tokens", "max_num_scheduled_tokens", "max_num_seqs",
    "prefill_schedule_interval", "scheduler_reserve_full_isl", "scheduling_policy",
    "stream_interval", "watermark",
    # loading, logging and metrics
    "aggregate_engine_logging", "cudagraph_metrics", "disable_log_stats", "enable_mfu_metrics",
    "enable_prompt_tokens_details", "kv_cache_metrics", "kv_cache_metrics_sample",
    "safetensors_prefetch_block_size", "safetensors_prefetch_num_threads", "shutdown_timeout",
    "use_tqdm_on_load",
})  # fmt: skip
"""Arguments that cannot change an answer."""

ATTESTED_ARGUMENTS = frozenset({
    "attention_backend", "block_size", "enforce_eager", "kv_cache_dtype", "linear_backend",
    "optimization_level", "performance_mode",
})  # fmt: skip
"""Arguments that may change an answer and may be set: the gate records their values."""

REFUSED_ARGUMENTS = {
    "config_format": "the configuration is read from the checkpoint's config.json",
    "default_mm_loras": "an adapter changes the weights, and no attestation covers it",
    "enable_lora": "an adapter changes the weights, and no attestation covers it",
    "hf_config_path": "it names a configuration outside the attested files",
    "hf_overrides": "it replaces values of the attested config.json",
    "load_format": "it can load other weights than the attested ones, random ones included",
    "logits_processors": "it runs code that changes the answers",
    "model_class_overrides": "it runs another model class",
    "model_impl": "it runs another implementation of the model",
    "model_loader_extra_config": "it can change which weights are loaded",
    "model_weights": "it names weights outside the attested files",
    "override_generation_config": "it changes how tokens are sampled",
    "quantization_config": "the method is read from the checkpoint",
    "scheduler_cls": "it runs code from outside the engine",
    "speculative_config": "it loads a second model, and no attestation covers it",
    "tokenizer_mode": "the gateway and the engine must use the checkpoint's own tokenizer",
    "worker_cls": "it runs code from outside the engine",
    "worker_extension_cls": "it runs code from outside the engine",
}
"""Frequently used arguments that are refused, with the reason; unlisted ones are refused too."""

_DEFAULT_REASON = "it is not on the list of arguments that cannot change an answer"

# Set by the deployment from other settings; FREE_ARGUMENTS and ATTESTED_ARGUMENTS apart.
_FIXED_ARGUMENTS = frozenset({
    "dtype", "generation_config", "logprobs_mode", "max_logprobs", "seed", "worker_extension_cls",
})  # fmt: skip
# Where the checkpoint is: its digest is attested, not its place.
_LOCATION_ARGUMENTS = frozenset({"model", "revision", "tokenizer_revision"})

_ENVIRONMENT_PREFIX = "VLLM_"
# The first replaces the engine's class in ray.serve.llm. The others change the number format or the
# instructions with which PyTorch, oneDNN, MKL, cuBLAS and Triton multiply.
_OTHER_VARIABLES = frozenset({
    "RAYLLM_VLLM_ENGINE_CLS",
    "ATEN_CPU_CAPABILITY", "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA",
    "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE",
    "ONEDNN_MAX_CPU_ISA", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCHINDUCTOR_USE_FAST_MATH",
    "TRITON_F32_DEFAULT", "TRITON_INTERPRET",
})  # fmt: skip
_FREE_VARIABLE_PREFIXES = ("VLLM_LOG", "VLLM_RAY_", "VLLM_DP_", "VLLM_NIXL_", "VLLM_USAGE_")
_FREE_VARIABLES = frozenset({
    "VLLM_API_KEY", "VLLM_CACHE_ROOT", "VLLM_CONFIGURE_LOGGING", "VLLM_CONFIG_ROOT",
    "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_NUM_OF_RESERVED_CPU", "VLLM_CPU_OMP_THREADS_BIND",
    "VLLM_CUDART_SO_PATH", "VLLM_DEBUG_LOG_API_SERVER_RESPONSE", "VLLM_DISABLE_COMPILE_CACHE",
    "VLLM_DISABLE_LOG_LOGO", "VLLM_DO_NOT_TRACK", "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_ENGINE_ITERATION_TIMEOUT_S", "VLLM_ENGINE_READY_TIMEOUT_S",
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS", "VLLM_HOST_IP", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "VLLM_LOOPBACK_IP", "VLLM_NCCL_SO_PATH",
    "VLLM_NO_USAGE_STATS", "VLLM_PORT", "VLLM_PROCESS_NAME_PREFIX",
    "VLLM_RINGBUFFER_WARNING_INTERVAL", "VLLM_RPC_BASE_PATH", "VLLM_TARGET_DEVICE",
    "VLLM_TRACE_FUNCTION", "VLLM_WORKER_MULTIPROC_METHOD", "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS",
})  # fmt: skip

ArgumentValue = str | int | float | bool


def refusal_reason(name: str) -> str | None:
    """Return why an engine argument may not be set, None where it may."""
    if name in FREE_ARGUMENTS or name in ATTESTED_ARGUMENTS:
        return None
    return REFUSED_ARGUMENTS.get(name, _DEFAULT_REASON)


def unlisted_arguments(arguments: Mapping[str, object]) -> list[str]:
    """Return the names in a complete set of arguments that no deployment of ours passes."""
    known = FREE_ARGUMENTS | ATTESTED_ARGUMENTS | _FIXED_ARGUMENTS | _LOCATION_ARGUMENTS
    return sorted(name for name in arguments if name not in known)


def answer_arguments(arguments: Mapping[str, ArgumentValue]) -> dict[str, ArgumentValue]:
    """Return the arguments that may change an answer: those that the attestation records."""
    ignored = FREE_ARGUMENTS | _LOCATION_ARGUMENTS
    return {name: arguments[name] for name in sorted(arguments) if name not in ignored}


def answer_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that may change an answer, out of a process's environment."""
    return {name: environment[name] for name in sorted(environment) if _may_change(name)}


def _may_change(variable: str) -> bool:
    if variable in _OTHER_VARIABLES:
        return True
    return (
        variable.startswith(_ENVIRONMENT_PREFIX)
        and variable not in _FREE_VARIABLES
        and not variable.startswith(_FREE_VARIABLE_PREFIXES)
    )
