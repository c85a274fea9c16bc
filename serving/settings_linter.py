"""Refuses valid settings that are known to do harm, with the reason, before anything starts."""

import resource
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import psutil

from serving.contracts.engine_arguments import refusal_reason
from serving.contracts.errors import InvalidSettings
from serving.contracts.plain_file import read_plain
from serving.contracts.settings import (
    BUNDLED_MODEL,
    CpuAccelerator,
    ModelSettings,
    Settings,
    bundled_recipe,
)

# engine argument -> why the user may not set it
_OWNED_ARGUMENTS = {
    "model": "it comes from models.source",
    "served_model_name": "it comes from models.id",
    "tokenizer": "the gateway tokenizes with the checkpoint's own tokenizer",
    "revision": "it comes from models.revision",
    "tokenizer_revision": "it comes from models.revision",
    "max_model_len": "it comes from models.max_model_len",
    "max_num_seqs": "it comes from models.max_num_seqs",
    "dtype": "it comes from models.dtype",
    "tensor_parallel_size": "it comes from models.accelerator.count",
    "gpu_memory_utilization": "it comes from models.accelerator.memory_utilization",
    "logprobs_mode": "confidences are computed from raw log-probabilities",
    "max_logprobs": "it must cover the largest label set",
    "generation_config": "a checkpoint's sampling defaults must not change greedy decoding",
    "quantization": "the method is found in the checkpoint; another one would serve other weights",
    "enable_prefix_caching": "for classification it saves more time than any quantization",
    "disable_log_stats": "/metrics and /readyz read the engine's statistics",
    "trust_remote_code": "it runs code from the checkpoint",
    "enable_log_requests": "it writes prompts into the log",
    "enable_prompt_embeds": "it lets clients send tensors to the engine",
    "distributed_executor_backend": "ray.serve.llm sets it",
}

_LARGEST_SENSIBLE_ONGOING = 4096
_FILES_RESERVED = 512


def lint(settings: Settings) -> None:
    """Raise InvalidSettings for the first setting that is known to do harm, with the reason."""
    for problem in problems(settings):
        raise problem


def lint_engines(settings: Settings) -> None:
    """Raise InvalidSettings for the first harmful setting of an engine that serves nobody.

    Its caller names the model's folder: the source may be a folder of other machines.
    """
    for index, model in enumerate(settings.models):
        for problem in _model(f"models.{index}", model):
            raise problem


def problems(settings: Settings) -> Iterator[InvalidSettings]:
    """Yield everything that is wrong with the settings, in the order of the file."""
    yield from _models(settings)
    yield from _prices(settings)
    yield from _gateway(settings)
    yield from _attestation(settings)
    yield from _ledger(settings)
    yield from _auth(settings)
    yield from _evidence(settings)


def _evidence(settings: Settings) -> Iterator[InvalidSettings]:
    evidence = settings.evidence
    own = set().union(*map(_key_names, evidence.trusted_keys))
    if evidence.signing_key is not None:
        # Where `narrowgate keygen` puts the public half.
        for path in (
            evidence.signing_key,
            evidence.signing_key.with_suffix(".pub"),
            Path(f"{evidence.signing_key}.pub"),
        ):
            own |= _key_names(path)
    for path in settings.attestation.trusted_keys:
        if _key_names(path) & own:
            yield InvalidSettings(
                f"the key {str(path)!r} is trusted for models and for evidence: a broken gateway "
                "could attest models",
                field="evidence.trusted_keys",
                fix="make a key for evidence alone with narrowgate keygen",
            )
    baseline = next((m for m in settings.models if m.id == evidence.baseline), None)
    if baseline is not None and bundled_recipe(baseline.source) is not None:
        yield InvalidSettings(
            f"evidence.baseline {evidence.baseline!r} is quantized ({baseline.source!r})",
            field="evidence.baseline",
            fix="name a model in 16 bits, as a second model of the settings",
        )


def _key_names(path: Path) -> set[object]:
    """Return by what a key file is known: its path, and its public key where it can be read.

    A copy under another name is the same key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        load_pem_private_key,
        load_pem_public_key,
    )

    found: set[object] = {path.resolve()}
    try:
        content = read_plain(path)
        if b"PRIVATE KEY" in content:
            private = load_pem_private_key(content, None)
            if isinstance(private, Ed25519PrivateKey):
                found.add(private.public_key().public_bytes_raw())
        else:
            found.add(load_pem_public_key(content).public_bytes_raw())
    except (OSError, ValueError, TypeError, AttributeError):
        # Whoever reads the key reports what is wrong with it.
        return found
    return found


def _models(settings: Settings) -> Iterator[InvalidSettings]:
    for index, model in enumerate(settings.models):
        where = f"models.{index}"
        yield from _source(where, model)
        yield from _model(where, model)


def _model(where: str, model: ModelSettings) -> Iterator[InvalidSettings]:
    yield from _scaling(where, model)
    yield from _engine(where, model)
    yield from _memory(where, model)


def _source(where: str, model: ModelSettings) -> Iterator[InvalidSettings]:
    bundled = model.source == BUNDLED_MODEL or bundled_recipe(model.source) is not None
    local = bundled or Path(model.source).expanduser().is_dir()
    looks_like_path = model.source.startswith((".", "/", "~")) or model.source.count("/") != 1
    if local:
        if model.revision is not None:
            yield InvalidSettings(
                f"{model.source!r} is local and has no revision",
                field=f"{where}.revision",
                fix="remove it",
            )
    elif looks_like_path:
        yield InvalidSettings(
            f"{model.source!r} is neither a folder nor a hub id",
            field=f"{where}.source",
            fix=f"name a folder with a checkpoint, an owner/name on the hub, or {BUNDLED_MODEL}",
        )
    elif model.revision is None:
        yield InvalidSettings(
            f"hub id {model.source!r} has no revision: the model could change between two starts",
            field=f"{where}.revision",
            fix="pin the commit, 40 hex digits",
        )


def _scaling(where: str, model: ModelSettings) -> Iterator[InvalidSettings]:
    replicas = model.replicas
    if replicas.max_ongoing_requests > _LARGEST_SENSIBLE_ONGOING:
        yield InvalidSettings(
            f"max_ongoing_requests is {replicas.max_ongoing_requests}: a replica would never push "
            "back and its queue would grow until requests time out",
            field=f"{where}.replicas.max_ongoing_requests",
            fix=f"use at most {_LARGEST_SENSIBLE_ONGOING}",
        )
    if replicas.target_ongoing_requests >= replicas.max_ongoing_requests:
        yield InvalidSettings(
            f"target_ongoing_requests ({replicas.target_ongoing_requests}) is not below "
            f"max_ongoing_requests ({replicas.max_ongoing_requests}): autoscaling would never act",
            field=f"{where}.replicas.target_ongoing_requests",
            fix="use a third of max_ongoing_requests or less",
        )
    if replicas.min == 1 and replicas.max_surge_percent == 0:
        yield InvalidSettings(
            "max_surge_percent is 0 with one replica: every update would be an outage",
            field=f"{where}.replicas.max_surge_percent",
            fix="use 100, and a machine with the capacity for a second replica during updates",
        )
    if model.concurrent_batches > replicas.max_ongoing_requests:
        yield InvalidSettings(
            f"concurrent_batches ({model.concurrent_batches}) is above max_ongoing_requests "
            f"({replicas.max_ongoing_requests}): batches would wait where they cannot be retried",
            field=f"{where}.concurrent_batches",
            fix="lower concurrent_batches",
        )


def _engine(where: str, model: ModelSettings) -> Iterator[InvalidSettings]:
    for name, value in model.engine_args.items():
        if name in _OWNED_ARGUMENTS:
            yield InvalidSettings(
                f"engine argument {name!r} may not be set: {_OWNED_ARGUMENTS[name]}",
                field=f"{where}.engine_args.{name}",
                fix="remove it",
            )
        elif (reason := refusal_reason(name)) is not None:
            yield InvalidSettings(
                f"engine argument {name!r} is not allowed: {reason}",
                field=f"{where}.engine_args.{name}",
                fix="remove it; docs/settings.md lists the arguments that may be set",
            )
        elif not isinstance(value, str | int | float):
            yield InvalidSettings(
                f"engine argument {name!r} is {value!r}, which is not a text, number or boolean",
                field=f"{where}.engine_args.{name}",
                fix="give a single value",
            )
    if isinstance(model.accelerator, CpuAccelerator) and model.dtype == "float16":
        yield InvalidSettings(
            "float16 on a processor is emulated and slow",
            field=f"{where}.dtype",
            fix="use bfloat16 or auto",
        )


def _memory(where: str, model: ModelSettings) -> Iterator[InvalidSettings]:
    if not isinstance(model.accelerator, CpuAccelerator):
        return
    total_gib = psutil.virtual_memory().total / 2**30
    wanted = model.accelerator.kv_cache_gib * model.replicas.max
    if wanted > total_gib / 2:
        yield InvalidSettings(
            f"the KV caches take {wanted} GiB and this machine has {total_gib:.0f} GiB in all",
            field=f"{where}.accelerator.kv_cache_gib",
            fix="lower kv_cache_gib or the number of replicas",
        )


def _gateway(settings: Settings) -> Iterator[InvalidSettings]:
    gateway = settings.gateway
    if gateway.max_inputs > gateway.max_concurrent_inputs:
        yield InvalidSettings(
            f"max_inputs ({gateway.max_inputs}) is above max_concurrent_inputs "
            f"({gateway.max_concurrent_inputs}): the largest request could never start",
            field="gateway.max_concurrent_inputs",
            fix="raise it to max_inputs or more",
        )
    if gateway.max_connections_per_address > gateway.max_connections:
        yield InvalidSettings(
            f"max_connections_per_address ({gateway.max_connections_per_address}) is above "
            f"max_connections ({gateway.max_connections}): one address could take them all",
            field="gateway.max_connections_per_address",
            fix="lower it, or raise max_connections",
        )
    if gateway.health_port == settings.port:
        yield InvalidSettings(
            f"health_port and port are both {settings.port}",
            field="gateway.health_port",
            fix="choose another port, or remove health_port",
        )
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # HAProxy needs a file for each side of a connection, and some of its own.
    needed = 2 * gateway.max_connections + _FILES_RESERVED
    if files not in (resource.RLIM_INFINITY, -1) and needed > files:
        yield InvalidSettings(
            f"max_connections ({gateway.max_connections}) needs {needed} open files and this "
            f"process may open {files}",
            field="gateway.max_connections",
            fix=f"use at most {(files - _FILES_RESERVED) // 2}, or raise the limit (ulimit -Hn)",
        )


def _attestation(settings: Settings) -> Iterator[InvalidSettings]:
    rules = settings.attestation
    # A bundled model is signed at the first start, with a key of this state folder's own.
    foreign = [model.id for model in settings.models if bundled_recipe(model.source) is None]
    if foreign and not rules.trusted_keys and not rules.development:
        yield InvalidSettings(
            f"no key is trusted, so no attestation of model {foreign[0]!r} can be verified",
            field="attestation.trusted_keys",
            fix="name the public key of the gate that signs your attestations (docs/gate.md)",
        )
    for index, key in enumerate(rules.trusted_keys):
        if not key.is_file():
            yield InvalidSettings(
                f"no file {str(key)!r}",
                field=f"attestation.trusted_keys.{index}",
                fix="name the .pub file that narrowgate keygen wrote",
            )


def _prices(settings: Settings) -> Iterator[InvalidSettings]:
    for index, model in enumerate(settings.models):
        if model.replica_hour_usd is None:
            yield InvalidSettings(
                f"model {model.id!r} has no replica_hour_usd: the cost of its answers is unknown",
                field=f"models.{index}.replica_hour_usd",
                fix="give US dollars, such as replica_hour_usd: 1.01, or 0 where it costs nothing",
            )


def _ledger(settings: Settings) -> Iterator[InvalidSettings]:
    replicas = settings.gateway.replicas
    database = settings.ledger.url or settings.ledger.url_file
    if database is None and replicas > 1:
        yield InvalidSettings(
            f"{replicas} gateway replicas cannot share one SQLite ledger: they may "
            "run on several machines",
            field="ledger.url",
            fix="give postgresql://USER:PASSWORD@HOST/DATABASE, or use one replica",
        )


def _auth(settings: Settings) -> Iterator[InvalidSettings]:
    auth = settings.auth
    if auth.mode == "off" and not _is_loopback(settings.host):
        yield InvalidSettings(
            f"auth.mode is off and host is {settings.host!r}: anyone who "
            "reaches it could spend your money",
            field="auth.mode",
            fix="use keys, or listen on 127.0.0.1",
        )
    if auth.max_stale_s < 2 * auth.refresh_s:
        yield InvalidSettings(
            f"max_stale_s ({auth.max_stale_s}) is below two refresh_s ({auth.refresh_s}): keys "
            "would be refused whenever one reading of the database is late",
            field="auth.max_stale_s",
            fix="raise it, to an hour for instance",
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
